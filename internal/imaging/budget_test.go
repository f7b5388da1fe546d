package imaging

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
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
	photo := readFile(t, "photos/chelsea.png")
	bomb := deflated(t, make([]byte, 8<<20))
	for name, chunk := range map[string][]byte{
		"zTXt":         pngBytes("zTXt", append([]byte("Comment\x00\x00"), bomb...)),
		"zTXt profile": pngBytes("zTXt", append([]byte(keyRawProfile+"\x00\x00"), bomb...)),
		"iTXt":         pngBytes("iTXt", append([]byte(keyXMP+"\x00\x01\x00\x00\x00"), bomb...)),
		"iCCP":         pngBytes("iCCP", append([]byte("profile\x00\x00"), bomb...)),
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
		if n > 32<<20 {
			t.Errorf("%s: %d bytes were allocated", name, n)
		}
	}
}

// TestLeavingEndsTheWork: a decode whose context is done gives its cause.
func TestLeavingEndsTheWork(t *testing.T) {
	gone := errors.New("gone")
	ctx, leave := context.WithCancelCause(t.Context())
	leave(gone)
	for _, name := range []string{"photos/chelsea.png", "photos/rocket.jpg", "decode/pillow/hopper.gif", "made/lzw.tif", "made/rgb.bmp", "decode/pillow/hopper.webp"} {
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
