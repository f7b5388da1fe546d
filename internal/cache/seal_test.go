package cache

import (
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"
)

func TestSeal(t *testing.T) {
	source, other := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	for _, n := range []int{0, 1, chunk, chunk + 1, 17*chunk + 3} {
		content := make([]byte, n)
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		for i := range content {
			content[i] = byte(rng.Uint32())
		}
		seal := Seal(content, source)
		if err := Check(seal, content, source); len(seal) != SealSize || err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if err := Check(seal, content, other); !errors.Is(err, ErrSeal) {
			t.Errorf("%d bytes of another source: %v", n, err)
		}
		for i := 0; i < len(seal) && n <= chunk+1; i++ {
			seal[i] ^= 1
			if Check(seal, content, source) == nil {
				t.Errorf("%d bytes: byte %d of the seal does not count", n, i)
			}
			seal[i] ^= 1
		}
		for range min(n, 8) {
			i := rng.IntN(n)
			content[i] ^= 0x80
			if Check(seal, content, source) == nil || Check(seal, content[:i], source) == nil {
				t.Errorf("%d bytes: byte %d does not count", n, i)
			}
			content[i] ^= 0x80
		}
	}
}

// BenchmarkCheck is what a start pays for its cached weights.
func BenchmarkCheck(b *testing.B) {
	content := make([]byte, 256<<20)
	seal := Seal(content, [sha256.Size]byte{})
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if err := Check(seal, content, [sha256.Size]byte{}); err != nil {
			b.Fatal(err)
		}
	}
}
