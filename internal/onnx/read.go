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
	// Operators are the types of the nodes, those of branches and loops too.
	Operators map[string]bool
	// Data are the files that hold external data, relative to the model's, each once.
	Data []string
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

// maxText bounds names: longer ones are no names.
const maxText = 1 << 12

// ReadHead reads a model of size bytes. It passes over the weights, so that files of any size take little time and memory.
func ReadHead(r io.ReaderAt, size int64) (Head, error) {
	h := Head{Operators: map[string]bool{}}
	found := false
	weights := map[string]bool{}
	err := section{r, 0, size}.each(func(f field) error {
		if f.num != 7 || f.typ != protowire.BytesType { // ModelProto.graph
			return nil
		}
		found = true
		return h.graph(f.body, weights)
	})
	if err == nil && !found {
		err = errors.New("it has no graph")
	}
	if err != nil {
		return Head{}, fmt.Errorf("not an ONNX model: %w", err)
	}
	fed := h.Inputs[:0]
	for _, v := range h.Inputs {
		if !weights[v.Name] {
			fed = append(fed, v)
		}
	}
	h.Inputs = fed
	return h, nil
}

func (h *Head) graph(s section, weights map[string]bool) error {
	return s.each(func(f field) error {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 1: // GraphProto.node
			return h.node(f.body, 0)
		case 5: // initializer
			return h.initializer(f.body, weights)
		case 11, 12: // input, output
			v, err := readValue(f.body)
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

// maxNested bounds how deep graphs lie in one another.
const maxNested = 16

// node reads a node's operator, and those of the graphs that it holds.
func (h *Head) node(s section, nested int) error {
	if nested > maxNested {
		return fmt.Errorf("graphs are more than %d deep in one another", maxNested)
	}
	s, err := s.small()
	if err != nil {
		return err
	}
	return s.each(func(f field) error {
		switch {
		case f.num == 4 && f.typ == protowire.BytesType: // NodeProto.op_type
			op, err := f.body.text()
			h.Operators[op] = true
			return err
		case f.num == 5 && f.typ == protowire.BytesType: // attribute
			return f.body.each(func(f field) error {
				if f.num != 6 && f.num != 11 || f.typ != protowire.BytesType { // AttributeProto.g, graphs
					return nil
				}
				return f.body.each(func(f field) error {
					if f.num != 1 || f.typ != protowire.BytesType { // GraphProto.node
						return nil
					}
					return h.node(f.body, nested+1)
				})
			})
		}
		return nil
	})
}

func (h *Head) initializer(s section, weights map[string]bool) error {
	elems := int64(1)
	dim := func(n uint64) error {
		if n > math.MaxInt32 || n > 0 && elems > 1<<48/int64(n) {
			return errors.New("an initializer has more values than a file can hold")
		}
		elems *= int64(n)
		return nil
	}
	err := s.each(func(f field) error {
		switch {
		case f.num == 1 && f.typ == protowire.VarintType: // TensorProto.dims
			return dim(f.value)
		case f.num == 1 && f.typ == protowire.BytesType: // the same, packed
			return f.body.varints(dim)
		case f.num == 8 && f.typ == protowire.BytesType: // name
			name, err := f.body.text()
			weights[name] = true
			return err
		case f.num == 13 && f.typ == protowire.BytesType: // external_data
			return h.data(f.body)
		}
		return nil
	})
	h.Parameters += elems
	return err
}

func (h *Head) data(s section) error {
	var key, value string
	err := s.each(func(f field) (err error) {
		switch {
		case f.num == 1 && f.typ == protowire.BytesType: // StringStringEntryProto.key
			key, err = f.body.text()
		case f.num == 2 && f.typ == protowire.BytesType: // value
			value, err = f.body.text()
		}
		return err
	})
	if err != nil || key != "location" {
		return err
	}
	for _, d := range h.Data {
		if d == value {
			return nil
		}
	}
	h.Data = append(h.Data, value)
	return nil
}

// readValue reads a ValueInfoProto. Of types that are no tensors only the name is read.
func readValue(s section) (v Value, err error) {
	err = s.each(func(f field) (err error) {
		if f.typ != protowire.BytesType {
			return nil
		}
		switch f.num {
		case 1: // name
			v.Name, err = f.body.text()
		case 2: // type
			err = f.body.each(func(f field) error {
				if f.num != 1 || f.typ != protowire.BytesType { // TypeProto.tensor_type
					return nil
				}
				return v.tensor(f.body)
			})
		}
		return err
	})
	return v, err
}

func (v *Value) tensor(s section) error {
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
						d.Name, err = f.body.text()
					}
					return err
				})
				v.Dims = append(v.Dims, d)
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
		f.body = section{s.r, s.at, s.at + int64(v)}
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
	return section{bytes.NewReader(b), 0, int64(len(b))}, err
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
