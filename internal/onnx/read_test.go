package onnx

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

// sample is a model with all that a head tells of.
func sample() []byte {
	g := New("sample")
	g.Input("x", F16, "batch", 3, "a + b")
	g.Input("keep", I64)
	g.Input("w", F32, 2, 2)
	g.F32s("w", []int{2, 2}, []float32{1, 2, 3, 4})
	g.External("far", F32, []int{5, 6}, "sample.onnx_data", 8, 120)
	g.External("farther", F32, []int{7}, "sample.onnx_data", 128, 28)
	cond := g.Op("Cast", Attrs{"to": int(Bool)}, "keep")
	same := func(op string) func(*Graph) []string {
		return func(g *Graph) []string { return []string{g.Op(op, nil, "x")} }
	}
	inner := func(g *Graph) []string { return g.If(cond, same("Abs"), same("Neg")) }
	g.Node("", "Identity", nil, []string{g.If(cond, inner, same("Relu"))[0]}, []string{"y"})
	g.Output("y", Bool, "batch", 0)
	return g.Bytes()
}

func TestReadHead(t *testing.T) {
	b := sample()
	got, err := ReadHead(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	want := Head{
		Inputs: []Value{
			{"x", F16, []Dim{{-1, "batch"}, {3, ""}, {-1, "a + b"}}},
			{"keep", I64, []Dim{}},
		},
		Outputs:    []Value{{"y", Bool, []Dim{{-1, "batch"}, {0, ""}}}},
		Parameters: 4 + 30 + 7,
		Operators:  map[string]bool{"Cast": true, "If": true, "Abs": true, "Neg": true, "Relu": true, "Identity": true},
		Data:       []string{"sample.onnx_data"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	for what, b := range map[string][]byte{"empty": nil, "text": []byte("version https://git-lfs"), "cut off": b[:len(b)/2]} {
		if _, err := ReadHead(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), "not an ONNX model") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzReadHead(f *testing.F) {
	f.Add(sample())
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHead(bytes.NewReader(b), int64(len(b)))
		if n := len(h.Inputs) + len(h.Outputs) + len(h.Data); err == nil && n > len(b) {
			t.Errorf("%d values in %d bytes", n, len(b))
		}
	})
}
