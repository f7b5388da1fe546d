package caption

import (
	"context"
	"encoding/json"
	"io"
	"math/bits"

	"github.com/corona10/goimagehash"

	"github.com/mmserve/mmserve/internal/imaging"
)

// nearBits is how many of a perceptual hash's 64 bits may differ between images that look alike.
const nearBits = 3

// mostCompared bounds how many earlier images with the same quarter one is compared with: thousands of blank ones share
// all.
const mostCompared = 1000

// NearDupes finds images that look alike: whose perceptual hashes (the signs of the lowest frequencies) differ in at
// most three of 64 bits. It takes about 100 bytes of memory for each image. Hashes that close share one of four
// quarters.
type NearDupes struct {
	w      *json.Encoder
	hashes []uint64
	ids    []string
	bands  [4]map[uint16][]int32
	found  int
	err    error
}

// nearDupe is a line of the report.
type nearDupe struct {
	ID       string `json:"id"`
	Near     string `json:"near"`
	Distance int    `json:"distance"`
}

// NewNearDupes reports pairs to w, as JSON lines.
func NewNearDupes(w io.Writer) *NearDupes {
	n := &NearDupes{w: json.NewEncoder(w)}
	n.w.SetEscapeHTML(false)
	for i := range n.bands {
		n.bands[i] = map[uint16][]int32{}
	}
	return n
}

// Add takes an image, and reports the nearest one among those before it.
func (n *NearDupes) Add(id string, image []byte) {
	rgb, err := imaging.Decode(context.Background(), image, imaging.DefaultLimits())
	if err != nil {
		return
	}
	h, err := goimagehash.PerceptionHash(nrgba(rgb))
	if err != nil {
		return
	}
	n.add(id, h.GetHash())
}

func (n *NearDupes) add(id string, hash uint64) {
	best, at := nearBits+1, -1
	for i := range n.bands {
		band := n.bands[i][uint16(hash>>(16*i))]
		for _, k := range band[max(0, len(band)-mostCompared):] {
			if d := bits.OnesCount64(hash ^ n.hashes[k]); d < best {
				best, at = d, int(k)
			}
		}
	}
	if at >= 0 {
		n.found++
		if err := n.w.Encode(nearDupe{id, n.ids[at], best}); err != nil && n.err == nil {
			n.err = err
		}
	}
	k := int32(len(n.hashes))
	n.hashes, n.ids = append(n.hashes, hash), append(n.ids, id)
	for i := range n.bands {
		q := uint16(hash >> (16 * i))
		n.bands[i][q] = append(n.bands[i][q], k)
	}
}

// Found gives how many pairs were reported, and the first error of writing them.
func (n *NearDupes) Found() (int, error) { return n.found, n.err }
