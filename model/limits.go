package model

import (
	"fmt"
	"math/bits"

	"github.com/mmserve/mmserve/internal/host"
)

// Most that a config.json may say, a few times what any released model has. Every size that follows from it then fits
// into an int64.
const (
	maxLayers  = 1 << 10
	maxWidth   = 1 << 17
	maxMLP     = 1 << 20
	maxHeads   = 1 << 11
	maxHeadDim = 1 << 11
	maxVocab   = 1 << 20
	maxPixels  = 1 << 13 // of a tile's side
	maxTiles   = 1 << 10 // of an image
)

// ropeBytes is the most memory of the tables of cosines and sines, which a context has for every position.
const ropeBytes = 64 << 20

// maxContext is the most positions of a sequence.
const maxContext = 1 << 18

type limited struct {
	field       string
	value, most int
}

func inRange(list ...limited) error {
	for _, l := range list {
		if l.value < 1 || l.value > l.most {
			return fmt.Errorf("%s is %d, want 1 to %d", l.field, l.value, l.most)
		}
	}
	return nil
}

// within refuses sizes that are out of range, naming the field of config.json. Families fill in what a file leaves out
// first.
func (s Spec) within() error {
	d, t := s.Decoder, s.Tower
	if err := inRange(
		limited{"text_config.num_hidden_layers", d.Layers, maxLayers}, limited{"text_config.hidden_size", d.Hidden, maxWidth},
		limited{"text_config.intermediate_size", d.Intermediate, maxMLP}, limited{"text_config.num_attention_heads", d.Heads, maxHeads},
		limited{"text_config.num_key_value_heads", d.KVHeads, maxHeads}, limited{"text_config.head_dim", d.HeadDim, maxHeadDim},
		limited{"text_config.vocab_size", d.Vocab, maxVocab},
	); err != nil {
		return err
	}
	if err := inRange(
		limited{"vision_config.num_hidden_layers", t.Layers, maxLayers}, limited{"vision_config.hidden_size", t.Hidden, maxWidth},
		limited{"vision_config.intermediate_size", t.Intermediate, maxMLP}, limited{"vision_config.num_attention_heads", t.Heads, maxHeads},
		limited{"vision_config.image_size", t.ImageSize, maxPixels}, limited{"vision_config.patch_size", t.PatchSize, maxPixels},
	); err != nil {
		return err
	}
	if id := int64(s.Layout.ImageTokenID); id < 0 || id > maxVocab {
		return fmt.Errorf("the image token's id is %d, want 0 to %d", id, maxVocab)
	}
	return nil
}

// cutContext shortens a context to maxContext, and to what position tables of ropeBytes hold.
func (m *Model) cutContext() {
	d := &m.Decoder
	if d.EncoderStates > 0 { // positions are rows of the checkpoint
		return
	}
	most := min(maxContext, ropeBytes/(4*d.HeadDim))
	if d.MaxLen > most {
		m.warn("max_position_embeddings is %d: the context is cut to %d tokens", d.MaxLen, most)
		d.MaxLen = most
	}
}

// total is the number of all parameters, and whether it fits into an int64.
func total(dims [][]int) (n int64, ok bool) {
	var sum uint64
	for _, list := range dims {
		product := uint64(1)
		for _, d := range list {
			hi, lo := bits.Mul64(product, uint64(max(d, 0)))
			if hi != 0 {
				return 0, false
			}
			product = lo
		}
		if sum += product; sum < product || sum > 1<<62 {
			return 0, false
		}
	}
	return int64(sum), true
}

// judge refuses weights that are not there yet and would not fit: size bytes for each parameter, against the memory that
// this process may use and the free space of the folder that they are written to.
func (s Spec) judge(dir string, size int64, inMemory bool) error {
	needs, err := s.Needs()
	if err != nil {
		return err
	}
	dims := make([][]int, len(needs))
	for i, n := range needs {
		dims[i] = n.Dims
	}
	n, ok := total(dims)
	if !ok || n > (1<<62)/size {
		return fmt.Errorf("config.json describes more parameters than can be counted")
	}
	gib := func(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
	if free := host.FreeDisk(dir); free > 0 && uint64(n*size) > free {
		return fmt.Errorf("config.json describes %d parameters, whose weights take %s; %s has %s free", n, gib(n*size), dir, gib(int64(free)))
	}
	if limit := host.ReadMemory().Limit; inMemory && limit > 0 && uint64(4*n) > limit {
		return fmt.Errorf("config.json describes %d parameters, which take %s of memory to run; this process may use %s", n, gib(4*n), gib(int64(limit)))
	}
	return nil
}
