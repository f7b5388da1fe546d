package graph

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/mmserve/mmserve/internal/cache"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// Quantized says where quantised weights came from.
type Quantized struct {
	// Fresh tells that they were made now.
	Fresh bool
	// Dir is the folder that they lie in.
	Dir string
	// Why says what was wrong with the cache folder or a file in it, "" where nothing was.
	Why string
}

// LoadQuantized makes the quantised weights that build asks for available: from dir when an earlier start left them
// there whole, or by quantising now and leaving them there. Where dir cannot keep them they lie in a folder of this
// process's own, which Close removes. build must not open a session.
func (w *Weights) LoadQuantized(dir string, build func(w *Weights) error) (Quantized, error) {
	needs, err := Needs(build)
	if err != nil {
		return Quantized{}, err
	}
	var names []string
	for _, n := range needs {
		if _, f := formOf(n.Name); f != nil {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return Quantized{}, nil
	}
	if !HasKernels && saturates() {
		return Quantized{}, ErrSaturates
	}
	if err := w.Close(); err != nil { // those of an earlier call
		return Quantized{}, err
	}
	from, source := Quantized{Dir: dir}, w.quantizedSource(names)
	kept, unkept := cache.Open(dir)
	if unkept == nil {
		defer kept.Close()
		if w.quantized, err = openSealed(kept, source); err == nil {
			return from, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			from.Why = err.Error() + ": made again"
		}
	}
	tensors, err := w.quantize(names, native())
	if err != nil {
		return from, fmt.Errorf("quantise: %w", err)
	}
	from.Fresh = true
	if unkept == nil {
		if unkept = writeSealed(kept, source, tensors); unkept == nil {
			w.quantized, err = openSealed(kept, source)
			return from, err
		}
	}
	from.Why = unkept.Error() + ": the quantised weights are not kept for the next start"
	from.Dir, err = w.keepPrivately(source, tensors)
	return from, err
}

// keepPrivately has the weights lie in a new folder that nobody else knows.
func (w *Weights) keepPrivately(source [sha256.Size]byte, tensors []safetensors.Tensor) (path string, err error) {
	if w.private, err = os.MkdirTemp("", "mmserve-quantised-"); err != nil {
		return "", err
	}
	dir, err := cache.Open(w.private)
	if err == nil {
		defer dir.Close()
		if err = writeSealed(dir, source, tensors); err == nil {
			w.quantized, err = openSealed(dir, source)
		}
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("quantised weights: %w", err), w.Close())
	}
	return w.private, nil
}

// Close lets go of quantised weights, and removes those that are not kept. The checkpoint stays open.
func (w *Weights) Close() (err error) {
	if w.quantized != nil {
		err = w.quantized.Close()
		w.quantized = nil
	}
	if w.private != "" {
		err = errors.Join(err, os.RemoveAll(w.private))
		w.private = ""
	}
	return err
}

// quantizedVersion changes when the layout or the arithmetic of a quantised file does.
const quantizedVersion = "4"

// quantizedSource stands for all that a quantised file depends on: the checkpoint's content, which weights are in it
// and how.
func (w *Weights) quantizedSource(names []string) [sha256.Size]byte {
	h := sha256.New()
	h.Write(w.ckpt.Digest())
	fmt.Fprintln(h, quantizedVersion, native())
	for _, n := range names {
		fmt.Fprintln(h, n)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func quantizedName(source [sha256.Size]byte) string {
	return "quantised-v" + quantizedVersion + "-" + native().String() + "-" + hex.EncodeToString(source[:16]) +
		".safetensors"
}

// sealName is the last tensor of a quantised file: a seal over all before it.
const sealName = "mmserve.seal"

func openSealed(dir *cache.Dir, source [sha256.Size]byte) (*safetensors.Checkpoint, error) {
	f, err := dir.File(quantizedName(source))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := safetensors.OpenHandle(f)
	if err != nil {
		return nil, err
	}
	seal, ok := c.Tensor(sealName)
	content, last := c.Before(seal)
	if err = cache.ErrSeal; ok && last {
		err = cache.Check(seal.Data, content, source)
	}
	for _, name := range c.Names() {
		t, _ := c.Tensor(name)
		t.Forget()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), c.Close())
	}
	return c, nil
}

func writeSealed(dir *cache.Dir, source [sha256.Size]byte, tensors []safetensors.Tensor) error {
	room := safetensors.Tensor{Name: sealName, DType: safetensors.U8, Shape: []int{cache.SealSize},
		Data: make([]byte, cache.SealSize)}
	return dir.Write(quantizedName(source), func(f *os.File) error {
		if err := safetensors.Write(f, append(tensors[:len(tensors):len(tensors)], room)); err != nil {
			return err
		}
		c, err := safetensors.OpenHandle(f)
		if err != nil {
			return err
		}
		defer c.Close()
		seal, _ := c.Tensor(sealName)
		content, _ := c.Before(seal)
		_, err = f.WriteAt(cache.Seal(content, source), seal.Offset)
		return err
	})
}
