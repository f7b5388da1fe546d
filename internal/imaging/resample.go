package imaging

import (
	"context"
	"encoding/binary"
	"math"
	"runtime"
)

// Resampling is Pillow's, because the models were trained on its pixels: separable convolution whose support grows with
// the reduction, weights rounded to 22 bits, horizontal pass, rounding to 8 bits, vertical pass (Pillow,
// src/libImaging/Resample.c). Since its version 13 the vertical pass comes first where it takes off more rows than
// twice the columns that the other does. github.com/disintegration/imaging differs in 0.005 % of the bytes.

// Filter is a resampling kernel that is zero beyond ±support.
type Filter struct {
	support float64
	weight  func(x float64) float64
}

// Filters are keyed by their number in Pillow and in preprocessor_config.json: 1 Lanczos, 2 bilinear, 3 bicubic.
var Filters = map[int]Filter{
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

// window is what one output sample takes from the input: samples first, first+1, …, each times a weight. Samples beyond
// the image, which are those of a canvas around it, have the weight outside together.
type window struct {
	first   int
	weights []int64
	outside int64
}

// trim leaves, of windows over a canvas, those parts that lie on [at, at+n) and counts the rest as outside.
func trim(ws []window, at, n int) {
	for i := range ws {
		w := &ws[i]
		lo := min(max(at-w.first, 0), len(w.weights))
		hi := max(min(at+n-w.first, len(w.weights)), lo)
		for _, v := range w.weights[:lo] {
			w.outside += v
		}
		for _, v := range w.weights[hi:] {
			w.outside += v
		}
		w.weights = w.weights[lo:hi]
		w.first = max(w.first+lo-at, 0)
		if lo == hi {
			w.first = 0
		}
	}
}

// windows gives n, from the one at from on, of those of a row or column of in samples that becomes out samples.
// Products are converted to float64 before they are added to, so that no compiler fuses the two roundings.
func (f Filter) windows(in, out, from, n int) []window {
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
		ws[i] = window{first: first, weights: weights[at:]}
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

// Canvas is a rectangle of one colour with an image upon it at X, Y. It is never made: what it adds is computed.
type Canvas struct {
	W, H, X, Y int
	Color      [3]uint8
}

// ResizeBytes bounds what Resize or Scale of a w×h image to a size of tw×th holds at once beside the decoder's memory,
// the result among it.
func ResizeBytes(w, h, tw, th int) int64 {
	// Weights and the windows themselves; rows that the next windows take; the first pass and its turned copy.
	windows := func(in, out int) int64 { return Sum(Bytes(8*6, in), Bytes(8*8, out)) }
	tail := func(in, out int) int { return min(in, 6*(in/max(out, 1)+1)+3) }
	first := max(Bytes(6, tw, h), Bytes(6, w, min(th, h)))
	return Sum(first, Bytes(3, tw, th), windows(w, tw), windows(h, th), Bytes(24, w, runtime.GOMAXPROCS(0)),
		max(Bytes(3, w, tail(h, th)), Bytes(3, h, tail(w, tw))), stripBytes)
}

// Resize scales p to w×h. It takes p over: a caller goes on with the result, which may be p, and nothing else.
func (f Filter) Resize(ctx context.Context, p *RGB, w, h int) (*RGB, error) {
	out, err := f.To(p.W, p.H, w, h).Of(ctx, p)
	if out != p {
		Release(p)
	}
	return out, err
}

// frameRow is a row of one colour.
func frameRow(color [3]uint8, w int) []uint8 {
	row := make([]uint8, 3*w)
	for i := range row {
		row[i] = color[i%3]
	}
	return row
}

// taps is the mean number of weights, rounded up.
func taps(ws []window) int {
	n := 0
	for i := range ws {
		n += len(ws[i].weights)
	}
	return (n + len(ws) - 1) / max(len(ws), 1)
}

// horizontal takes two rows at a time, one in each lane.
func horizontal(ctx context.Context, dst, src *RGB, ws []window, color [3]uint8) error {
	work := 3 * dst.W * (1 + taps(ws))
	return eachBand(ctx, (src.H+1)/2, 2*work+src.W, func(lo, hi int) {
		packed := make([][3]int64, src.W)
		var outside [3]int64
		for c, v := range color {
			outside[c] = int64(v) | int64(v)<<32
		}
		for pair := lo; pair < hi; pair++ {
			y0, y1 := 2*pair, min(2*pair+1, src.H-1)
			a, b := src.Row(y0), src.Row(y1)
			for x := range packed {
				a, b := (*[3]uint8)(a[3*x:]), (*[3]uint8)(b[3*x:])
				packed[x] = [3]int64{int64(a[0]) | int64(b[0])<<32, int64(a[1]) | int64(b[1])<<32, int64(a[2]) | int64(b[2])<<32}
			}
			a, b = dst.Row(y0), dst.Row(y1)
			for x := range ws {
				win := &ws[x]
				red := int64(bothHalves) + outside[0]*win.outside
				green := int64(bothHalves) + outside[1]*win.outside
				blue := int64(bothHalves) + outside[2]*win.outside
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

// vertical takes eight neighbouring bytes at a time, in the two lanes of four sums. outside is the row above and below
// src.
func vertical(ctx context.Context, dst, src *RGB, ws []window, outside []uint8) error {
	const even = 0x000000ff_000000ff
	stride := 3 * src.W
	return eachBand(ctx, dst.H, stride*(1+taps(ws)), func(lo, hi int) {
		for y := lo; y < hi; y++ {
			out, win := dst.Row(y), ws[y]
			in := src.Pix[stride*win.first:]
			x := 0
			for ; x+8 <= stride; x += 8 {
				v := binary.LittleEndian.Uint64(outside[x:])
				s0, s1 := bothHalves+int64(v&even)*win.outside, bothHalves+int64(v>>8&even)*win.outside
				s2, s3 := bothHalves+int64(v>>16&even)*win.outside, bothHalves+int64(v>>24&even)*win.outside
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
				sum := int64(weightHalf) + int64(outside[x])*win.outside
				for i, w := range win.weights {
					sum += int64(in[i*stride+x]) * w
				}
				out[x] = clip8(int32(sum) >> weightBits)
			}
		}
	})
}
