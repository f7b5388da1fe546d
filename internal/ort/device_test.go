package ort

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/onnx"
)

// values are float32 values in the process's memory, and a view of them.
func values(t *testing.T, v ...float32) ([]float32, Tensor) {
	t.Helper()
	mem, err := Alloc[float32](len(v))
	if err != nil {
		t.Fatal(err)
	}
	copy(mem.Slice(), v)
	x, err := View(mem.Slice(), len(v))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		x.Destroy()
		mem.Free()
	})
	return mem.Slice(), x
}

// addOne opens a session that gives x + 1.
func addOne(t *testing.T, p Provider, dt onnx.DType) *Session {
	t.Helper()
	g := onnx.New("g")
	x := g.Input("x", dt, "n")
	one := g.F32(1)
	if dt == onnx.F16 {
		one = g.Op("Cast", onnx.Attrs{"to": int(onnx.F16)}, one)
	}
	g.Node("", "Add", nil, []string{x, one}, []string{"y"})
	g.Output("y", dt, "n")
	s, err := NewSession(g, Options{Provider: p, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func deviceTensor(t *testing.T, s *Session, dims ...int) Tensor {
	t.Helper()
	x, err := s.Tensor(onnx.F32, dims...)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// A tensor goes to the device, through two sessions there in place, within it, and back; only the ends are counted.
func TestDeviceTensor(t *testing.T) {
	p := requireWebGPU(t)
	a, b := addOne(t, p, onnx.F32), addOne(t, p, onnx.F32)
	if a.Device() == nil || a.Device() != b.Device() {
		t.Fatalf("devices %v and %v, want one", a.Device(), b.Device())
	}
	host, h := values(t, 1, 2, 3, 4, 5)
	x, y := deviceTensor(t, a, 5), deviceTensor(t, b, 5)
	before := a.Device().Stats()
	if before.Held != 40 {
		t.Errorf("%d bytes held, want 40", before.Held)
	}
	part, err := y.Start(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		Copy(x, h), a.Run([]Tensor{x}, []Tensor{x}), b.Run([]Tensor{x}, []Tensor{y}),
		a.Run([]Tensor{part}, []Tensor{part}), Copy(x, y), Copy(h, x),
	); err != nil {
		t.Fatal(err)
	}
	if want := []float32{4, 5, 6, 7, 7}; !slices.Equal(host, want) {
		t.Errorf("got %v, want %v", host, want)
	}
	after := a.Device().Stats()
	if in, out := after.ToDevice-before.ToDevice, after.ToHost-before.ToHost; in != 20 || out != 20 {
		t.Errorf("%d bytes to the device and %d back, want 20 each", in, out)
	}
	if err := a.Run([]Tensor{h}, []Tensor{h}); err != nil {
		t.Fatal(err)
	}
	if now := a.Device().Stats(); now.ToDevice-after.ToDevice != 20 || now.ToHost-after.ToHost != 20 {
		t.Errorf("a run over the process's memory: %+v after %+v, want 20 bytes more each way", now, after)
	}
}

// To a session elsewhere, the device's memory would be an address of its own: it would read and write there without a
// word.
func TestDeviceTensorElsewhere(t *testing.T) {
	p := requireWebGPU(t)
	device, cpu := addOne(t, p, onnx.F32), addOne(t, Provider{}, onnx.F32)
	x := deviceTensor(t, device, 1)
	_, h := values(t, 1)
	for what, err := range map[string]error{
		"input": cpu.Run([]Tensor{x}, []Tensor{h}), "output": cpu.Run([]Tensor{h}, []Tensor{x}),
	} {
		if err == nil || !strings.Contains(err.Error(), "a tensor on webgpu:0 was given to a session on the processor") {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
	other := &Session{device: &Device{name: "abacus"}}
	if err := other.admit([]Tensor{x}, nil); err == nil || !strings.Contains(err.Error(), "session on abacus:0") {
		t.Errorf("another device: %v, want a refusal", err)
	}
	if _, err := cpu.Tensor(onnx.F32, 1); err == nil {
		t.Error("a session without a device reserved memory there")
	}
	_, two := values(t, 1, 2)
	for what, err := range map[string]error{"neither tensor is on a device": Copy(h, h), "4 bytes over 8": Copy(two, x)} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v, want %q", err, what)
		}
	}
}

// Tensors, then the allocator, then the session: in any other order the process aborts. Who closes a session need not
// know, and a tensor that has gone with it is refused.
func TestDeviceOrder(t *testing.T) {
	p := requireWebGPU(t)
	a, b := addOne(t, p, onnx.F32), addOne(t, p, onnx.F32)
	held := b.Device().Stats().Held
	x := deviceTensor(t, a, 4)
	part, err := x.Start(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, dims := range [][]int{{5}, {0}, {-1}} {
		if _, err := x.Start(dims...); err == nil {
			t.Errorf("the start of 4 values was taken as %v", dims)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	_, h := values(t, 1, 2, 3, 4)
	for what, err := range map[string]error{
		"run": b.Run([]Tensor{x}, []Tensor{h}), "run of a part": b.Run([]Tensor{part}, []Tensor{h}), "copy": Copy(h, x),
	} {
		if err == nil || !strings.Contains(err.Error(), "after it was freed") {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
	x.Destroy() // again
	part.Destroy()
	if got := b.Device().Stats().Held; got != held {
		t.Errorf("%d bytes held, want %d", got, held)
	}
	if _, err := a.Tensor(onnx.F32, 1); err == nil {
		t.Error("a closed session reserved memory")
	}
}

// Runs, copies, and sessions that come and go overlap nowhere: none goes on while somebody else has the turn.
func TestDeviceWaitsForItsTurn(t *testing.T) {
	p := requireWebGPU(t)
	s, closing := addOne(t, p, onnx.F32), addOne(t, p, onnx.F32)
	_, h := values(t, 1, 2)
	x, gone := deviceTensor(t, s, 2), deviceTensor(t, s, 2)
	for what, do := range map[string]func() error{
		"run":    func() error { return s.Run([]Tensor{h}, []Tensor{x}) },
		"copy":   func() error { return Copy(x, h) },
		"tensor": func() error { _, err := s.Tensor(onnx.F32, 2); return err },
		"free":   gone.v.Destroy,
		"close":  closing.Close,
		"open":   p.Probe,
	} {
		end := s.Device().take()
		done := make(chan error, 1)
		go func() { done <- do() }()
		select {
		case err := <-done:
			t.Errorf("%s went on beside another", what)
			done <- err
		case <-time.After(20 * time.Millisecond): // too short would only miss an error
		}
		end()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Runs of several sessions, copies, and sessions that come and go, all at once, are each right.
func TestDeviceTakesTurns(t *testing.T) {
	p := requireWebGPU(t)
	if !p.Can().OneRunAtATime {
		t.Fatal("webgpu has one queue")
	}
	var work sync.WaitGroup
	for range 4 {
		s := addOne(t, p, onnx.F32)
		x := deviceTensor(t, s, 4096)
		host, h := values(t, make([]float32, 4096)...)
		work.Go(func() {
			for range 50 {
				clear(host)
				in := []Tensor{x}
				if err := errors.Join(Copy(x, h), s.Run(in, in), s.Run(in, in), Copy(h, x)); err != nil {
					t.Error(err)
					return
				}
				if slices.Min(host) != 2 || slices.Max(host) != 2 {
					t.Errorf("values %g to %g, want 2", slices.Min(host), slices.Max(host))
					return
				}
			}
		})
	}
	work.Go(func() {
		for range 10 {
			if err := p.Probe(); err != nil {
				t.Error(err)
			}
		}
	})
	work.Wait()
}

// Values in 16 bits come where room was made for them, in the process's memory or the device's.
func TestDeviceHalf(t *testing.T) {
	p := requireWebGPU(t)
	s := addOne(t, p, onnx.F16)
	f, err := AllocFloats(onnx.F16, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Free()
	copy(f.Slice(), []float32{0.5, -3})
	f.Store(2)
	h, err := f.View(2)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Destroy()
	x, err := s.Tensor(onnx.F16, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Run([]Tensor{h}, []Tensor{x}), s.Run([]Tensor{x}, []Tensor{x}), Copy(h, x)); err != nil {
		t.Fatal(err)
	}
	if got := f.Load(0, 2); !slices.Equal(got, []float32{2.5, -1}) {
		t.Errorf("got %v, want [2.5 -1]", got)
	}
	if err := s.Run([]Tensor{h}, []Tensor{{}}); err == nil {
		t.Error("without room for them they came all the same")
	}
	if got := f.Load(0, 2); !slices.Equal(got, []float32{2.5, -1}) {
		t.Errorf("a run that failed left %v of its input", got)
	}
}

// A session that records its runs plays them over the tensors of the first, in silence, whatever it is given. That is
// why no provider may be told to.
func TestDeviceRecordedRuns(t *testing.T) {
	p := requireWebGPU(t)
	p.options = map[string]string{"enableGraphCapture": "1"} // as ParseProvider would not
	s := addOne(t, p, onnx.F32)
	x, y := deviceTensor(t, s, 4), deviceTensor(t, s, 4)
	_, h := values(t, 1, 2, 3, 4)
	inX, hx := values(t, 0, 0, 0, 0)
	inY, hy := values(t, 0, 0, 0, 0)
	if err := errors.Join(
		Copy(x, h), Copy(y, h), s.Run([]Tensor{x}, []Tensor{x}), s.Run([]Tensor{y}, []Tensor{y}), Copy(hx, x), Copy(hy, y),
	); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(inX, []float32{2, 3, 4, 5}) && slices.Equal(inY, inX) {
		t.Error("recorded runs take the tensors that they are given: they could be allowed")
	}
}

// The fused attention of a driver with subgroups of 8 is wrong from 32 positions on, without an error. Whether it is
// must be found out, and is the same each time it is asked.
func TestFusedAttention(t *testing.T) {
	if os.Getenv("MMSERVE_TEST_WEBGPU") == "" {
		t.Skip("`make test-webgpu` runs it: its shaders take seconds to compile")
	}
	p := requireWebGPU(t)
	right, err := FusedAttention(Options{Provider: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("fused attention is right: %v", right)
	if again, err := FusedAttention(Options{Provider: p}); err != nil || again != right {
		t.Errorf("now %v, %v", again, err)
	}
	if right, err := FusedAttention(Options{}); err != nil || !right {
		t.Errorf("cpu: %v, %v", right, err)
	}
}
