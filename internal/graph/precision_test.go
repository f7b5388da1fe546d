package graph

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// TestPrecisions holds that every row of the table is whole, and that docs/models.md has each by name.
func TestPrecisions(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "models.md"))
	if err != nil {
		t.Fatal(err)
	}
	if names := Precisions(); len(names) < 4 || names[0] != FP32 {
		t.Errorf("precisions are %v, want fp32 first", names)
	}
	ranks, suffixes := map[int]Precision{}, map[string]bool{}
	for _, r := range ranked() {
		if other, dup := ranks[r.rank]; dup {
			t.Errorf("%s has the rank of %s", r.name, other)
		}
		ranks[r.rank] = r.name
		if !strings.HasPrefix(r.help, string(r.name)) || r.runs == nil || r.drift <= 0 || r.weight <= 0 || r.weight > 1 {
			t.Errorf("the row of %s lacks something: %+v", r.name, r)
		}
		if r.values != onnx.F32 && r.values != onnx.F16 {
			t.Errorf("%s: linear layers take %s", r.name, r.values)
		}
		if (r.refusal == "") != (r.name == FP32) {
			t.Errorf("%s: refusal is %q", r.name, r.refusal)
		}
		if !strings.Contains(string(text), string(r.name)) {
			t.Errorf("docs/models.md does not name %s", r.name)
		}
		if _, err := r.name.Vision().row(); err != nil {
			t.Errorf("the tower of %s: %v", r.name, err)
		}
	}
	for _, f := range forms() {
		if suffixes[f.suffix] {
			t.Errorf("two forms have the suffix %s", f.suffix)
		}
		suffixes[f.suffix] = true
		if weight, got := formOf("a.weight" + f.suffix); weight != "a.weight" || got != f {
			t.Errorf("a matrix of suffix %s is taken for %q of another form", f.suffix, weight)
		}
	}
	if _, f := formOf("a.weight" + blockScaleSuffix); f != nil {
		t.Errorf("scales are taken for a matrix of %s", f.operator)
	}
}

func TestPrecisionCheck(t *testing.T) {
	cpu, err := ort.ParseProvider("cpu")
	if err != nil {
		t.Fatal(err)
	}
	webgpu, err := ort.ParseProvider("webgpu")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    Precision
		at   ort.Provider
		want string // part of the error; "" for none
	}{
		{"", cpu, ""}, {FP32, cpu, ""}, {INT8, cpu, ""}, {INT4, cpu, ""}, {FP32, webgpu, ""}, {FP16, webgpu, ""},
		{FP16, cpu, "fp16: the cpu provider multiplies no faster in 16 bits; cpu takes fp32, int8 and int4"},
		{INT8, webgpu, "int8 runs on the cpu provider only; webgpu takes fp32 and fp16"},
		{INT4, webgpu, "int4 runs on the cpu provider only; webgpu takes fp32 and fp16"},
		{"int2", cpu, `unknown precision "int2"; known are fp32, fp16, int8, int4`},
	} {
		err := c.p.Check(c.at)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q on %s: %v, want %q", c.p, c.at.Name(), err, c.want)
		}
		if c.p == "int2" && NewBuilder("test", nil, c.p).Err() == nil {
			t.Error("a graph was built in a precision that is not known")
		}
	}
}

// TestPrecisionMemory holds what sizes are planned by.
func TestPrecisionMemory(t *testing.T) {
	for p, want := range map[Precision][2]int64{
		FP32: {1000, 1000}, FP16: {500, 500}, INT8: {260, 1000}, INT4: {160, 1000},
	} {
		if w, v := p.WeightBytes(1000), p.ValueBytes(1000); w != want[0] || v != want[1] {
			t.Errorf("%s: weights take %d and values %d of 1000, want %v", p, w, v, want)
		}
	}
}

// A precision is one row: with it, graphs are built, weights are found and the provider is checked.
func TestOneRow(t *testing.T) {
	const name Precision = "int8-coarse"
	row := *precisions[INT8]
	row.name, row.rank, row.drift = name, 9, 0.5
	row.form = func(int) *form {
		f := *form8
		f.suffix, f.operator = ".coarse", "RowLinearCoarse"
		f.operands = func(b *Builder, weight string, in, out int) []string {
			return []string{b.quantizedWeight(weight+".coarse", onnx.I8, native().shape(in, out)...)}
		}
		return &f
	}
	registerPrecision(row)
	defer delete(precisions, name)
	if list := Precisions(); list[len(list)-1] != name {
		t.Errorf("precisions are %v", list)
	}
	if !HasKernels {
		t.Skip("this processor lacks AVX2, or NEON on Linux: mmserve's own operators are not used on it")
	}
	needs, err := Needs(func(w *Weights) error {
		b := NewBuilder("test", w, name)
		b.Linear(b.Input("x", onnx.F32, "R", 16), "layer", 16, 32, false)
		if !strings.Contains(string(b.Bytes()), "RowLinearCoarse") {
			t.Error("the graph lacks the row's operator")
		}
		return b.Err()
	})
	if err != nil || len(needs) != 1 || needs[0].Name != "layer.weight.coarse" || !name.Quantized() || name.Drift() != 0.5 {
		t.Errorf("the row's layer needs %v, %v", needs, err)
	}
}
