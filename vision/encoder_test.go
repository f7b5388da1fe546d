package vision

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// countingTower "encodes" a tile of one pixel x to the two values x, -x, and keeps the size of every run.
// hold, when not nil, is received from before each run.
type countingTower struct {
	in    []float32
	out   []float32
	runs  []int
	hold  chan struct{}
	fail  error
	wiped int
}

func (f *countingTower) MaxParts() int        { return 4 }
func (f *countingTower) Parts(img *Image) int { return img.Grid.Tiles() }

func (f *countingTower) Load(place int, img *Image, i int, normalize Normalizer) error {
	if i >= len(img.Pixels) {
		return errNotPrepared
	}
	normalize(f.in[place:place+1], img.Pixels[i:i+1])
	return nil
}

func (f *countingTower) Run(ctx context.Context, n int) error {
	if f.hold != nil {
		select {
		case <-f.hold:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	f.runs = append(f.runs, n)
	f.out = nil
	for _, x := range f.in[:n] {
		f.out = append(f.out, x, -x)
	}
	return f.fail
}

func (f *countingTower) Patches(place int) []float32              { return f.out[2*place:][:2] }
func (f *countingTower) Pack(_ Grid, patches []float32) []float32 { return patches }
func (f *countingTower) WarmUp() error                            { return nil }
func (f *countingTower) Wipe() error {
	f.wiped++
	clear(f.in)
	return nil
}
func (f *countingTower) Close() error { return nil }

var errNotPrepared = errors.New("not prepared for the tower")

func widen(dst []float32, src []uint8) {
	for i, x := range src {
		dst[i] = float32(x)
	}
}

// image has one tile for each pixel value.
func imageOf(pixels ...uint8) *Image {
	img := &Image{Pixels: pixels, Grid: Grid{Rows: len(pixels) - 1, Cols: 1}}
	copy(img.Digest[:], pixels)
	return img
}

func patchesOf(img *Image) (want []float32) {
	for _, x := range img.Pixels {
		want = append(want, float32(x), -float32(x))
	}
	return want
}

func TestTilesOfConcurrentImagesShareRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 1<<20)
		var wg sync.WaitGroup
		for _, img := range []*Image{imageOf(1), imageOf(2, 3, 4), imageOf(5, 6), imageOf(7)} {
			wg.Go(func() {
				got, cached, err := e.Encode(t.Context(), img)
				if err != nil || cached || !slices.Equal(got, patchesOf(img)) {
					t.Errorf("%v: %v %v %v", img.Pixels, got, cached, err)
				}
			})
			synctest.Wait() // the first image is in the tower when the others come
		}
		close(tower.hold)
		wg.Wait()
		e.Close()
		if want := []int{1, 4, 2}; !slices.Equal(tower.runs, want) {
			t.Errorf("tiles per run %v, want %v", tower.runs, want)
		}
		if s := e.Stats(); s.Runs != 3 || s.Tiles != 7 || s.Misses != 4 || s.Hits != 0 {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestCacheAndSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 16) // two tiles' worth of patches
		defer e.Close()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { e.Encode(t.Context(), imageOf(1)) })
		}
		synctest.Wait()
		close(tower.hold)
		wg.Wait()
		if len(tower.runs) != 1 {
			t.Errorf("ten equal images took %d runs", len(tower.runs))
		}
		encode := func(p uint8) bool { _, cached, _ := e.Encode(t.Context(), imageOf(p)); return cached }
		for i, step := range []struct {
			pixel uint8
			want  bool
		}{{1, true}, {2, false}, {1, true}, {3, false} /* 2 goes */, {1, true}, {2, false} /* 3 goes */, {1, true}} {
			if got := encode(step.pixel); got != step.want {
				t.Errorf("step %d: image %d cached: %t, want %t", i, step.pixel, got, step.want)
			}
		}
		theirs := imageOf(1)
		theirs.Tenant = "another"
		for _, want := range []bool{false, true} {
			if _, cached, _ := e.Encode(t.Context(), theirs); cached != want {
				t.Errorf("an image that another tenant sent is cached: %t, want %t", cached, want)
			}
		}
		if s := e.Stats(); s.CacheBytes != 16 {
			t.Errorf("cache holds %d bytes, want its 16", s.CacheBytes)
		}
		big := imageOf(1, 2, 3)
		e.Encode(t.Context(), big)
		if _, cached, _ := e.Encode(t.Context(), big); cached {
			t.Error("an image larger than the whole budget was kept")
		}
	})
}

func TestCallerGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 1<<20)
		go e.Encode(t.Context(), imageOf(1))
		synctest.Wait()
		gone, leave := context.WithCancelCause(t.Context())
		why := errors.New("client left")
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, err := e.Encode(gone, imageOf(2)); !errors.Is(err, why) {
				t.Errorf("the caller who left got %v", err)
			}
		})
		// Two want image 3; one leaves, so it must still be encoded.
		wg.Go(func() { e.Encode(gone, imageOf(3)) })
		synctest.Wait()
		wg.Go(func() {
			if got, _, err := e.Encode(t.Context(), imageOf(3)); err != nil || !slices.Equal(got, []float32{3, -3}) {
				t.Errorf("the caller who stayed got %v %v", got, err)
			}
		})
		synctest.Wait()
		leave(why)
		synctest.Wait()
		close(tower.hold)
		wg.Wait()
		if want := []int{1, 1}; !slices.Equal(tower.runs, want) {
			t.Errorf("tiles per run %v, want %v: image 2 had nobody waiting", tower.runs, want)
		}
		// An image that was dropped can be asked for again.
		if got, cached, err := e.Encode(t.Context(), imageOf(2)); err != nil || cached || got[0] != 2 {
			t.Errorf("asked again: %v %v %v", got, cached, err)
		}
		e.Close()
		if _, _, err := e.Encode(t.Context(), imageOf(9)); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	})
}

// A run ends when the last of those who wait for its images has gone, not before; whoever comes after starts afresh.
func TestRunNobodyWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 1<<20)
		defer e.Close()
		go e.Encode(t.Context(), imageOf(7)) // so that the others share the next run
		synctest.Wait()
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		go e.Encode(first, imageOf(1))
		go e.Encode(first, imageOf(2))
		go e.Encode(second, imageOf(2))
		synctest.Wait()
		tower.hold <- struct{}{}
		synctest.Wait()
		leaveFirst()
		synctest.Wait()
		if e.running == nil {
			t.Fatal("a run ended that somebody waits for")
		}
		leaveSecond()
		synctest.Wait()
		if e.running != nil || len(tower.runs) != 1 {
			t.Errorf("a run goes on that nobody waits for, or gave something: %v", tower.runs)
		}
		close(tower.hold)
		for _, x := range []uint8{1, 2} {
			if got, cached, err := e.Encode(t.Context(), imageOf(x)); err != nil || cached || got[0] != float32(x) {
				t.Errorf("image %d afterwards: %v %v %v", x, got, cached, err)
			}
		}
	})
}

// Callers who come and go while runs end under them get what they asked for.
func TestRunsEndUnderCallers(t *testing.T) {
	tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
	e := NewEncoder(tower, widen, 0)
	defer e.Close()
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case tower.hold <- struct{}{}:
			case <-stop:
				return
			}
		}
	}()
	defer close(stop)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			if i%2 == 0 {
				go leave()
			}
			x := uint8(i % 3)
			got, _, err := e.Encode(ctx, imageOf(x))
			if err != nil && ctx.Err() == nil || err == nil && got[0] != float32(x) {
				t.Errorf("image %d: %v %v", x, got, err)
			}
		})
	}
	wg.Wait()
}

// An image that is forgotten after its last caller left, and before a run that others wait for ends, is not kept: its
// patch embeddings are overwritten, and whoever asks again has it encoded anew.
func TestForgetUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 1<<20)
		defer e.Close()
		go e.Encode(t.Context(), imageOf(7)) // so that the others share the next run
		synctest.Wait()
		ctx, leave := context.WithCancel(t.Context())
		secret := imageOf(1)
		secret.File, secret.Tenant = [32]byte{1}, "a"
		go e.Encode(ctx, secret)
		go e.Encode(t.Context(), imageOf(2))
		synctest.Wait()
		tower.hold <- struct{}{}
		synctest.Wait()
		leave()
		synctest.Wait()
		under := e.cache.entries[key{secret.Digest, "a"}]
		if under == nil || e.running == nil {
			t.Fatal("the image is not under way")
		}
		if gone := e.Forget("a", secret.File); len(gone) != 0 || tower.wiped != 0 {
			t.Errorf("forgotten: %v, wiped %d times amid a run", gone, tower.wiped)
		}
		again := make(chan bool)
		go func() {
			got, cached, err := e.Encode(t.Context(), secret)
			again <- err == nil && !cached && got[0] == 1
		}()
		synctest.Wait()
		close(tower.hold)
		if !<-again {
			t.Error("asked again: it was not encoded anew")
		}
		if under.patches != nil || !under.over {
			t.Errorf("what was forgotten is kept: %v", under.patches)
		}
		if tower.wiped != 1 {
			t.Errorf("the tower was wiped %d times after the run, want once", tower.wiped)
		}
		if gone := e.Forget("a", secret.File); len(gone) != 1 || len(e.cache.entries) != 2 {
			t.Errorf("afterwards: %v of %d", gone, len(e.cache.entries))
		}
		if tower.wiped != 2 || slices.ContainsFunc(tower.in, func(x float32) bool { return x != 0 }) {
			t.Errorf("the idle tower was wiped %d times and has %v", tower.wiped, tower.in)
		}
		e.Close()
		if e.Forget("a", secret.File); tower.wiped != 2 {
			t.Error("a tower that is no longer the encoder's was wiped")
		}
	})
}

func TestTowerFailureIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), fail: errors.New("out of memory")}
		e := NewEncoder(tower, widen, 1<<20)
		defer e.Close()
		if _, _, err := e.Encode(t.Context(), imageOf(1, 2, 3, 4, 5)); !errors.Is(err, tower.fail) {
			t.Errorf("got %v", err)
		}
		tower.fail = nil
		if got, cached, err := e.Encode(t.Context(), imageOf(1, 2, 3, 4, 5)); err != nil || cached || len(got) != 10 {
			t.Errorf("after the failure: %v %v %v", got, cached, err)
		}
	})
}

// TestInteractiveImagesFirst: tiles of a higher priority go into the next run, before the rest of an image under way;
// equals keep their order, and an image that somebody asks for again has the higher priority of the two.
func TestInteractiveImagesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 1<<20)
		var done []uint8
		var mu sync.Mutex
		var wg sync.WaitGroup
		encode := func(priority int, img *Image) {
			wg.Go(func() {
				got, _, err := e.Encode(WithPriority(t.Context(), priority), img)
				if err != nil || !slices.Equal(got, patchesOf(img)) {
					t.Errorf("%v: %v %v", img.Pixels, got, err)
				}
				mu.Lock()
				defer mu.Unlock()
				done = append(done, img.Pixels[0])
			})
			synctest.Wait()
		}
		encode(-1, imageOf(1, 1, 1, 1, 1, 1, 1, 1, 1)) // three runs, the first of them under way
		encode(-1, imageOf(2, 2, 2, 2))
		encode(-1, imageOf(3, 3, 3, 3))
		encode(0, imageOf(4, 4, 4, 4))
		encode(1, imageOf(5, 5, 5, 5))
		encode(1, imageOf(6, 6, 6, 6))
		encode(1, imageOf(3, 3, 3, 3))
		for range 8 {
			tower.hold <- struct{}{}
			synctest.Wait()
		}
		wg.Wait()
		e.Close()
		if want := []uint8{3, 3, 5, 6, 4, 1, 2}; !slices.Equal(done, want) {
			t.Errorf("order %v, want %v", done, want)
		}
	})
}

// An image of which a part is refused fails alone; what is in the same run does not.
func TestRefusedImageFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tower := &countingTower{in: make([]float32, 4), hold: make(chan struct{})}
		e := NewEncoder(tower, widen, 0)
		defer e.Close()
		first, bad, good := imageOf(1), imageOf(2), imageOf(3, 4)
		bad.Grid.Rows = 1 // two tiles, of which only one has pixels
		var wg sync.WaitGroup
		for _, img := range []*Image{first, bad, good} {
			wg.Go(func() {
				patches, _, err := e.Encode(t.Context(), img)
				if img == bad {
					if !errors.Is(err, errNotPrepared) {
						t.Errorf("error %v", err)
					}
				} else if err != nil || !slices.Equal(patches, patchesOf(img)) {
					t.Errorf("%v gives %v %v", img.Pixels, patches, err)
				}
			})
			synctest.Wait() // first is in the tower, the others wait for one run
		}
		close(tower.hold)
		wg.Wait()
		if want := []int{1, 3}; !slices.Equal(tower.runs, want) {
			t.Errorf("runs %v, want %v: the part of the refused image keeps its place", tower.runs, want)
		}
	})
}
