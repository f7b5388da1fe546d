package onnx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Head is what a model file says of itself, without its weights.
type Head struct {
	// Inputs are those that a caller feeds: not the ones that have an initializer.
	Inputs, Outputs []Value
	// Parameters is the number of values of all initializers of the main graph.
	Parameters int64
	// Operators are the types of the nodes, those of branches, loops and functions too.
	Operators map[string]bool
	// Domains are those that the model imports, and those of its nodes and functions.
	Domains map[string]bool
	// Data are the files that hold external data of any tensor, relative to the model's, each once.
	Data []string
	// DataSizes are the bytes that each of them must have at least.
	DataSizes map[string]int64
}

// Value is an input or output of a model.
type Value struct {
	Name string
	Type DType
	// Dims is nil where the file does not say.
	Dims []Dim
}

// Dim is one dimension: its size, or -1 and a name that may be empty.
type Dim struct {
	Size int
	Name string
}

// Find returns the value of that name.
func Find(list []Value, name string) (Value, bool) {
	for _, v := range list {
		if v.Name == name {
			return v, true
		}
	}
	return Value{}, false
}

// Bounds of what is read of a file: honest models stay far below them.
const (
	maxSize   = 2 << 30  // of a protobuf message
	maxText   = 1 << 12  // bytes of a name: longer ones are no names
	maxTexts  = 64 << 20 // of all names
	maxFields = 1 << 22  // fields looked at
	maxAxes   = 64
	maxNested = 16 // graphs in one another
)

// reading is what ReadHead knows while it reads.
type reading struct {
	Head
	weights map[string]bool // names of the main graph's initializers
	texts   int
}

// text is a name, which counts against all names.
func (h *reading) text(s section) (string, error) {
	t, err := s.text()
	if h.texts += len(t); err == nil && h.texts > maxTexts {
		err = fmt.Errorf("names of more than %d bytes", maxTexts)
	}
	return t, err
}

// ReadHead reads a model of size bytes. It passes over the weights, so that files of any size take little time and
// memory. All graphs are read: those of branches, loops and functions, too.
func ReadHead(r io.ReaderAt, size int64) (Head, error) {
	h := reading{Head: Head{Operators: map[string]bool{}, Domains: map[string]bool{}}, weights: map[string]bool{}}
	found, err := false, error(nil)
	if size > maxSize {
		return Head{}, fmt.Errorf("not an ONNX model: %d bytes, a model without its external data has %d at most", size, maxSize)
	}
	left := maxFields
	err = section{&window{r: r, size: size}, 0, size, &left}.each(func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 7: // ModelProto.graph
			if found {
				return errors.New("it has two graphs")
			}
			found = true
			return h.graph(f.body, 0)
		case 8: // opset_import
			return h.domain(f.body, 1)
		case 25: // functions
			return h.function(f.body)
		}
		return nil
	})
	if err == nil && !found {
		err = errors.New("it has no graph")
	}
	if err != nil {
		return Head{}, fmt.Errorf("not an ONNX model: %w", err)
	}
	fed := h.Inputs[:0]
	for _, v := range h.Inputs {
		if !h.weights[v.Name] {
			fed = append(fed, v)
		}
	}
	h.Inputs = fed
	return h.Head, nil
}

// domain reads the domain that a message has in the given field.
func (h *reading) domain(s section, num protowire.Number) error {
	return s.each(func(f field) error {
		if f.num != num || f.typ != protowire.BytesType {
			return nil
		}
		d, err := h.text(f.body)
		h.Domains[d] = true
		return err
	})
}

func (h *reading) function(s section) error {
	return s.each(func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 7: // FunctionProto.node
			return h.node(f.body, 1)
		case 9: // opset_import
			return h.domain(f.body, 1)
		case 10: // domain
			d, err := h.text(f.body)
			h.Domains[d] = true
			return err
		case 11: // attribute_proto
			return h.attribute(f.body, 1)
		}
		return nil
	})
}

// graph reads the main graph, or one that is nested in it.
func (h *reading) graph(s section, nested int) error {
	if nested > maxNested {
		return fmt.Errorf("graphs are more than %d deep in one another", maxNested)
	}
	return s.each(func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 1: // GraphProto.node
			return h.node(f.body, nested)
		case 5: // initializer
			return h.tensor(f.body, nested == 0)
		case 15: // sparse_initializer
			return h.sparse(f.body)
		case 11, 12: // input, output
			if nested > 0 {
				return nil
			}
			v, err := h.value(f.body)
			if f.num == 11 {
				h.Inputs = append(h.Inputs, v)
			} else {
				h.Outputs = append(h.Outputs, v)
			}
			return err
		}
		return nil
	})
}

// node reads a node's operator, and what its attributes hold.
func (h *reading) node(s section, nested int) error {
	s, err := s.small()
	if err != nil {
		return err
	}
	return s.each(func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 4, 7: // NodeProto.op_type, domain
			t, err := h.text(f.body)
			if f.num == 4 {
				h.Operators[t] = true
			} else {
				h.Domains[t] = true
			}
			return err
		case 5: // attribute
			return h.attribute(f.body, nested)
		}
		return nil
	})
}

func (h *reading) attribute(s section, nested int) error {
	return s.each(func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 5, 10: // AttributeProto.t, tensors
			return h.tensor(f.body, false)
		case 6, 11: // g, graphs
			return h.graph(f.body, nested+1)
		case 22, 23: // sparse_tensor, sparse_tensors
			return h.sparse(f.body)
		}
		return nil
	})
}

func (h *reading) sparse(s section) error {
	return s.each(func(f field) error {
		if (f.num == 1 || f.num == 2) && f.typ == protowire.BytesType { // SparseTensorProto.values, indices
			return h.tensor(f.body, false)
		}
		return nil
	})
}

// value reads a ValueInfoProto. Of types that are no tensors only the name is read.
func (h *reading) value(s section) (v Value, err error) {
	err = s.each(func(f field) (err error) {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 1: // name
			v.Name, err = h.text(f.body)
		case 2: // type
			err = f.body.each(func(f field) error {
				if f.num != 1 || f.typ != protowire.BytesType { // TypeProto.tensor_type
					return nil
				}
				return h.shape(&v, f.body)
			})
		}
		return err
	})
	return v, err
}

func (h *reading) shape(v *Value, s section) error {
	return s.each(func(f field) error {
		switch {
		case f.num == 1 && f.typ == protowire.VarintType: // TypeProto.Tensor.elem_type
			v.Type = DType(f.value & math.MaxInt32)
		case f.num == 2 && f.typ == protowire.BytesType: // shape
			v.Dims = []Dim{}
			return f.body.each(func(f field) error {
				if f.num != 1 || f.typ != protowire.BytesType { // TensorShapeProto.dim
					return nil
				}
				d := Dim{Size: -1}
				err := f.body.each(func(f field) (err error) {
					switch {
					case f.num == 1 && f.typ == protowire.VarintType && f.value <= math.MaxInt32: // dim_value
						d.Size = int(f.value)
					case f.num == 2 && f.typ == protowire.BytesType: // dim_param
						d.Name, err = h.text(f.body)
					}
					return err
				})
				if v.Dims = append(v.Dims, d); len(v.Dims) > maxAxes {
					return fmt.Errorf("a value of more than %d axes", maxAxes)
				}
				return err
			})
		}
		return nil
	})
}

// section is a protobuf message that lies at [at, end) of a file.
type section struct {
	r       io.ReaderAt
	at, end int64
	left    *int // fields that may still be looked at
}

// field is one field of a message: a varint's value, or where its bytes lie.
type field struct {
	num   protowire.Number
	typ   protowire.Type
	value uint64
	body  section
}

var errWire = errors.New("damaged or cut off")

// each gives the fields of the message in order.
func (s section) each(do func(field) error) error {
	for s.at < s.end {
		if *s.left--; *s.left < 0 {
			return fmt.Errorf("more than %d fields", maxFields)
		}
		f, err := s.next()
		if err != nil {
			return err
		}
		if err := do(f); err != nil {
			return err
		}
	}
	return nil
}

func (s *section) next() (field, error) {
	head, err := s.peek(2 * maxVarint)
	if err != nil {
		return field{}, err
	}
	num, typ, n := protowire.ConsumeTag(head)
	if n < 0 {
		return field{}, errWire
	}
	s.at += int64(n)
	f := field{num: num, typ: typ}
	switch typ {
	case protowire.VarintType, protowire.BytesType:
		v, m := protowire.ConsumeVarint(head[n:])
		if m < 0 {
			return field{}, errWire
		}
		s.at += int64(m)
		if f.value = v; typ == protowire.VarintType {
			return f, nil
		}
		if v > uint64(s.end-s.at) {
			return field{}, errWire
		}
		f.body = section{s.r, s.at, s.at + int64(v), s.left}
		s.at = f.body.end
	case protowire.Fixed32Type:
		s.at += 4
	case protowire.Fixed64Type:
		s.at += 8
	default:
		return field{}, errWire
	}
	if s.at > s.end {
		return field{}, errWire
	}
	return f, nil
}

const maxVarint = 10

// small reads a message into memory if it is small, so that its fields need no reading of the file one by one.
func (s section) small() (section, error) {
	const most = 1 << 14
	if s.end-s.at > most {
		return s, nil
	}
	b, err := s.peek(most)
	return section{bytes.NewReader(b), 0, int64(len(b)), s.left}, err
}

// peek reads up to n of the next bytes.
func (s *section) peek(n int) ([]byte, error) {
	b := make([]byte, min(int64(n), s.end-s.at))
	if _, err := s.r.ReadAt(b, s.at); err != nil {
		return nil, errors.Join(errWire, err)
	}
	return b, nil
}

// varints gives the values of a packed field.
func (s section) varints(do func(uint64) error) error {
	for s.at < s.end {
		if *s.left--; *s.left < 0 {
			return fmt.Errorf("more than %d fields", maxFields)
		}
		b, err := s.peek(maxVarint)
		if err != nil {
			return err
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return errWire
		}
		s.at += int64(n)
		if err := do(v); err != nil {
			return err
		}
	}
	return nil
}

func (s section) text() (string, error) {
	if s.end-s.at > maxText {
		return "", fmt.Errorf("a name of %d bytes", s.end-s.at)
	}
	b, err := s.peek(maxText)
	return string(b), err
}

// window reads a file in pieces, so that small fields cost no call each.
type window struct {
	r    io.ReaderAt
	size int64
	at   int64
	buf  []byte
}

// ReadAt is io.ReaderAt's, for one goroutine.
func (w *window) ReadAt(b []byte, at int64) (int, error) {
	const most = 1 << 14
	if len(b) > most {
		return w.r.ReadAt(b, at)
	}
	if at < w.at || at+int64(len(b)) > w.at+int64(len(w.buf)) {
		w.at, w.buf = at, append(w.buf[:0], make([]byte, max(0, min(most, w.size-at)))...)
		if n, err := w.r.ReadAt(w.buf, at); n < len(w.buf) {
			w.buf = w.buf[:n]
			return copy(b, w.buf), err
		}
	}
	n := copy(b, w.buf[at-w.at:])
	if n < len(b) {
		return n, io.ErrUnexpectedEOF
	}
	return n, nil
}
