package vision

import (
	"fmt"
	"math"
)

// AxisRope is the rotary position embedding of a patch's row and column: half of the angles follow the row, the rest
// the column, and the second half of a head's channels takes those of the first.
type AxisRope struct {
	Theta float64
	// Alternate gives rows every other frequency and columns those between; both have the same otherwise.
	Alternate bool
}

func (r AxisRope) validate() error {
	if !(r.Theta >= 1 && r.Theta <= math.MaxFloat64) { // below 1 frequencies grow beyond all bounds
		return fmt.Errorf("vision_config.rope_theta is %g, want a number from 1", r.Theta)
	}
	return nil
}

// angles are cosine and sine of place·frequency of an axis, for n places, [n, dim/4] each. axis is 0 for rows, 1 for
// columns.
// Reference: transformers VisionRotaryEmbedding, PixtralRotaryEmbedding.
func (r AxisRope) angles(n, dim, axis int) (cos, sin []float32) {
	quarter := dim / 4
	for place := range n {
		for j := range quarter {
			exponent := float64(4 * j)
			if r.Alternate && axis == 1 {
				exponent += 2
			}
			// The reference rounds frequencies and angles to float32.
			f := float32(1 / math.Pow(r.Theta, exponent/float64(dim)))
			s, c := math.Sincos(float64(float32(place) * f))
			cos, sin = append(cos, float32(c)), append(sin, float32(s))
		}
	}
	return cos, sin
}

// Sampling is how a table of positions is brought to an image's shape.
type Sampling int

const (
	// Corners is linear between the table's outermost points, which are the image's.
	Corners Sampling = iota + 1
	// Centres is linear between the middles of cells.
	Centres
	// Area is linear between the middles of cells, and where there are fewer places than the table has, over all the cells
	// that a place covers.
	Area
	// Cubic is cubic (a = −0.75) between the middles of cells.
	Cubic
)

// PositionTable is a learned table of Side×Side positions; a Side of 0 is none.
type PositionTable struct {
	Side     int
	Sampling Sampling
}

func (p PositionTable) validate() error {
	least := 0
	if p.Sampling != 0 { // a tower that samples a table has one
		least = 1
	}
	if p.Side < least || p.Side > 1<<10 {
		return fmt.Errorf("vision_config: a position table of %d×%d (image_size over patch_size), want %d to %d a side",
			p.Side, p.Side, least, 1<<10)
	}
	return nil
}

// tap is an entry of a table and its share in a sample.
type tap struct {
	at    int
	share float32
}

// taps gives, for each of n places along an axis, the entries that it is a mixture of.
func (p PositionTable) taps(n int) [][]tap {
	list := make([][]tap, n)
	for i := range list {
		list[i] = p.sample(i, n)
	}
	return list
}

// Reference: transformers get_vision_position_ids_and_weights (Corners); torch.nn.functional.interpolate and
// grid_sample with align_corners false (Centres, Cubic).
func (p PositionTable) sample(i, n int) []tap {
	last := p.Side - 1
	middle := (float64(i)+0.5)*float64(p.Side)/float64(n) - 0.5
	switch p.Sampling {
	case Corners:
		at := 0.0
		if n > 1 {
			at = float64(i) * float64(last) / float64(n-1)
		}
		return linear(at, last)
	case Centres:
		return linear(max(middle, 0), last)
	case Area:
		return p.area(i, n)
	}
	const a = -0.75
	low := int(math.Floor(middle))
	t := middle - float64(low)
	near := func(x float64) float64 { return ((a+2)*x-(a+3))*x*x + 1 }
	far := func(x float64) float64 { return ((a*x-5*a)*x+8*a)*x - 4*a }
	var list []tap
	for k, share := range []float64{far(1 + t), near(t), near(1 - t), far(2 - t)} {
		list = append(list, tap{min(max(low-1+k, 0), last), float32(share)})
	}
	return list
}

// area weighs the cells around a place's middle by a triangle, which is as wide as a cell or, if that is wider, as a
// place. Reference: torch.nn.functional.interpolate with antialias.
func (p PositionTable) area(i, n int) []tap {
	scale := float64(p.Side) / float64(n)
	wide := max(scale, 1)
	centre := scale * (float64(i) + 0.5)
	from, to := max(int(centre-wide+0.5), 0), min(int(centre+wide+0.5), p.Side)
	var list []tap
	sum := 0.0
	shares := make([]float64, 0, to-from)
	for at := from; at < to; at++ {
		share := max(0, 1-math.Abs((float64(at)-centre+0.5)/wide))
		shares, sum = append(shares, share), sum+share
	}
	for k, share := range shares {
		list = append(list, tap{from + k, float32(share / sum)})
	}
	return list
}

func linear(at float64, last int) []tap {
	low := min(int(at), last)
	share := float32(at - float64(low))
	return []tap{{low, 1 - share}, {min(low+1, last), share}}
}

// mix writes the position of a row and a column of an image: taps of the table [Side·Side, len(dst)].
func (p PositionTable) mix(dst, table []float32, row, col []tap) {
	clear(dst)
	for _, r := range row {
		for _, c := range col {
			w := r.share * c.share
			if w == 0 {
				continue
			}
			entry := table[(r.at*p.Side+c.at)*len(dst):][:len(dst)]
			for i, v := range entry {
				dst[i] += w * v
			}
		}
	}
}
