package kernels_test

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// segmentCase is a layer of SegmentAttention over segments of the given lengths.
type segmentCase struct {
	heads, dim int
	segments   []int32
	packed     bool
	plain      bool // without position embeddings
	small      bool // in small integers
	threads    int
}

func (c segmentCase) n() (n int) {
	for _, l := range c.segments {
		n += int(l)
	}
	return n
}

func (c segmentCase) op() string {
	if c.small {
		return "SegmentAttention8"
	}
	return "SegmentAttention"
}

// run gives [n, heads·dim] of q, k and v, each of that shape.
func (c segmentCase) run(t *testing.T, qkv [3][]float32, cos, sin []float32) []float32 {
	t.Helper()
	g, width, n := onnx.New("segments"), c.heads*c.dim, c.n()
	names := []string{"q", "k", "v", "segments"}
	var in []ort.Tensor
	if c.packed {
		g.Input("q", onnx.F32, "N", 3*width)
		names[1], names[2] = "", ""
		var rows []float32
		for i := range n {
			for _, x := range qkv {
				rows = append(rows, x[i*width:(i+1)*width]...)
			}
		}
		in = append(in, view(t, rows, n, 3*width))
	} else {
		for i, x := range qkv {
			g.Input(names[i], onnx.F32, "N", width)
			in = append(in, view(t, x, n, width))
		}
	}
	g.Input("segments", onnx.I32, "S")
	in = append(in, view(t, c.segments, len(c.segments)))
	if !c.plain {
		for i, name := range []string{"cos", "sin"} {
			names = append(names, g.Input(name, onnx.F32, "N", c.dim/2))
			in = append(in, view(t, [][]float32{cos, sin}[i], n, c.dim/2))
		}
	}
	attrs := onnx.Attrs{"heads": c.heads, "scale": float32(1 / math.Sqrt(float64(c.dim)))}
	g.Node(onnx.Own, c.op(), attrs, names, []string{"y"})
	g.Output("y", onnx.F32, "N", width)
	session, err := ort.NewSession(g, ort.Options{Threads: max(c.threads, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	y := alloc(t, n*width)
	out, _ := ort.View(y.Slice(), n, width)
	defer out.Destroy()
	if err := session.Run(in, []ort.Tensor{out}); err != nil {
		t.Fatal(err)
	}
	return y.Slice()
}

// want is attention by the textbook.
func (c segmentCase) want(qkv [3][]float32, cos, sin []float32) []float64 {
	width, half := c.heads*c.dim, c.dim/2
	vector := func(part, pos, head int) []float64 {
		x := make([]float64, c.dim)
		for i := range x {
			x[i] = float64(qkv[part][pos*width+head*c.dim+i])
		}
		if part == 2 || c.plain {
			return x
		}
		y := make([]float64, c.dim)
		for i := range half {
			co, s := float64(cos[pos*half+i]), float64(sin[pos*half+i])
			y[i], y[i+half] = x[i]*co-x[i+half]*s, x[i+half]*co+x[i]*s
		}
		return y
	}
	out := make([]float64, c.n()*width)
	start := 0
	for _, length := range c.segments {
		end := start + int(length)
		for head := range c.heads {
			for pos := start; pos < end; pos++ {
				q, p, most, sum := vector(0, pos, head), make([]float64, length), math.Inf(-1), 0.0
				for t := range p {
					for i, k := range vector(1, start+t, head) {
						p[t] += q[i] * k / math.Sqrt(float64(c.dim))
					}
					most = max(most, p[t])
				}
				for t := range p {
					p[t] = math.Exp(p[t] - most)
					sum += p[t]
				}
				for t := range p {
					for i, v := range vector(2, start+t, head) {
						out[pos*width+head*c.dim+i] += p[t] / sum * v
					}
				}
			}
		}
		start = end
	}
	return out
}

// layer draws q, k and v of a case, whose scores spread as far as given, and angles.
func (c segmentCase) layer(spread float32) (qkv [3][]float32, cos, sin []float32) {
	n := c.n()
	for i := range qkv {
		qkv[i] = randoms(uint64(10*c.dim+i), n*c.heads*c.dim)
	}
	for i := range qkv[0] {
		qkv[0][i] *= spread
	}
	for _, a := range randoms(uint64(n), n*c.dim/2) {
		s, co := math.Sincos(float64(a) * 4)
		cos, sin = append(cos, float32(co)), append(sin, float32(s))
	}
	return qkv, cos, sin
}

// TestSegmentAttention compares with the textbook, segments together with each alone, and every form of the inputs.
func TestSegmentAttention(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	for _, c := range []segmentCase{
		{heads: 2, dim: 80, segments: []int32{200, 1, 64, 65}, threads: 2},
		{heads: 3, dim: 72, segments: []int32{193, 63}, packed: true, threads: 2},
		{heads: 1, dim: 8, segments: []int32{5, 7, 1}},
		{heads: 2, dim: 64, segments: []int32{130}, plain: true, packed: true},
		{heads: 1, dim: 256, segments: []int32{70, 70}},
		{heads: 4, dim: 16, segments: []int32{64, 64, 64, 64, 16, 16, 3}, packed: true, threads: 2},
		{heads: 1, dim: 120, segments: []int32{385}},
	} {
		for _, spread := range []float32{0.3, 5} {
			t.Run(fmt.Sprintf("%d heads of %d, spread %g", c.heads, c.dim, spread), func(t *testing.T) {
				qkv, cos, sin := c.layer(spread)
				got := c.run(t, qkv, cos, sin)
				for i, w := range c.want(qkv, cos, sin) {
					if d := math.Abs(float64(got[i]) - w); !(d < 2e-5) {
						t.Fatalf("value %d: %g, want %g", i, got[i], w)
					}
				}
				c.sameOtherwise(t, qkv, cos, sin, got)
			})
		}
	}
	segmentCase{heads: 2, dim: 16, segments: []int32{70, 30}}.keepsNaN(t)
}

// sameOtherwise holds that the bits are the same packed otherwise, on another number of threads, and for each segment
// alone.
func (c segmentCase) sameOtherwise(t *testing.T, qkv [3][]float32, cos, sin, got []float32) {
	t.Helper()
	other := c
	other.packed, other.threads = !c.packed, 3-max(c.threads, 1)
	if !slices.Equal(other.run(t, qkv, cos, sin), got) {
		t.Error("packed otherwise and with another number of threads the result is another")
	}
	start, width, half := 0, c.heads*c.dim, c.dim/2
	for _, length := range c.segments {
		end := start + int(length)
		one := c
		one.segments = []int32{length}
		var part [3][]float32
		for i := range part {
			part[i] = qkv[i][start*width : end*width]
		}
		alone := one.run(t, part, cos[start*half:end*half], sin[start*half:end*half])
		if !slices.Equal(alone, got[start*width:end*width]) {
			t.Errorf("the segment at %d alone differs from it beside others", start)
		}
		start = end
	}
}

// keepsNaN holds that NaN at the end of the first segment is not lost, and stays there.
func (c segmentCase) keepsNaN(t *testing.T) {
	t.Helper()
	width, first := c.heads*c.dim, int(c.segments[0])
	for i, name := range []string{"q", "k", "v"} {
		qkv, cos, sin := c.layer(1)
		qkv[i][(first-1)*width] = float32(math.NaN())
		y := c.run(t, qkv, cos, sin)
		if !math.IsNaN(float64(y[(first-1)*width])) {
			t.Errorf("NaN in %s is lost: %g", name, y[(first-1)*width])
		}
		if slices.ContainsFunc(y[first*width:], func(v float32) bool { return v != v }) {
			t.Errorf("NaN in %s came into the next segment", name)
		}
	}
}

// TestSegmentAttention8 compares with float32: heads of sizes that are padded and not, segments of one length
// beside others.
func TestSegmentAttention8(t *testing.T) {
	startLibrary(t)
	if !kernels.HasSelfAttention8() {
		t.Skip("this processor has neither AVX-512 VNNI nor dotprod")
	}
	for _, c := range []segmentCase{
		{heads: 2, dim: 80, segments: []int32{512, 1, 64, 513}, threads: 2},
		{heads: 1, dim: 72, segments: []int32{520, 520, 63}, packed: true, threads: 2},
		{heads: 2, dim: 64, segments: []int32{530}, plain: true, packed: true},
		{heads: 4, dim: 16, segments: []int32{64, 64, 512, 512, 512, 16, 3}, packed: true, threads: 2},
		{heads: 1, dim: 120, segments: []int32{585}},
	} {
		c.small = true
		spread := []float32{0.3, 3}[c.dim/16%2]
		t.Run(fmt.Sprintf("%d heads of %d, spread %g", c.heads, c.dim, spread), func(t *testing.T) {
			qkv, cos, sin := c.layer(spread)
			got := c.run(t, qkv, cos, sin)
			large := c
			large.small = false
			if share := distance(got, large.run(t, qkv, cos, sin)); !(share < 0.02) {
				t.Errorf("the error is %.4f of the result", share)
			}
			c.sameOtherwise(t, qkv, cos, sin, got)
		})
	}
	segmentCase{heads: 2, dim: 16, segments: []int32{570, 560}, small: true}.keepsNaN(t)
}

// distance is how far values are from those wanted, as a share of these.
func distance[T float32 | float64](got []float32, want []T) float64 {
	var off, all float64
	for i, w := range want {
		d := float64(got[i]) - float64(w)
		off, all = off+d*d, all+float64(w)*float64(w)
	}
	return math.Sqrt(off / all)
}

// Heads that do not fit the scratch together are attended with in groups.
func TestSegmentAttention8Groups(t *testing.T) {
	startLibrary(t)
	if !kernels.HasSelfAttention8() {
		t.Skip("this processor has neither AVX-512 VNNI nor dotprod")
	}
	c := segmentCase{heads: 20, dim: 64, segments: []int32{900}, threads: 2}
	qkv, cos, sin := c.layer(2)
	exact := c.run(t, qkv, cos, sin)
	c.small = true
	got := c.run(t, qkv, cos, sin)
	if share := distance(got, exact); !(share < 0.02) {
		t.Errorf("the error is %.4f of the result", share)
	}
	c.sameOtherwise(t, qkv, cos, sin, got)
}

// A segment whose scratch would be too large, or that gains nothing, is attended in float32, to its bits.
func TestSegmentAttention8Long(t *testing.T) {
	startLibrary(t)
	if !kernels.HasSelfAttention8() {
		t.Skip("this processor has neither AVX-512 VNNI nor dotprod")
	}
	c := segmentCase{heads: 1, dim: 256, segments: []int32{600, 7000, 511}, packed: true, threads: 2}
	qkv, cos, sin := c.layer(1)
	exact := c.run(t, qkv, cos, sin)
	c.small = true
	got := c.run(t, qkv, cos, sin)
	if slices.Equal(got[:600*256], exact[:600*256]) || !slices.Equal(got[600*256:], exact[600*256:]) {
		t.Error("want small integers for the first segment, and float32 for the long and the short one")
	}
}

// Scores are never held whole: those of 20,000 positions would take 1.5 GiB.
func TestSegmentAttentionMemory(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	c := segmentCase{heads: 1, dim: 8, segments: []int32{20000}, plain: true, threads: 2}
	qkv, _, _ := c.layer(1)
	before := host.PeakRSS()
	c.run(t, qkv, nil, nil)
	if took := host.PeakRSS() - before; took > 128<<20 {
		t.Errorf("%d MiB were taken, want a few", took>>20)
	}
}

func TestSegmentAttentionAgrees(t *testing.T) {
	startLibrary(t)
	defer kernels.Limit(false)
	if !kernels.Limit(false) {
		t.Skip("this processor has no better instructions to compare the least with")
	}
	for _, dim := range []int{8, 64, 72, 80, 112, 248} {
		c := segmentCase{heads: 2, dim: dim, segments: []int32{200, 17, 64}, packed: true, threads: 2}
		qkv, cos, sin := c.layer(2)
		kernels.Limit(false)
		want := c.run(t, qkv, cos, sin)
		kernels.Limit(true)
		if got := c.run(t, qkv, cos, sin); !slices.Equal(got, want) {
			t.Errorf("heads of %d: the least instructions and the best differ", dim)
		}
	}
}

// BenchmarkSegmentAttention reports the share of multiplications in a second.
func BenchmarkSegmentAttention(b *testing.B) {
	startLibrary(b)
	if !kernels.Available() {
		b.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	for _, c := range []struct {
		heads, dim, n, window int
		small                 bool
	}{
		{16, 80, 4096, 4096, false}, {16, 80, 4096, 4096, true}, {16, 80, 4096, 64, false},
		{16, 80, 4096, 512, false}, {16, 80, 4096, 512, true},
		{16, 72, 1024, 1024, false}, {16, 72, 1024, 1024, true}, {16, 64, 1024, 1024, false}, {16, 64, 1024, 1024, true},
	} {
		op := segmentCase{small: c.small}.op()
		if c.small && !kernels.HasSelfAttention8() {
			continue
		}
		b.Run(fmt.Sprintf("%s, %d positions in %d, %d heads of %d", op, c.n, c.window, c.heads, c.dim), func(b *testing.B) {
			g, width := onnx.New("segments"), c.heads*c.dim
			names := []string{g.Input("q", onnx.F32, "N", 3*width), "", "", g.Input("segments", onnx.I32, "S"),
				g.Input("cos", onnx.F32, "N", c.dim/2), g.Input("sin", onnx.F32, "N", c.dim/2)}
			g.Node(onnx.Own, op, onnx.Attrs{"heads": c.heads, "scale": float32(0.1)}, names, []string{"y"})
			g.Output("y", onnx.F32, "N", width)
			session, err := ort.NewSession(g, ort.Options{Threads: 2})
			if err != nil {
				b.Fatal(err)
			}
			defer session.Close()
			segments := slices.Repeat([]int32{int32(c.window)}, c.n/c.window)
			in := []ort.Tensor{view(b, randoms(1, c.n*3*width), c.n, 3*width), view(b, segments, len(segments)),
				view(b, randoms(2, c.n*c.dim/2), c.n, c.dim/2), view(b, randoms(3, c.n*c.dim/2), c.n, c.dim/2)}
			y := view(b, make([]float32, c.n*width), c.n, width)
			for b.Loop() {
				if err := session.Run(in, []ort.Tensor{y}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(4*float64(c.n)*float64(c.window)*float64(width)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
