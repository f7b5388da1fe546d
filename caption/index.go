package caption

import (
	"encoding/binary"
	"fmt"
	"os"
)

// index maps 16-byte hashes to positions in the journal. It lies in a file of its own that has no name and is read and
// written page by page, so that memory does not grow with it; libraries of this kind map their files, which counts as
// memory of the process. It is made anew from the journal at every start and holds nothing that could be lost.
//
// The file is a table of slots, a power of two of them, at most 60 % full, searched from the hash onwards.
type index struct {
	dir   string
	f     *os.File
	slots uint64
	used  uint64
}

// hash16 is the first half of a SHA-256.
type hash16 [16]byte

const (
	slotBytes  = 24 // hash, value + 1; a value of 0 is an empty slot
	firstSlots = 1 << 12
)

// newIndex makes an empty index whose file lies in dir.
func newIndex(dir string) (*index, error) {
	x := &index{dir: dir}
	var err error
	x.f, err = x.table(firstSlots)
	x.slots = firstSlots
	return x, err
}

func (x *index) table(slots uint64) (*os.File, error) {
	f, err := os.CreateTemp(x.dir, ".mmserve-index-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name()) // the open file stays, and goes with the process
	if err := f.Truncate(int64(slots) * slotBytes); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (x *index) close() error { return x.f.Close() }

// find looks for h: the slot where it is or would be, and its value.
func (x *index) find(f *os.File, slots uint64, h hash16) (slot uint64, value int64, ok bool, err error) {
	var b [slotBytes]byte
	slot = binary.LittleEndian.Uint64(h[:]) & (slots - 1)
	for range slots {
		if _, err := f.ReadAt(b[:], int64(slot)*slotBytes); err != nil {
			return 0, 0, false, fmt.Errorf("index: %w", err)
		}
		v := binary.LittleEndian.Uint64(b[16:])
		if v == 0 {
			return slot, 0, false, nil
		}
		if hash16(b[:16]) == h {
			return slot, int64(v - 1), true, nil
		}
		slot = (slot + 1) & (slots - 1)
	}
	return 0, 0, false, fmt.Errorf("index: all %d slots are taken", slots)
}

// get gives the value of h.
func (x *index) get(h hash16) (value int64, ok bool, err error) {
	_, value, ok, err = x.find(x.f, x.slots, h)
	return value, ok, err
}

// put sets the value of h, 0 or more.
func (x *index) put(h hash16, value int64) error {
	slot, _, had, err := x.find(x.f, x.slots, h)
	if err != nil {
		return err
	}
	if err := writeSlot(x.f, slot, h, value); err != nil || had {
		return err
	}
	x.used++
	if x.used*5 > x.slots*3 {
		return x.grow()
	}
	return nil
}

func writeSlot(f *os.File, slot uint64, h hash16, value int64) error {
	var b [slotBytes]byte
	copy(b[:], h[:])
	binary.LittleEndian.PutUint64(b[16:], uint64(value)+1)
	_, err := f.WriteAt(b[:], int64(slot)*slotBytes)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	return nil
}

// grow moves everything to a table of four times the size.
func (x *index) grow() error {
	slots := x.slots * 4
	f, err := x.table(slots)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	var page [slotBytes * 1024]byte
	for at := uint64(0); at < x.slots; at += 1024 {
		if _, err := x.f.ReadAt(page[:], int64(at)*slotBytes); err != nil {
			f.Close()
			return fmt.Errorf("index: %w", err)
		}
		for b := page[:]; len(b) > 0; b = b[slotBytes:] {
			v := binary.LittleEndian.Uint64(b[16:slotBytes])
			if v == 0 {
				continue
			}
			h := hash16(b[:16])
			slot, _, _, err := x.find(f, slots, h)
			if err == nil {
				err = writeSlot(f, slot, h, int64(v-1))
			}
			if err != nil {
				f.Close()
				return err
			}
		}
	}
	x.f.Close()
	x.f, x.slots = f, slots
	return nil
}
