package kernels_test

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// operand is a node's input: a constant of zeros, or for x and q and what else is fed a graph input of float32 or
// int32.
type operand struct {
	dt   onnx.DType
	dims []int
	fed  bool
	last []int32 // values of a fed int32 operand
	none bool
}

func fed(dims ...int) operand                  { return operand{dt: onnx.F32, dims: dims, fed: true} }
func zeros(dt onnx.DType, dims ...int) operand { return operand{dt: dt, dims: dims} }
func positions(last ...int32) operand {
	return operand{dt: onnx.I32, dims: []int{len(last)}, fed: true, last: last}
}
func (o operand) with(dims ...int) operand { o.dims = dims; return o }
func (o operand) as(dt onnx.DType) operand { o.dt = dt; return o }
func elements(dims []int) (n int) {
	n = 1
	for _, d := range dims {
		n *= d
	}
	return n
}

// hostileNode is a node of an operator of ours: a good one that cases spoil.
type hostileNode struct {
	op      string
	attrs   onnx.Attrs
	in      []operand
	out     [][]int // shapes of the good node's outputs
	present bool    // outputs 1 and 2 are bound to the memory of inputs 3 and 4
	apart   bool    // they are bound to other memory
	dropped int     // this many outputs are left out
	room    int     // unless 0, the first output's memory has that last axis
}

func (n hostileNode) set(name string, value any) hostileNode {
	n.attrs = maps.Clone(n.attrs)
	n.attrs[name] = value
	return n
}

func (n hostileNode) drop(name string) hostileNode {
	n.attrs = maps.Clone(n.attrs)
	delete(n.attrs, name)
	return n
}

func (n hostileNode) operand(i int, o operand) hostileNode {
	n.in = slices.Clone(n.in)
	n.in[i] = o
	return n
}

func (n hostileNode) inputs(count int) hostileNode {
	n.in = slices.Clone(n.in[:min(count, len(n.in))])
	for len(n.in) < count {
		n.in = append(n.in, zeros(onnx.F32, 1))
	}
	return n
}

// run opens a session over the node and runs it once, if that is not refused.
func (n hostileNode) run(t *testing.T) error {
	t.Helper()
	g := onnx.New("hostile")
	var names, outputs []string
	var in []ort.Tensor
	for i, o := range n.in {
		name := fmt.Sprint("in", i)
		switch size := elements(o.dims); {
		case o.none:
			name = ""
		case !o.fed:
			g.Inline(name, o.dt, o.dims, make([]byte, size*o.dt.Size()))
		case o.last != nil:
			var dims []any
			for d := range o.dims {
				dims = append(dims, fmt.Sprintf("R%d", d))
			}
			g.Input(name, o.dt, dims...)
			in = append(in, view(t, o.last, o.dims...))
		default:
			var dims []any
			for d := range o.dims {
				dims = append(dims, fmt.Sprintf("%s.%d", name, d))
			}
			g.Input(name, o.dt, dims...)
			in = append(in, view(t, make([]float32, size), o.dims...))
		}
		names = append(names, name)
	}
	var out []ort.Tensor
	for i, dims := range n.out[:len(n.out)-n.dropped] {
		name := fmt.Sprint("out", i)
		outputs = append(outputs, name)
		var symbolic []any
		for d := range dims {
			symbolic = append(symbolic, fmt.Sprintf("%s.%d", name, d))
		}
		g.Output(name, onnx.F32, symbolic...)
		dims = slices.Clone(dims)
		if i == 0 && n.room != 0 {
			dims[len(dims)-1] = n.room
		}
		switch {
		case i > 0 && n.present && !n.apart && len(in) >= 4:
			out = append(out, in[n.cache(in)+i])
		default:
			out = append(out, view(t, make([]float32, elements(dims)), dims...))
		}
	}
	for range n.dropped {
		outputs = append(outputs, "")
	}
	g.Node(onnx.Own, n.op, n.attrs, names, outputs)
	s, err := ort.NewSession(g, ort.Options{Threads: 2})
	if err != nil {
		return err
	}
	defer s.Close()
	return s.Run(in, out)
}

// cache is the place, less one, of the caches among the inputs that are fed: what is fed before them may be left out.
func (n hostileNode) cache(in []ort.Tensor) int {
	at := -1
	for _, o := range n.in[:min(3, len(n.in))] {
		if o.fed && !o.none {
			at++
		}
	}
	return min(at, len(in)-3)
}

func rowLinear8Node() hostileNode {
	return hostileNode{
		op: "RowLinear8", attrs: onnx.Attrs{"k": 8, "n": 32, "activation": 0}, out: [][]int{{3, 32}},
		in: []operand{fed(3, 8), zeros(onnx.I8, 2, 2, 64), zeros(onnx.F32, 32), zeros(onnx.I32, 32), zeros(onnx.F32, 32)},
	}
}

func rowLinear4Node() hostileNode {
	return hostileNode{
		op: "RowLinear4", attrs: onnx.Attrs{"k": 64, "n": 32, "activation": 0}, out: [][]int{{3, 32}},
		in: []operand{fed(3, 64), zeros(onnx.U8, 2, 2, 256), zeros(onnx.BF16, 2, 2, 16), zeros(onnx.F32, 32)},
	}
}

func cachedAttentionNode() hostileNode {
	return hostileNode{
		op: "CachedAttention", attrs: attentionAttributes(4, 2, 16), present: true,
		in: []operand{
			fed(2, 3, 8*16), {none: true}, {none: true}, fed(2, 2, 32, 16), fed(2, 2, 32, 16), positions(2, 31),
			zeros(onnx.F32, 32, 8), zeros(onnx.F32, 32, 8), {none: true}, {none: true}, {none: true},
			{none: true}, {none: true},
		},
		out: [][]int{{2, 3, 64}, {2, 2, 32, 16}, {2, 2, 32, 16}},
	}
}

// partsNode is cachedAttentionNode with all that a layer may do besides.
func partsNode() hostileNode {
	n := cachedAttentionNode().operand(6, fed(2, 3, 4)).operand(7, fed(2, 3, 4)).operand(8, untils(0, 2, 2, 29, 30, 31)).
		operand(9, zeros(onnx.F32, 16)).operand(10, zeros(onnx.F32, 16)).operand(11, zeros(onnx.F32, 32))
	return n.set("rotary", 8).set("pairs", 1).set("window", 5).set("softcap", float32(2)).set("epsilon", float32(1))
}

// placesNode is cachedAttentionNode with a row of two positions in part 0 of the cache and one of four in part 2.
func placesNode() hostileNode {
	n := cachedAttentionNode().operand(0, fed(1, 6, 8*16)).operand(3, fed(3, 2, 32, 16)).operand(4, fed(3, 2, 32, 16)).
		operand(12, placesOf(0, 0, 2, 2)).operand(5, positions(1, 31))
	n.out = [][]int{{1, 6, 64}, {3, 2, 32, 16}, {3, 2, 32, 16}}
	return n
}

// placesOf are where rows start and their parts of the cache.
func placesOf(values ...int32) operand {
	return operand{dt: onnx.I32, dims: []int{len(values) / 2, 2}, fed: true, last: values}
}

// untils are what the three positions of two rows see until.
func untils(last ...int32) operand {
	return operand{dt: onnx.I32, dims: []int{2, 3}, fed: true, last: last}
}

// apart has q, k and v as three inputs.
func (n hostileNode) three(q, k, v operand) hostileNode {
	return n.operand(0, q).operand(1, k).operand(2, v)
}

func selfAttentionNode() hostileNode {
	return hostileNode{
		op: "SelfAttention8", attrs: onnx.Attrs{"heads": 2, "scale": float32(1)}, out: [][]int{{2, 5, 32}},
		in: []operand{fed(2, 5, 32), fed(2, 5, 32), fed(2, 5, 32)},
	}
}

// segmentAttentionNode is one of SegmentAttention or SegmentAttention8.
func segmentAttentionNode(op string) hostileNode {
	return hostileNode{
		op: op, attrs: onnx.Attrs{"heads": 2, "scale": float32(1)}, out: [][]int{{5, 32}},
		in: []operand{fed(5, 32), fed(5, 32), fed(5, 32), positions(2, 3), fed(5, 8), fed(5, 8)},
	}
}

// otherRows are the labels of shapes that differ in the number of rows alone.
var otherRows = []string{"of zero first", "halved", "doubled", "with one more axis", "of nine axes"}

// badIntegers are what no attribute that counts may be.
var badIntegers = []int{0, -1, math.MinInt64, math.MaxInt64, math.MaxInt32, math.MinInt32, 1 << 32, 1 << 62}

// spoiled gives cases that spoil a node in ways that fit every operator.
func spoiled(good hostileNode, counts ...string) map[string]hostileNode {
	cases := map[string]hostileNode{
		"too few inputs":  good.inputs(1),
		"too many inputs": good.inputs(len(good.in) + 1),
		"a small output":  func() hostileNode { n := good; n.room = 16; return n }(),
	}
	for _, name := range counts {
		cases["no "+name] = good.drop(name)
		cases[name+" as text"] = good.set(name, "8")
		for _, v := range badIntegers {
			cases[fmt.Sprintf("%s=%d", name, v)] = good.set(name, v)
		}
	}
	for i, o := range good.in {
		if o.none {
			continue
		}
		what := fmt.Sprint("input ", i)
		size := elements(o.dims)
		for label, dims := range map[string][]int{
			"of no axes": {}, "of none": {0}, "flat and long": {size + 16}, "of nine axes": {1, 1, 1, 1, 1, 1, 1, 1, size},
			"of zero first": append([]int{0}, o.dims[1:]...), "halved": append([]int{max(1, o.dims[0]/2)}, o.dims[1:]...),
			"doubled": append([]int{o.dims[0] * 2}, o.dims[1:]...), "with one more axis": append([]int{1, 1, 1}, o.dims...),
			"cut at the end": append(slices.Clone(o.dims[:len(o.dims)-1]), max(1, o.dims[len(o.dims)-1]/2)),
		} {
			if i == 0 && slices.Contains(otherRows, label) {
				continue // x may have any rows
			}
			if o.last != nil || o.fed && label == "of no axes" { // the binding has no views without axes
				continue
			}
			cases[what+" "+label] = good.operand(i, o.with(dims...))
		}
		if !o.fed {
			cases[what+" of float64's size"] = good.operand(i, o.as(onnx.I64))
		}
	}
	return cases
}

// suite is a good node with cases that spoil it.
type suite struct {
	good  hostileNode
	cases map[string]hostileNode
}

func partsSuite() suite {
	parts := partsNode()
	s := suite{parts, spoiled(parts, "heads", "kv_heads", "rotary")}
	// Any table of as many factors as there are positions will do; where axes come as inputs, none is too long.
	for _, what := range []string{"input 11 doubled", "input 11 flat and long"} {
		delete(s.cases, what)
	}
	number := func(name string, values ...float64) {
		s.cases["no "+name] = parts.drop(name)
		for _, v := range values {
			s.cases[fmt.Sprintf("%s=%g", name, v)] = parts.set(name, float32(v))
		}
	}
	number("softcap", -1, math.NaN(), math.Inf(1), math.Inf(-1))
	number("epsilon", -1e-9, math.NaN(), math.Inf(1))
	maps.Copy(s.cases, map[string]hostileNode{
		"no window": parts.drop("window"), "window=-1": parts.set("window", -1), "window=2^31": parts.set("window", 1<<31),
		"no pairs": parts.drop("pairs"), "pairs=2": parts.set("pairs", 2), "pairs=-1": parts.set("pairs", -1),
		"rotary=7": parts.set("rotary", 7), "rotary=18": parts.set("rotary", 18), "rotary=10": parts.set("rotary", 10),
		"rotary past the head":             parts.set("rotary", 18).operand(6, fed(2, 3, 9)).operand(7, fed(2, 3, 9)),
		"a block before its position":      parts.operand(8, untils(0, 0, 2, 29, 30, 31)),
		"a block after the newest":         parts.operand(8, untils(0, 2, 2, 29, 30, 32)),
		"a block cut":                      parts.operand(8, untils(0, 2, 2, 30, 31, 31)),
		"a block in a block":               parts.operand(8, untils(2, 1, 2, 29, 30, 31)),
		"a block at the smallest position": parts.operand(8, untils(math.MinInt32, 2, 2, 29, 30, 31)),
		"a block up to the largest":        parts.operand(8, untils(0, 2, 2, 29, 30, math.MaxInt32)),
		"blocks for two rows of one":       parts.operand(8, untils(0, 2, 2, 29, 30, 31).with(1, 6)),
		"angles of other positions":        parts.operand(6, fed(2, 2, 4)).operand(7, fed(2, 2, 4)),
		"angles of other rows":             parts.operand(6, fed(1, 3, 4)).operand(7, fed(1, 3, 4)),
		"a table beside angles":            parts.operand(7, fed(32, 4)), "angles beside a table": parts.operand(6, fed(32, 4)),
		"a norm for queries alone": parts.operand(10, operand{none: true}),
		"a norm for keys alone":    parts.operand(9, operand{none: true}),
		"a norm of 15":             parts.operand(9, zeros(onnx.F32, 15)).operand(10, zeros(onnx.F32, 15)),
		"a norm of 32":             parts.operand(9, zeros(onnx.F32, 32)).operand(10, zeros(onnx.F32, 32)),
		"factors of 31 positions":  parts.operand(11, zeros(onnx.F32, 31)), "no factors": parts.operand(11, zeros(onnx.F32, 0)),
		"a position after the cache": parts.operand(5, positions(2, 32)).operand(8, untils(0, 2, 2, 30, 31, 32)),
	})
	return s
}

func placesSuite() suite {
	n := placesNode()
	s := suite{n, spoiled(n, "heads", "kv_heads", "rotary")}
	places := func(values ...int32) hostileNode { return n.operand(12, placesOf(values...)) }
	maps.Copy(s.cases, map[string]hostileNode{
		"the first starts later": places(1, 0, 2, 2), "the first starts before": places(-1, 0, 2, 2),
		"a row of none": places(0, 0, 0, 2), "the last of none": places(0, 0, 6, 2),
		"one past the end": places(0, 0, 7, 2), "far past the end": places(0, 0, math.MaxInt32, 2),
		"one that goes back": places(0, 0, -1, 2), "the smallest start": places(0, 0, math.MinInt32, 2),
		"a part twice": places(0, 2, 2, 2), "parts out of order": places(0, 2, 2, 0),
		"a part after the last": places(0, 0, 2, 3), "the largest part": places(0, 0, 2, math.MaxInt32),
		"a negative part": places(0, -1, 2, 2),
		"one row for two": places(0, 0), "three rows for two": places(0, 0, 2, 1, 4, 2),
		"no rows":                    places().operand(5, operand{dt: onnx.I32, dims: []int{0}, fed: true, last: []int32{}}),
		"too many positions of one":  n.operand(5, positions(1, 2)),
		"a position before the row":  n.operand(5, positions(0, 31)),
		"a position after the cache": n.operand(5, positions(1, 32)),
		"three values a row":         n.operand(12, placesOf(0, 0, 2, 2, 0, 0).with(2, 3)),
		"a cache of other heads":     n.operand(3, fed(3, 1, 32, 16)).operand(4, fed(3, 1, 32, 16)),
		"no cache":                   n.operand(3, fed(0, 2, 32, 16)).operand(4, fed(0, 2, 32, 16)),
	})
	return s
}

func segmentAttentionSuite(op string) suite {
	g := segmentAttentionNode(op)
	s := suite{g, spoiled(g, "heads")}
	lengths := func(list ...int32) hostileNode { return g.operand(3, positions(list...)) }
	sized := func(row int) hostileNode { // two heads
		x := g.three(fed(5, row), fed(5, row), fed(5, row))
		return x.operand(4, fed(5, row/4)).operand(5, fed(5, row/4))
	}
	maps.Copy(s.cases, map[string]hostileNode{
		"a segment too long": lengths(2, 4), "a segment too short": lengths(2, 2), "a segment of none": lengths(2, 0, 3),
		"a negative segment": lengths(6, -1), "sums that wrap": lengths(math.MaxInt32, math.MaxInt32, 7),
		"the smallest segment": lengths(math.MinInt32, 5), "one segment": lengths(4),
		"more segments than positions": lengths(1, 1, 1, 1, 1, 1),
		"segments of float":            g.operand(3, fed(2)),
		"heads of 4":                   g.three(fed(5, 8), fed(5, 8), fed(5, 8)),
		"heads of 0":                   g.three(fed(5, 0), fed(5, 0), fed(5, 0)),
		"heads of 12":                  sized(24),
		"heads of 264":                 sized(528),
		"3 heads":                      g.set("heads", 3), "k without v": g.operand(2, operand{none: true}),
		"v without k":         g.operand(1, operand{none: true}),
		"cosine without sine": g.inputs(5), "sine without cosine": g.operand(4, operand{none: true}),
		"packed in no three": g.three(fed(5, 80), operand{none: true}, operand{none: true}),
		"a short cosine":     g.operand(4, fed(4, 8)), "a wide sine": g.operand(5, fed(5, 16)),
		"no segments":       g.operand(3, operand{none: true}),
		"scale is infinite": g.set("scale", float32(math.Inf(1))), "no scale": g.drop("scale"),
	})
	return s
}

func TestHostileNodes(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	r8, r4, ca, sa := rowLinear8Node(), rowLinear4Node(), cachedAttentionNode(), selfAttentionNode()
	suites := []suite{{r8, spoiled(r8, "k", "n")}, {r4, spoiled(r4, "k", "n")},
		{ca, spoiled(ca, "heads", "kv_heads", "rotary")}, partsSuite(), segmentAttentionSuite("SegmentAttention"),
		placesSuite()}
	if kernels.HasSelfAttention8() {
		suites = append(suites, suite{sa, spoiled(sa, "heads")}, segmentAttentionSuite("SegmentAttention8"))
	}
	for _, s := range suites[:2] {
		for _, v := range []int{-1, 4, math.MaxInt32, math.MaxInt64, 1 << 32, 1<<32 + 1} {
			s.cases[fmt.Sprint("activation=", v)] = s.good.set("activation", v)
		}
		s.cases["no activation"] = s.good.drop("activation")
		gate := hostileNode{op: s.good.op, out: [][]int{{3, 8}}, in: slices.Clone(s.good.in[:1])}
		gate.attrs = onnx.Attrs{"k": s.good.attrs["k"], "n": 16, "activation": 1}
		s.cases["a gate of 16"] = gate.inputs(len(s.good.in) - 1)
		s.cases["a gate of 48"] = s.good.set("activation", 1).set("n", 48)
		s.cases["n=33"] = s.good.set("n", 33)
		s.cases["n=17"] = s.good.set("n", 17)
	}
	r8.in[0].dims = []int{3, 8}
	suites[0].cases["the gate that wrote past its output"] = hostileNode{
		op: "RowLinear8", attrs: onnx.Attrs{"k": 8, "n": 16, "activation": 1}, out: [][]int{{3, 8}},
		in: []operand{fed(3, 8), zeros(onnx.I8, 1, 2, 64), zeros(onnx.F32, 16), zeros(onnx.I32, 16)},
	}
	suites[0].cases["panels and steps swapped"] = r8.set("k", 4).operand(0, fed(3, 4)).operand(1, zeros(onnx.I8, 1, 2, 64))
	suites[1].cases["k=65"], suites[1].cases["k=16"] = r4.set("k", 65), r4.set("k", 16)

	at := func(last ...int32) hostileNode { return ca.operand(5, positions(last...)) }
	three := func(q, kv int) hostileNode { return ca.three(fed(2, 3, q), fed(2, 3, kv), fed(2, 3, kv)) }
	maps.Copy(suites[2].cases, map[string]hostileNode{
		"a position before the first": at(1, 31), "a position after the cache": at(2, 32),
		"the largest position": at(2, math.MaxInt32), "the smallest position": at(math.MinInt32, 2),
		"minus one": at(-1, 2), "a position too many": at(2, 2, 2), "one position for two rows": at(2),
		"short tables":         ca.operand(6, zeros(onnx.F32, 31, 8)).operand(7, zeros(onnx.F32, 31, 8)),
		"empty tables":         ca.operand(6, zeros(onnx.F32, 0, 8)).operand(7, zeros(onnx.F32, 0, 8)),
		"narrow tables":        ca.operand(6, zeros(onnx.F32, 64, 4)).operand(7, zeros(onnx.F32, 64, 4)),
		"unlike tables":        ca.operand(7, zeros(onnx.F32, 33, 8)),
		"heads of 0":           ca.operand(3, fed(2, 2, 32, 0)).operand(4, fed(2, 2, 32, 0)),
		"heads of 8":           ca.operand(3, fed(2, 2, 64, 8)).operand(4, fed(2, 2, 64, 8)),
		"a cache of 24":        ca.operand(3, fed(2, 2, 24, 16)).operand(4, fed(2, 2, 24, 16)),
		"a cache of 0":         ca.operand(3, fed(2, 2, 0, 16)).operand(4, fed(2, 2, 0, 16)),
		"heads turned":         ca.operand(3, fed(2, 32, 2, 16)).operand(4, fed(2, 32, 2, 16)),
		"present apart":        func() hostileNode { n := ca; n.apart = true; return n }(),
		"no present":           func() hostileNode { n := ca; n.dropped = 2; return n }(),
		"3 of 2 heads":         ca.set("heads", 3).set("kv_heads", 2),
		"more kv heads":        ca.set("heads", 1).set("kv_heads", 2),
		"k without v":          ca.three(fed(2, 3, 64), fed(2, 3, 32), operand{none: true}),
		"v without k":          ca.three(fed(2, 3, 64), operand{none: true}, fed(2, 3, 32)),
		"an empty k":           ca.three(fed(2, 3, 64), fed(0), fed(0)),
		"a short k":            three(64, 16),
		"a k of one step":      ca.three(fed(2, 3, 64), fed(2, 1, 32), fed(2, 3, 32)),
		"a v of one row":       ca.three(fed(2, 3, 64), fed(2, 3, 32), fed(1, 3, 32)),
		"rows without a cache": ca.operand(0, fed(3, 3, 128)), "no q": ca.operand(0, fed(0)),
		"scale is infinite":     ca.set("scale", float32(math.Inf(1))),
		"scale is not a number": ca.set("scale", float32(math.NaN())), "no scale": ca.drop("scale"),
	})
	if kernels.HasSelfAttention8() {
		maps.Copy(suites[6].cases, map[string]hostileNode{
			"heads of 8":  sa.three(fed(2, 5, 16), fed(2, 5, 16), fed(2, 5, 16)),
			"heads of 0":  sa.three(fed(2, 5, 0), fed(2, 5, 0), fed(2, 5, 0)),
			"3 heads":     sa.set("heads", 3),
			"k without v": sa.inputs(2), "an empty k": sa.operand(1, fed(0)).operand(2, fed(0)),
			"a short k": sa.operand(1, fed(2, 4, 32)), "a short v": sa.operand(2, fed(1, 5, 32)),
			"packed in no three":  sa.inputs(1).operand(0, fed(2, 5, 80)),
			"heads of a megabyte": sa.set("heads", 1).three(fed(1, 1, 1<<20), fed(1, 1, 1<<20), fed(1, 1, 1<<20)),
			"too many positions":  sa.set("heads", 1).inputs(1).operand(0, fed(1, 1<<16+1, 48)),
			"scale is infinite":   sa.set("scale", float32(math.Inf(-1))), "no scale": sa.drop("scale"),
		})
	}
	for _, s := range suites {
		t.Run(s.good.op, func(t *testing.T) {
			if err := s.good.run(t); err != nil {
				t.Fatalf("the good node: %v", err)
			}
			for _, what := range slices.Sorted(maps.Keys(s.cases)) {
				n := s.cases[what]
				t.Run(what, func(t *testing.T) {
					if err := n.run(t); err == nil {
						t.Error("it ran")
					} else if strings.Contains(err.Error(), "out of memory") {
						t.Errorf("memory was asked for: %v", err)
					}
				})
			}
		})
	}
}

// What is empty but fits is no error, and nothing is written.
func TestEmptyInputs(t *testing.T) {
	startLibrary(t)
	if !kernels.Available() {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	r8, r4 := rowLinear8Node().operand(0, fed(0, 8)), rowLinear4Node().operand(0, fed(0, 64))
	r8.out, r4.out = [][]int{{0, 32}}, [][]int{{0, 32}}
	list := []hostileNode{r8, r4}
	if sa := selfAttentionNode().three(fed(0, 5, 32), fed(0, 5, 32), fed(0, 5, 32)); kernels.HasSelfAttention8() {
		sa.out = [][]int{{0, 5, 32}}
		list = append(list, sa)
	}
	for _, n := range list {
		if err := n.run(t); err != nil {
			t.Errorf("%s of no rows: %v", n.op, err)
		}
	}
}
