package graph

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// Precision says how linear layers hold their weights and multiply. Each is a row of one table, which its file
// precision_<name>.go registers.
type Precision string

// precision is a row of the table: all that differs between precisions.
type precision struct {
	name Precision
	// rank orders lists: those nearer to float32 come first.
	rank int
	// help is what flags say of it.
	help string
	// weight is the memory that a weight takes with its scale, in parts of a float32. It is what sizes are planned by.
	weight float64
	// values is the type of what linear layers take, and of keys and values on a device.
	values onnx.DType
	// drift bounds how far log-probabilities of a model's own reference values may be off on another machine.
	drift float64
	// tower is what the vision tower runs in where this is all that was asked for; "" is this.
	tower Precision
	// form is how a weight matrix with that many inputs is quantised. It is nil where weights stay as the checkpoint has them.
	form func(in int) *form
	// head is how a decoder's head is quantised, where it differs from form.
	head *form
	// emptyRuns says that no operator needs a row to give outputs their shape.
	emptyRuns bool
	// runs tells whether a provider has operators for it; refusal completes an error where it does not, and may name the provider.
	runs    func(at ort.Provider) bool
	refusal string
	// ready, unless nil, is why it cannot be built on this machine.
	ready func() error
	// auto, unless nil, says why "auto" chooses it for a provider; "" where it does not.
	auto func(at ort.Provider) string
}

var precisions = map[Precision]*precision{}

func registerPrecision(p precision) { precisions[p.name] = &p }

// Precisions lists all, the nearest to float32 first.
func Precisions() []Precision {
	var names []Precision
	for _, p := range ranked() {
		names = append(names, p.name)
	}
	return names
}

func ranked() []*precision {
	return slices.SortedFunc(maps.Values(precisions), func(a, b *precision) int { return cmp.Compare(a.rank, b.rank) })
}

// row is a precision's row; "" is FP32. The error names those that are known.
func (p Precision) row() (*precision, error) {
	if r, ok := precisions[cmp.Or(p, FP32)]; ok {
		return r, nil
	}
	var known []string
	for _, name := range Precisions() {
		known = append(known, string(name))
	}
	return precisions[FP32], fmt.Errorf("unknown precision %q; known are %s", string(p), strings.Join(known, ", "))
}

// get is row for what was checked before.
func (p Precision) get() *precision { r, _ := p.row(); return r }

// Help is what flags say of it.
func (p Precision) Help() string { return p.get().help }

// Vision is what the tower runs in when p is all that was asked for: an image's patch embeddings are read by every token
// after it, and a tower's weights are read once a tile.
func (p Precision) Vision() Precision { return cmp.Or(p.get().tower, p) }

// Quantized tells whether weights are to be loaded in a form that the checkpoint does not have.
func (p Precision) Quantized() bool { return p.get().form != nil }

// WeightBytes is what weights take that are so many bytes as float32, with their scales.
func (p Precision) WeightBytes(f32 int64) int64 { return int64(float64(f32) * p.get().weight) }

// ValueBytes is what so many bytes of float32 keys and values take on a device.
func (p Precision) ValueBytes(f32 int64) int64 {
	return f32 * int64(p.get().values.Size()) / int64(onnx.F32.Size())
}

// Drift is how far the log-probabilities of a model's own reference values may be off on another machine.
func (p Precision) Drift() float64 { return p.get().drift }

// EmptyRuns says that a decoder may run without rows that want logits.
func (p Precision) EmptyRuns() bool { return p.get().emptyRuns }

// Check refuses a precision that is not known, or that a provider has no operators for. The error names those it has.
func (p Precision) Check(at ort.Provider) error {
	r, err := p.row()
	if err != nil || r.runs(at) {
		return err
	}
	why := r.refusal
	if strings.Contains(why, "%s") {
		why = fmt.Sprintf(why, at.Name())
	}
	return fmt.Errorf("%s%s; %s takes %s", p, why, at.Name(), takes(at))
}

// takes lists the precisions that a provider has operators for.
func takes(at ort.Provider) string {
	var names []string
	for _, r := range ranked() {
		if r.runs(at) {
			names = append(names, string(r.name))
		}
	}
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " and " + names[last]
}

// ChoosePrecision is the fastest precision for a provider that keeps a model's answers, and why.
func ChoosePrecision(at ort.Provider) (p Precision, why string) {
	for _, r := range ranked() {
		if r.auto == nil {
			continue
		}
		if why := r.auto(at); why != "" {
			return r.name, why
		}
	}
	if at.Can().Integers {
		return FP32, "this processor lacks what mmserve's own int8 operators need"
	}
	return FP32, "the execution provider " + at.Name() + " takes no other"
}

// form is how the matrix of a linear layer is quantised.
type form struct {
	// suffix of the tensor that holds the matrix in a quantised checkpoint, after the name of its weight.
	suffix string
	// operator of domain "mmserve" that multiplies by it.
	operator string
	// fill makes room for a matrix of n output channels and k inputs.
	fill func(l layout, k, n int) target
	// operands are the operator's inputs between x and the bias.
	operands func(b *Builder, name string, in, out int) []string
}

// forms lists all forms, each once.
func forms() (list []*form) {
	for _, r := range ranked() {
		if r.form == nil {
			continue
		}
		for _, f := range []*form{r.form(blockInputs), r.form(1), r.head} {
			if f != nil && !slices.Contains(list, f) {
				list = append(list, f)
			}
		}
	}
	return list
}

// formOf tells whether a tensor of a quantised checkpoint is a matrix, of which weight and in which form.
func formOf(tensor string) (weight string, f *form) {
	for _, f := range forms() {
		if weight, ok := strings.CutSuffix(tensor, f.suffix); ok {
			return weight, f
		}
	}
	return "", nil
}
