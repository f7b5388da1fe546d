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
		Domains:    map[string]bool{"": true, Contrib: true},
		Data:       []string{"sample.onnx_data"},
		DataSizes:  map[string]int64{"sample.onnx_data": 156},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	for what, b := range map[string][]byte{"empty": nil, "text": []byte("version https://git-lfs"),
		"cut off": b[:len(b)/2]} {
		if _, err := ReadHead(bytes.NewReader(b), int64(len(b))); err == nil ||
			!strings.Contains(err.Error(), "not an ONNX model") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// raw is a protobuf field of bytes.
func raw(num int, parts ...[]byte) []byte {
	var m message
	m.bytes(num, bytes.Join(parts, nil))
	return m
}

// hostile are models that are refused, by what the refusal says.
func hostile() map[string][]byte {
	model := func(parts ...[]byte) []byte { return raw(7, parts...) }
	external := func(pairs ...string) []byte {
		t := tensorHead("w", F32, []int{4})
		for i := 0; i < len(pairs); i += 2 {
			t.bytes(13, bytes.Join([][]byte{raw(1, []byte(pairs[i])), raw(2, []byte(pairs[i+1]))}, nil))
		}
		t.varint(14, 1)
		return model(raw(5, t))
	}
	tensor := func(data int, dims ...int) []byte {
		t := tensorHead("w", F32, dims)
		t.bytes(9, make([]byte, data))
		return t
	}
	nested := raw(1, raw(4, []byte("Abs")))
	for range 40 {
		nested = raw(1, raw(5, raw(6, nested)))
	}
	var wide message
	for range 100 {
		wide.varint(1, 1)
	}
	return map[string][]byte{
		"has 8 bytes of data":           model(raw(5, tensor(8, 4))),
		"has 4 bytes of data":           model(raw(5, tensor(4, 1<<20, 1<<20))),
		"a file can hold":               model(raw(5, tensor(4, 1<<30, 1<<30, 1<<30))),
		"has 0 bytes of data":           model(raw(5, tensorHead("w", F32, []int{1 << 30}))),
		"64 axes":                       model(raw(5, wide)),
		"deep in one another":           model(nested),
		"two graphs":                    append(model(), model()...),
		"no graph":                      raw(8),
		"without a location":            external("offset", "0"),
		"is given twice":                external("location", "a", "location", "/etc/passwd"),
		`offset "-1"`:                   external("location", "a", "offset", "-1"),
		`length "18446744073709551617"`: external("location", "a", "length", "18446744073709551617"),
		"are said to be 17 bytes":       external("location", "a", "length", "17"),
		"a name of":                     model(raw(1, raw(4, make([]byte, maxText+1)))),
	}
}

func TestRefusesHostileModels(t *testing.T) {
	for want, b := range hostile() {
		if _, err := ReadHead(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want a refusal that says %q", err, want)
		}
	}
	if _, err := ReadHead(bytes.NewReader(nil), maxSize+1); err == nil {
		t.Error("a file longer than a message was read")
	}
	many := raw(7, bytes.Repeat([]byte{8 << 3, 0}, maxFields+1))
	if _, err := ReadHead(bytes.NewReader(many), int64(len(many))); err == nil ||
		!strings.Contains(err.Error(), "fields") {
		t.Errorf("of many fields: %v", err)
	}
}

// Domains and external data are seen wherever a model can name them.
func TestReadsAllGraphs(t *testing.T) {
	own := raw(1, raw(4, []byte("RowLinear8")), raw(7, []byte(Own)))
	far := tensorHead("w", F32, []int{2})
	far.bytes(13, bytes.Join([][]byte{raw(1, []byte("location")), raw(2, []byte("far"))}, nil))
	inside := func(part []byte) []byte { return raw(7, raw(1, raw(5, raw(6, raw(1, raw(5, raw(11, part))))))) }
	for what, b := range map[string][]byte{
		"main": raw(7, own), "a branch in a branch": inside(own), "an import": append(raw(7), raw(8, raw(1, []byte(Own)))...),
		"a function":          append(raw(7), raw(25, raw(7, own[2:]))...),
		"a function's domain": append(raw(7), raw(25, raw(10, []byte(Own)))...),
		"a function's import": append(raw(7), raw(25, raw(9, raw(1, []byte(Own))))...),
	} {
		if h, err := ReadHead(bytes.NewReader(b), int64(len(b))); err != nil || !h.Domains[Own] {
			t.Errorf("%s: %v %v", what, h.Domains, err)
		}
	}
	for what, b := range map[string][]byte{
		"main": raw(7, raw(5, far)), "a branch": inside(raw(5, far)), "a constant": raw(7, raw(1, raw(5, raw(5, far)))),
		"a list of constants": raw(7, raw(1, raw(5, raw(10, far)))), "sparse values": raw(7, raw(15, raw(1, far))),
		"sparse indices": inside(raw(15, raw(2, far))), "a sparse constant": raw(7, raw(1, raw(5, raw(22, raw(1, far))))),
		"a function's constant": append(raw(7), raw(25, raw(7, raw(5, raw(5, far))))...),
		"a function's default":  append(raw(7), raw(25, raw(11, raw(5, far)))...),
	} {
		if h, err := ReadHead(bytes.NewReader(b), int64(len(b))); err != nil || h.DataSizes["far"] != 8 {
			t.Errorf("%s: %v %v", what, h.DataSizes, err)
		}
	}
}

func FuzzReadHead(f *testing.F) {
	f.Add(sample())
	for _, b := range hostile() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ReadHead(bytes.NewReader(b), int64(len(b)))
		if n := len(h.Inputs) + len(h.Outputs) + len(h.Data); err == nil && n > len(b) {
			t.Errorf("%d values in %d bytes", n, len(b))
		}
	})
}
