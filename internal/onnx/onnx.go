// Package onnx writes ONNX models: nodes, inputs, outputs, and initializers that are inline or lie in another
// file as external data. It knows the part of the format that mmserve's own graphs use; no importable Go package offers
// the message types. Of models that others wrote it reads what they take and give (ReadHead).
//
// Field numbers are those of onnx.proto3 (IR version 10).
package onnx

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
)

// DType is a TensorProto.DataType.
type DType int

// The element types mmserve's graphs use, with their numbers in onnx.proto3.
const (
	F32  DType = 1
	U8   DType = 2
	I8   DType = 3
	I32  DType = 6
	I64  DType = 7
	Bool DType = 9
	F16  DType = 10
	BF16 DType = 16
)

// irVersion and opset are the oldest that hold everything used here.
const (
	irVersion = 10
	opset     = 21
)

// names are what the format calls the types.
var names = map[DType]string{
	F32: "float32", U8: "uint8", I8: "int8", I32: "int32", I64: "int64", Bool: "bool", F16: "float16", BF16: "bfloat16",
}

// String gives the format's name.
func (t DType) String() string {
	if s, ok := names[t]; ok {
		return s
	}
	return "type " + strconv.Itoa(int(t))
}

// reckons tells whether shapes, lengths, positions and truths are of the type.
func (t DType) reckons() bool { return t == I32 || t == I64 || t == Bool }

// Size is the number of bytes of one value, 0 for types not listed here.
func (t DType) Size() int {
	switch t {
	case U8, I8, Bool:
		return 1
	case F16, BF16:
		return 2
	case F32, I32:
		return 4
	case I64:
		return 8
	}
	return 0
}

// Contrib is the operator domain of ONNX Runtime's own operators.
const Contrib = "com.microsoft"

// Own is the domain of mmserve's own operators, which internal/ort registers on the processors that have them.
const Own = "mmserve"

// Attrs are a node's attributes. A value is an int, a float32, a string, a []int or a *Graph.
type Attrs map[string]any

// Graph is a model under construction. Methods that add a value return its name.
type Graph struct {
	name                                 string
	nodes, initializers, inputs, outputs [][]byte
	inputNames, outputNames              []string
	named                                map[string]bool
	consts                               map[string]string
	// shared with subgraphs, whose names must differ from those around them
	serial   *int
	own      *bool           // a node is of domain Own; shared as well
	integers map[string]bool // values, and names of nodes that touch no others; shared as well
}

// New starts an empty graph.
func New(name string) *Graph {
	return &Graph{name: name, consts: map[string]string{}, named: map[string]bool{}, serial: new(int), own: new(bool),
		integers: map[string]bool{}}
}

// Title is the name that New was given.
func (g *Graph) Title() string { return g.name }

// Inputs lists the names of the graph's inputs in the order they were added.
func (g *Graph) Inputs() []string { return g.inputNames }

// Outputs lists the names of the graph's outputs in the order they were added.
func (g *Graph) Outputs() []string { return g.outputNames }

// fresh makes a value name that no other value has.
func (g *Graph) fresh(stem string) string {
	*g.serial++
	return stem + "." + strconv.Itoa(*g.serial)
}

// Op adds a node of the default domain with one output.
func (g *Graph) Op(op string, attrs Attrs, in ...string) string {
	return g.OpN("", op, attrs, in, 1)[0]
}

// ContribOp adds a node of ONNX Runtime's domain with one output.
func (g *Graph) ContribOp(op string, attrs Attrs, in ...string) string {
	return g.OpN(Contrib, op, attrs, in, 1)[0]
}

// OpN adds a node with n outputs and returns their names. An empty input name is an absent optional input.
func (g *Graph) OpN(domain, op string, attrs Attrs, in []string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = g.fresh(op)
	}
	g.Node(domain, op, attrs, in, out)
	return out
}

// Node adds a node whose outputs have the given names; an empty output name is an output that nobody reads.
func (g *Graph) Node(domain, op string, attrs Attrs, in, out []string) {
	var n message
	for _, s := range in {
		n.text(1, s)
	}
	for _, s := range out {
		n.text(2, s)
	}
	name := g.fresh("n")
	n.text(3, name)
	n.text(4, op)
	g.integers[name] = g.reckons(op, attrs, in)
	for _, s := range out {
		g.integers[s] = g.integers[name]
	}
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		n.bytes(5, attribute(k, attrs[k]))
	}
	if domain != "" {
		n.text(7, domain)
		*g.own = *g.own || domain == Own
	}
	g.nodes = append(g.nodes, n)
}

// reckons tells whether a node gives integers (or truths) out of nothing but integers and shapes.
func (g *Graph) reckons(op string, attrs Attrs, in []string) bool {
	switch op {
	case "Shape", "Size":
		return true
	case "If": // its branches give what they give
		return false
	case "Cast":
		if to, ok := attrs["to"].(int); !ok || !DType(to).reckons() {
			return false
		}
	}
	return !slices.ContainsFunc(in, func(s string) bool { return s != "" && !g.integers[s] })
}

// Reckons tells whether the node of that name computes with integers and shapes only. Such a node is no work for a
// device.
func (g *Graph) Reckons(node string) bool { return g.integers[node] }

func attribute(name string, v any) []byte {
	const float, integer, str, graph, ints = 1, 2, 3, 5, 7
	var a message
	a.text(1, name)
	switch x := v.(type) {
	case int:
		a.varint(3, uint64(int64(x)))
		a.varint(20, integer)
	case float32:
		a.fixed32(2, math.Float32bits(x))
		a.varint(20, float)
	case string:
		a.text(4, x)
		a.varint(20, str)
	case *Graph:
		a.bytes(6, x.graph())
		a.varint(20, graph)
	case []int:
		for _, e := range x {
			a.varint(8, uint64(int64(e)))
		}
		a.varint(20, ints)
	default:
		panic(fmt.Sprintf("onnx: attribute %s has type %T", name, v))
	}
	return a
}

// Input declares a graph input. A dimension is an int, or a string that names a symbolic size.
func (g *Graph) Input(name string, dt DType, dims ...any) string {
	g.inputs = append(g.inputs, valueInfo(name, dt, dims))
	g.inputNames = append(g.inputNames, name)
	g.integers[name] = dt.reckons()
	return name
}

// Output declares the value called name as a graph output.
func (g *Graph) Output(name string, dt DType, dims ...any) {
	g.outputs = append(g.outputs, valueInfo(name, dt, dims))
	g.outputNames = append(g.outputNames, name)
}

func valueInfo(name string, dt DType, dims []any) []byte {
	var shape message
	for _, d := range dims {
		var dim message
		switch x := d.(type) {
		case int:
			dim.varint(1, uint64(x))
		case string:
			dim.text(2, x)
		default:
			panic(fmt.Sprintf("onnx: dimension of %s has type %T", name, d))
		}
		shape.bytes(1, dim)
	}
	var tensor, typ, v message
	tensor.varint(1, uint64(dt))
	tensor.bytes(2, shape)
	typ.bytes(1, tensor)
	v.text(1, name)
	v.bytes(2, typ)
	return v
}

// Inline adds an initializer whose little-endian data is part of the model.
func (g *Graph) Inline(name string, dt DType, dims []int, data []byte) string {
	t := tensorHead(name, dt, dims)
	t.bytes(9, data)
	g.initializers = append(g.initializers, t)
	g.named[name], g.integers[name] = true, dt.reckons()
	return name
}

// External adds an initializer that lies at [offset, offset+length) of the file location, a path relative to
// the folder that the session is told.
func (g *Graph) External(name string, dt DType, dims []int, location string, offset, length int64) string {
	const external = 1
	t := tensorHead(name, dt, dims)
	for _, kv := range [...][2]string{
		{"location", location},
		{"offset", strconv.FormatInt(offset, 10)},
		{"length", strconv.FormatInt(length, 10)},
	} {
		var entry message
		entry.text(1, kv[0])
		entry.text(2, kv[1])
		t.bytes(13, entry)
	}
	t.varint(14, external)
	g.initializers = append(g.initializers, t)
	g.named[name], g.integers[name] = true, dt.reckons()
	return name
}

func tensorHead(name string, dt DType, dims []int) message {
	var t message
	for _, d := range dims {
		t.varint(1, uint64(d))
	}
	t.varint(2, uint64(dt))
	t.text(8, name)
	return t
}

// Has tells whether an initializer of that name was added.
func (g *Graph) Has(name string) bool { return g.named[name] }

// F32s adds a float32 constant under the given name.
func (g *Graph) F32s(name string, dims []int, v []float32) string {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(x))
	}
	return g.Inline(name, F32, dims, b)
}

// F32 gives a float32 scalar constant; equal ones are stored once.
func (g *Graph) F32(v float32) string {
	return g.constant(fmt.Sprintf("f32 %08x", math.Float32bits(v)), F32, nil,
		binary.LittleEndian.AppendUint32(nil, math.Float32bits(v)))
}

// I32 gives an int32 scalar constant; equal ones are stored once.
func (g *Graph) I32(v int32) string {
	return g.constant(fmt.Sprint("i32 ", v), I32, nil, binary.LittleEndian.AppendUint32(nil, uint32(v)))
}

// I64s gives a one-dimensional int64 constant; equal ones are stored once.
func (g *Graph) I64s(v ...int64) string {
	var b []byte
	for _, x := range v {
		b = binary.LittleEndian.AppendUint64(b, uint64(x))
	}
	return g.constant(fmt.Sprint("i64s", v), I64, []int{len(v)}, b)
}

func (g *Graph) constant(key string, dt DType, dims []int, data []byte) string {
	if name, ok := g.consts[key]; ok {
		return name
	}
	name := g.Inline(g.fresh("const"), dt, dims, data)
	g.consts[key] = name
	return name
}

// If adds a node that computes one of two subgraphs, by the boolean cond, and returns their results' names. then and
// otherwise build them and return as many results each; they may use values of g that were added before.
func (g *Graph) If(cond string, then, otherwise func(*Graph) []string) []string {
	branch := func(name string, build func(*Graph) []string) (*Graph, int) {
		sub := New(name)
		sub.serial, sub.own, sub.integers = g.serial, g.own, g.integers
		results := build(sub)
		for _, r := range results {
			var v message
			v.text(1, r) // its type is inferred
			sub.outputs = append(sub.outputs, v)
		}
		return sub, len(results)
	}
	t, n := branch("then", then)
	o, _ := branch("otherwise", otherwise)
	return g.OpN("", "If", Attrs{"then_branch": t, "else_branch": o}, []string{cond}, n)
}

// Bytes serialises the model.
func (g *Graph) Bytes() []byte {
	var m message
	m.varint(1, irVersion)
	m.text(2, "mmserve")
	m.bytes(7, g.graph())
	for _, d := range [...]struct {
		domain  string
		version uint64
	}{{"", opset}, {Contrib, 1}, {Own, 1}} {
		if d.domain == Own && !*g.own {
			continue
		}
		var o message
		o.text(1, d.domain)
		o.varint(2, d.version)
		m.bytes(8, o)
	}
	return m
}

func (g *Graph) graph() message {
	var graph message
	for _, n := range g.nodes {
		graph.bytes(1, n)
	}
	graph.text(2, g.name)
	for _, t := range g.initializers {
		graph.bytes(5, t)
	}
	for _, v := range g.inputs {
		graph.bytes(11, v)
	}
	for _, v := range g.outputs {
		graph.bytes(12, v)
	}
	return graph
}

// message is a protobuf message being written (https://protobuf.dev/programming-guides/encoding).
type message []byte

func (m *message) varint(field int, v uint64) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3)
	*m = binary.AppendUvarint(*m, v)
}

func (m *message) fixed32(field int, v uint32) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3|5)
	*m = binary.LittleEndian.AppendUint32(*m, v)
}

func (m *message) bytes(field int, b []byte) {
	*m = binary.AppendUvarint(*m, uint64(field)<<3|2)
	*m = binary.AppendUvarint(*m, uint64(len(b)))
	*m = append(*m, b...)
}

func (m *message) text(field int, s string) { m.bytes(field, []byte(s)) }
