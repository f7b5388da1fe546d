package vision

import (
	"encoding/binary"
	"math"
	"runtime"
	"sync"
)

// Resampling is Pillow's, because the models were trained on its pixels: separable convolution whose support grows
// with the reduction, weights rounded to 22 bits, horizontal pass, rounding to 8 bits, vertical pass (Pillow,
// src/libImaging/Resample.c). Since its version 13 the vertical pass comes first where it takes off more rows than twice
// the columns that the other does. github.com/disintegration/imaging differs in 0.005 % of the bytes.

// filter is a resampling kernel that is zero beyond ±support.
type filter struct {
	support float64
	weight  func(x float64) float64
}

// filters are keyed by their number in Pillow and in preprocessor_config.json.
var filters = map[int]filter{
	1: {3, lanczos},
	2: {1, func(x float64) float64 { return max(0, 1-math.Abs(x)) }},
	3: {2, bicubic},
}

func lanczos(x float64) float64 {
	if x < -3 || x >= 3 {
		return 0
	}
	return sinc(x) * sinc(x/3)
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	x *= math.Pi
	return math.Sin(x) / x
}

func bicubic(x float64) float64 {
	const a = -0.5
	switch x = math.Abs(x); {
	case x < 1:
		return (float64((a+2)*x)-(a+3))*x*x + 1
	case x < 2:
		return (float64((float64((x-5)*x)+8)*x) - 4) * a
	}
	return 0
}

const (
	weightBits = 32 - 8 - 2
	weightHalf = 1 << (weightBits - 1)
)

// window is what one output sample takes from the input: samples first, first+1, …, each times a weight.
type window struct {
	first   int
	weights []int64
}

// windows gives n, from the one at from on, of those of a row or column of in samples that becomes out samples. Products
// are converted to float64 before they are added to, so that no compiler fuses the two roundings.
func (f filter) windows(in, out, from, n int) []window {
	scale := float64(in) / float64(out)
	stretch := max(scale, 1)
	support := f.support * stretch
	inverse := 1 / stretch
	ws := make([]window, n)
	weights := make([]int64, 0, n*(2*int(math.Ceil(support))+1))
	k := make([]float64, 2*int(math.Ceil(support))+1)
	for i := range ws {
		center := float64((float64(from+i) + 0.5) * scale)
		first := max(int(center-support+0.5), 0)
		end := min(int(center+support+0.5), in)
		sum := 0.0
		for x := range end - first {
			k[x] = f.weight((float64(x+first) - center + 0.5) * inverse)
			sum += k[x]
		}
		at := len(weights)
		for _, w := range k[:end-first] {
			if sum != 0 {
				w /= sum
			}
			weights = append(weights, int64(math.Copysign(0.5, w)+float64(w*(1<<weightBits))))
		}
		ws[i] = window{first, weights[at:]}
	}
	return ws
}

// Two sums at a time: a 64-bit multiplication by a weight multiplies both 32-bit lanes of a word. A lane never
// leaves the range of int32, since 255 times the absolute weights of a window stays below 2^31; a negative low lane
// borrows one from the high lane, and lanes gives it back.
const bothHalves = weightHalf | weightHalf<<32

func lanes(sum int64) (low, high uint8) {
	l := int32(sum)
	h := int32((sum - int64(l)) >> 32)
	return clip8(l >> weightBits), clip8(h >> weightBits)
}

// resize scales p to w×h. It takes p over: a caller goes on with the result, which may be p, and nothing else.
func (f filter) resize(p *RGB, w, h int) *RGB { return f.resizePart(p, w, h, 0, 0, w, h) }

// resizePart gives the cw×ch pixels at x, y of what resize gives, without making the rest of it.
func (f filter) resizePart(p *RGB, w, h, x, y, cw, ch int) *RGB {
	across := func() {
		if w != p.W || cw != w {
			out := scratchRGB(cw, p.H)
			horizontal(out, p, f.windows(p.W, w, x, cw))
			release(p)
			p = out
		}
	}
	down := func() {
		if h != p.H || ch != h {
			out := scratchRGB(p.W, ch)
			vertical(out, p, f.windows(p.H, h, y, ch))
			release(p)
			p = out
		}
	}
	if h < p.H && 2*(p.W-w) < p.H-h {
		down()
		across()
	} else {
		across()
		down()
	}
	return p
}

// horizontal takes two rows at a time, one in each lane.
func horizontal(dst, src *RGB, ws []window) {
	work := 3 * dst.W * len(ws[0].weights)
	eachBand((src.H+1)/2, 2*work, func(lo, hi int) {
		packed := make([][3]int64, src.W)
		for pair := lo; pair < hi; pair++ {
			y0, y1 := 2*pair, min(2*pair+1, src.H-1)
			a, b := src.row(y0), src.row(y1)
			for x := range packed {
				a, b := (*[3]uint8)(a[3*x:]), (*[3]uint8)(b[3*x:])
				packed[x] = [3]int64{int64(a[0]) | int64(b[0])<<32, int64(a[1]) | int64(b[1])<<32, int64(a[2]) | int64(b[2])<<32}
			}
			a, b = dst.row(y0), dst.row(y1)
			for x, win := range ws {
				red, green, blue := int64(bothHalves), int64(bothHalves), int64(bothHalves)
				in := packed[win.first:][:len(win.weights)]
				for i, w := range win.weights {
					px := &in[i]
					red += px[0] * w
					green += px[1] * w
					blue += px[2] * w
				}
				a[3*x], b[3*x] = lanes(red)
				a[3*x+1], b[3*x+1] = lanes(green)
				a[3*x+2], b[3*x+2] = lanes(blue)
			}
		}
	})
}

// vertical takes eight neighbouring bytes at a time, in the two lanes of four sums.
func vertical(dst, src *RGB, ws []window) {
	const even = 0x000000ff_000000ff
	stride := 3 * src.W
	eachBand(dst.H, stride*len(ws[0].weights), func(lo, hi int) {
		for y := lo; y < hi; y++ {
			out, win := dst.row(y), ws[y]
			in := src.Pix[stride*win.first:]
			x := 0
			for ; x+8 <= stride; x += 8 {
				s0, s1, s2, s3 := int64(bothHalves), int64(bothHalves), int64(bothHalves), int64(bothHalves)
				at := x
				for _, w := range win.weights {
					v := binary.LittleEndian.Uint64(in[at:])
					s0 += int64(v&even) * w
					s1 += int64(v>>8&even) * w
					s2 += int64(v>>16&even) * w
					s3 += int64(v>>24&even) * w
					at += stride
				}
				o := out[x : x+8]
				o[0], o[4] = lanes(s0)
				o[1], o[5] = lanes(s1)
				o[2], o[6] = lanes(s2)
				o[3], o[7] = lanes(s3)
			}
			for ; x < stride; x++ {
				sum := int64(weightHalf)
				for i, w := range win.weights {
					sum += int64(in[i*stride+x]) * w
				}
				out[x] = clip8(int32(sum) >> weightBits)
			}
		}
	})
}

// scratch holds *RGB for the pictures between two stages, up to tens of megabytes each.
var scratch sync.Pool

func scratchRGB(w, h int) *RGB {
	p, ok := scratch.Get().(*RGB)
	if !ok || cap(p.Pix) < 3*w*h {
		return newRGB(w, h)
	}
	p.Pix, p.W, p.H = p.Pix[:3*w*h], w, h
	return p
}

func release(p *RGB) { scratch.Put(p) }

// eachBand calls f on bands that cover [0, n), at most one for each core and at once, and waits. work estimates the
// operations of one row: what is too little to share runs on the caller's goroutine.
func eachBand(n, work int, f func(lo, hi int)) {
	const worthwhile = 1 << 16
	bands := min(n, runtime.GOMAXPROCS(0), 1+n*work/worthwhile)
	if bands <= 1 {
		f(0, n)
		return
	}
	var wg sync.WaitGroup
	for i := range bands {
		wg.Go(func() { f(n*i/bands, n*(i+1)/bands) })
	}
	wg.Wait()
}
