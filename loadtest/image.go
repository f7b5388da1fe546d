package loadtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"image"
	"image/jpeg"
	"image/png"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// DefaultImageSizes are those of screens, cameras and the web, small ones the most frequent.
const DefaultImageSizes = "512x512:4,640x480:4,1024x768:3,1280x720:3,1920x1080:2,3024x4032:1"

// Image is an encoded image.
type Image struct {
	Data []byte
	Type string // image/jpeg, say
}

// maxImagePixels bounds the images that are drawn.
const maxImagePixels = 100_000_000

// DrawImages makes n images of sizes ("640x480:3,1920x1080", weighted) from a seed: soft structure with edges and
// some noise, so that they compress like photos. A share pngs of them is PNG, the rest JPEG.
func DrawImages(n int, sizes string, pngs float64, seed uint64) ([]Image, error) {
	list, err := ParseWeighted(sizes)
	if err != nil {
		return nil, fmt.Errorf("image sizes: %w", err)
	}
	for _, w := range list {
		if _, err := parseSize(w.Value); err != nil {
			return nil, err
		}
	}
	out := make([]Image, n)
	var group errgroup.Group
	group.SetLimit(2)
	for i := range out {
		group.Go(func() (err error) {
			rng := rand.New(rand.NewPCG(seed, uint64(i)))
			size, err := parseSize(pick(rng, list))
			if err == nil {
				out[i], err = draw(rng, size, rng.Float64() < pngs)
			}
			return err
		})
	}
	return out, group.Wait()
}

func parseSize(s string) (image.Point, error) {
	var p image.Point
	if n, err := fmt.Sscanf(s+" ", "%dx%d ", &p.X, &p.Y); n != 2 || err != nil || p.X < 1 || p.Y < 1 ||
		p.X > maxImagePixels/p.Y {
		return p, fmt.Errorf("image size %q: want WIDTHxHEIGHT, together at most %d pixels", s, maxImagePixels)
	}
	return p, nil
}

func draw(rng *rand.Rand, size image.Point, asPNG bool) (Image, error) {
	img := image.NewRGBA(image.Rectangle{Max: size})
	cell := max(size.X, size.Y)/12 + 1
	across := size.X/cell + 2
	grid := make([][3]float32, across*(size.Y/cell+2))
	for i := range grid {
		for c := range 3 {
			grid[i][c] = rng.Float32() * 230
		}
	}
	boxes := make([]image.Rectangle, 6)
	for i := range boxes {
		at := image.Pt(rng.IntN(size.X), rng.IntN(size.Y))
		boxes[i] = image.Rectangle{at, at.Add(size.Div(2 + rng.IntN(6)))}
	}
	noise := rng.Uint32() | 1
	for y := range size.Y {
		j, fy := y/cell, float32(y%cell)/float32(cell)
		line := img.Pix[y*img.Stride:]
		for x := range size.X {
			i, fx := x/cell, float32(x%cell)/float32(cell)
			a := j*across + i
			noise = noise*1664525 + 1013904223
			light := float32(noise>>28) / 2
			for k, b := range boxes {
				if x >= b.Min.X && x < b.Max.X && y >= b.Min.Y && y < b.Max.Y {
					light += float32(k*5 - 12)
				}
			}
			for c := range 3 {
				v := (grid[a][c]*(1-fx)+grid[a+1][c]*fx)*(1-fy) + (grid[a+across][c]*(1-fx)+grid[a+across+1][c]*fx)*fy
				line[4*x+c] = uint8(min(max(v+light, 0), 255))
			}
			line[4*x+3] = 255
		}
	}
	var b bytes.Buffer
	if asPNG {
		err := (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&b, img)
		return Image{b.Bytes(), "image/png"}, err
	}
	err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 85})
	return Image{b.Bytes(), "image/jpeg"}, err
}

// ReadImages reads the images of a folder, those below it too, in the order of their names. Its error names no file
// as broken: what is in them is the server's to judge.
func ReadImages(dir string) ([]Image, error) {
	types := map[string]string{".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".gif": "image/gif",
		".bmp": "image/bmp", ".webp": "image/webp"}
	var list []Image
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		kind := types[strings.ToLower(filepath.Ext(path))]
		if err != nil || d.IsDir() || kind == "" {
			return err
		}
		data, err := os.ReadFile(path)
		list = append(list, Image{data, kind})
		return err
	})
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s: no images (.jpg, .png, .gif, .bmp, .webp)", dir)
	}
	return list, err
}

// stamp gives the same image with n written into a comment, so that a server has not seen its bytes before. Other than
// JPEG and PNG it returns as it is.
func (p Image) stamp(n uint64) Image {
	note := binary.BigEndian.AppendUint64([]byte("loadtest"), n)
	switch {
	case p.Type == "image/jpeg" && bytes.HasPrefix(p.Data, []byte{0xff, 0xd8}):
		comment := append([]byte{0xff, 0xfe, 0, byte(len(note) + 2)}, note...)
		p.Data = slices.Concat(p.Data[:2], comment, p.Data[2:])
	case p.Type == "image/png" && len(p.Data) > 33 && string(p.Data[12:16]) == "IHDR":
		chunk := append([]byte("tEXtn\x00"), fmt.Sprintf("%x", note)...)
		block := binary.BigEndian.AppendUint32(nil, uint32(len(chunk)-4))
		block = binary.BigEndian.AppendUint32(append(block, chunk...), crc32.ChecksumIEEE(chunk))
		p.Data = slices.Concat(p.Data[:33], block, p.Data[33:])
	}
	return p
}
