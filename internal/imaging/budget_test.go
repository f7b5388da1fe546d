package imaging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mmserve/mmserve/internal/racetest"
)

// TestBudget holds that bytes in use stay within the budget, that small images pass large ones, and that a caller who
// leaves stops waiting.
func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(800)
		if _, err := b.Acquire(t.Context(), 701); !errors.Is(err, ErrImage) {
			t.Errorf("more than 7/8: %v", err)
		}
		first, err := b.Acquire(t.Context(), 700)
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancelCause(t.Context())
		waited := make(chan error)
		go func() {
			_, err := b.Acquire(ctx, 600)
			waited <- err
		}()
		synctest.Wait()
		small, err := b.Acquire(t.Context(), 50)
		if err != nil {
			t.Fatal(err)
		}
		small()
		gone := errors.New("gone")
		leave(gone)
		if err := <-waited; !errors.Is(err, gone) {
			t.Errorf("the one who left: %v", err)
		}
		first()
		again, err := b.Acquire(t.Context(), 700)
		if err != nil {
			t.Fatal(err)
		}
		again()
	})
}

// TestMetadataIsCheap: texts that would inflate to gigabytes, and a huge EXIF block, cost next to nothing.
func TestMetadataIsCheap(t *testing.T) {
	if racetest.Enabled {
		t.Skip("bounds of memory are tested without the race detector")
	}
	photo := readFile(t, "photos/chelsea.png")
	bomb := deflated(t, make([]byte, 8<<20))
	zeros, orientations := bytes.Repeat([]byte("0 "), 10<<20), bytes.Repeat([]byte("tiff:Orientatio"), 1<<20)
	for name, chunk := range map[string][]byte{
		"zTXt":         pngBytes("zTXt", append([]byte("Comment\x00\x00"), bomb...)),
		"zTXt profile": pngBytes("zTXt", append([]byte(keyRawProfile+"\x00\x00"), bomb...)),
		"iTXt":         pngBytes("iTXt", append([]byte(keyXMP+"\x00\x01\x00\x00\x00"), bomb...)),
		"iCCP":         pngBytes("iCCP", append([]byte("profile\x00\x00"), bomb...)),
		"tEXt profile": pngBytes("tEXt", append([]byte(keyRawProfile+"\x00\nexif\n1\n"), zeros...)),
		"iTXt, plain":  pngBytes("iTXt", append([]byte(keyXMP+"\x00\x00\x00\x00\x00"), orientations...)),
		"eXIf":         pngBytes("eXIf", append([]byte("II*\x00\x08\x00\x00\x00\xff\xff"), make([]byte, 20<<20)...)),
	} {
		var data []byte
		data = append(data, photo[:33]...)
		for range max(1, min(300, 6<<20/len(chunk))) {
			data = append(data, chunk...)
		}
		data = append(data, photo[33:]...)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		ReadHeader(context.Background(), data, Limits{})
		runtime.ReadMemStats(&after)
		n := after.TotalAlloc - before.TotalAlloc
		if n > 12<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

// TestLeavingEndsTheWork: a decode whose context is done gives its cause.
func TestLeavingEndsTheWork(t *testing.T) {
	gone := errors.New("gone")
	ctx, leave := context.WithCancelCause(t.Context())
	leave(gone)
	for _, name := range []string{
		"photos/chelsea.png", "photos/rocket.jpg", "decode/pillow/hopper.gif", "made/lzw.tif", "made/rgb.bmp",
		"decode/pillow/hopper.webp",
	} {
		h, err := ReadHeader(t.Context(), readFile(t, name), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Decode(ctx); !errors.Is(err, gone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBudgetByPriority: of those who wait the higher priority goes first, and equals in the order in which they came.
func TestBudgetByPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(800)
		held, err := b.Acquire(t.Context(), 700)
		if err != nil {
			t.Fatal(err)
		}
		order := make(chan int, 10)
		gone, leave := context.WithCancel(WithPriority(t.Context(), 2))
		for i, priority := range []int{-1, 0, -1, 1, 0, 2, 1} {
			ctx := WithPriority(t.Context(), priority)
			if priority == 2 {
				ctx = gone
			}
			go func() {
				release, err := b.Acquire(ctx, 700)
				if err != nil {
					return
				}
				order <- i
				release()
			}()
			synctest.Wait()
		}
		leave()
		synctest.Wait()
		held()
		synctest.Wait()
		close(order)
		var got []int
		for i := range order {
			got = append(got, i)
		}
		if want := []int{3, 6, 1, 4, 0, 2}; !slices.Equal(got, want) {
			t.Errorf("order %v, want %v", got, want)
		}
		if b.bytes != 0 || b.running != 0 || b.runningBig != 0 || b.largeBytes != 0 || len(b.waiting) != 0 {
			t.Errorf("left over: %d bytes, %d waiting", b.bytes, len(b.waiting))
		}
	})
}

// cpuTime is what the process has used.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestMetadataOfEveryFormatIsCheap: megabytes of what stands beside the pixels cost little time, and no more memory
// than a few times what is read of a block at most.
func TestMetadataOfEveryFormatIsCheap(t *testing.T) {
	if racetest.Enabled {
		t.Skip("bounds of memory and time are tested without the race detector")
	}
	const size = 16 << 20
	segment := func(payload string) []byte {
		b := binary.BigEndian.AppendUint16([]byte{0xff, markerAPP1}, uint16(2+len(payload)))
		return append(b, payload...)
	}
	riff := func(id string, payload []byte) []byte {
		return append(binary.LittleEndian.AppendUint32([]byte(id), uint32(len(payload))), payload...)
	}
	jpegWith := func(b []byte) []byte {
		photo := readFile(t, "exif/orientation_6.jpg")
		return slices.Concat(photo[:2], bytes.Repeat(b, size/len(b)), photo[2:])
	}
	webpWith := func(b []byte) []byte {
		data := slices.Concat(readFile(t, "decode/gopher-doc.with-alpha.lossless.webp"), bytes.Repeat(b, size/len(b)))
		binary.LittleEndian.PutUint32(data[4:], uint32(len(data)-8))
		return data
	}
	gif := readFile(t, "decode/pillow/hopper.gif")
	table := 13 + 3<<(gif[10]&7+1)
	comment := append([]byte{0x21, 0xfe}, append(bytes.Repeat(append([]byte{255}, make([]byte, 255)...), 100), 0)...)
	short := []byte{0x21, 0xfe, 1, 'x', 0}
	exif := string(exifMark) + "II*\x00\x08\x00\x00\x00\xff\xff"
	almost := strings.Repeat("tiff:Orientatio", 4000)
	directory := append([]byte("II*\x00\x08\x00\x00\x00\xff\xff"), bytes.Repeat([]byte("\x00\x01\x04\x00\xff\xff\xff\x00\x08\x00\x00\x00"), size/12)...)
	for name, data := range map[string][]byte{
		"jpeg, EXIF":          jpegWith(segment(exif + strings.Repeat("\x12\x01\x03\x00", 16_000))),
		"jpeg, short EXIF":    jpegWith(segment(exif)),
		"jpeg, XMP":           jpegWith(segment("http://ns.adobe.com/xap/1.0/\x00" + almost)),
		"webp, EXIF":          webpWith(riff("EXIF", append([]byte(exif), make([]byte, size-64)...))),
		"webp, XMP":           webpWith(riff("XMP ", []byte(strings.Repeat(almost, size/len(almost))))),
		"webp, short chunks":  webpWith(riff("EXIF", nil)),
		"gif, comments":       slices.Concat(gif[:table], bytes.Repeat(comment, size/len(comment)), gif[table:]),
		"gif, short comments": slices.Concat(gif[:table], bytes.Repeat(short, size/len(short)), gif[table:]),
		"tiff, directory":     directory,
	} {
		if _, ok := Sniff(data); !ok {
			t.Fatalf("%s: of no format", name)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := cpuTime(t)
		ReadHeader(context.Background(), data, Limits{})
		took := cpuTime(t) - began
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 6*maxMetadata {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
		if took > 2*time.Second {
			t.Errorf("%s: %v of processor time", name, took)
		}
	}
}
