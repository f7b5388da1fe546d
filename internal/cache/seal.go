package cache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"runtime"

	"golang.org/x/sync/errgroup"
)

// magic begins a seal, and its last byte is the version of the format.
const magic = "MMSEAL\x00\x01"

// SealSize is the length of a seal in bytes.
const SealSize = len(magic) + 2*sha256.Size + 8

// ErrSeal says that data is not what was sealed, or for another source.
var ErrSeal = errors.New("its content is damaged, or made for another model, precision or version")

// chunk is what one SHA-256 covers: pieces are hashed side by side.
const chunk = 1 << 20

// Seal binds content to what it was made of: the format's version, the source's SHA-256, the content's length, and the
// SHA-256 over the SHA-256 of its pieces of 1 MiB. It finds damage and mix-ups; against people the folder's owner and
// mode stand.
func Seal(content []byte, source [sha256.Size]byte) []byte {
	seal := append([]byte(magic), source[:]...)
	seal = binary.LittleEndian.AppendUint64(seal, uint64(len(content)))
	sum := sum(content)
	return append(seal, sum[:]...)
}

// Check tells whether a seal is that of content and source.
func Check(seal, content []byte, source [sha256.Size]byte) error {
	head := append([]byte(magic), source[:]...)
	head = binary.LittleEndian.AppendUint64(head, uint64(len(content)))
	if len(seal) != SealSize || !bytes.Equal(seal[:len(head)], head) {
		return ErrSeal
	}
	if sum := sum(content); !bytes.Equal(seal[len(head):], sum[:]) {
		return ErrSeal
	}
	return nil
}

func sum(content []byte) [sha256.Size]byte {
	sums := make([]byte, (len(content)+chunk-1)/chunk*sha256.Size)
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	const share = 16 // pieces that one goroutine hashes
	for from := 0; from*chunk < len(content); from += share {
		work.Go(func() error {
			for i := from; i < from+share && i*chunk < len(content); i++ {
				s := sha256.Sum256(content[i*chunk : min((i+1)*chunk, len(content))])
				copy(sums[i*sha256.Size:], s[:])
			}
			return nil
		})
	}
	_ = work.Wait()
	return sha256.Sum256(sums)
}
