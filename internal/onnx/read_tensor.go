package onnx

import (
	"errors"
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// bits are the widths of the fixed-width types by their number in onnx.proto3; 0 where there is none.
var bits = [...]int64{
	1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
	17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}

// storage is what a TensorProto says of its values.
type storage struct {
	elems    int64
	axes     int
	typ      uint64
	raw      int64 // bytes of raw_data, -1 without
	typed    int64 // bytes of the typed fields
	external map[string]string
	away     bool // data_location is EXTERNAL
}

// tensor reads a tensor's name, size and where its data lies, and judges whether it can have the values that it claims.
func (h *reading) tensor(s section, parameter bool) error {
	t := storage{elems: 1, raw: -1}
	err := s.each(func(f field) error {
		switch {
		case f.num == 1 && f.typ == protowire.VarintType: // TensorProto.dims
			return t.dim(f.value)
		case f.num == 1 && f.typ == protowire.BytesType: // the same, packed
			return f.body.varints(t.dim)
		case f.num == 2 && f.typ == protowire.VarintType: // data_type
			t.typ = f.value
		case f.num == 8 && f.typ == protowire.BytesType: // name
			name, err := h.text(f.body)
			if parameter {
				h.weights[name] = true
			}
			return err
		case f.num == 9 && f.typ == protowire.BytesType: // raw_data
			t.raw = f.body.end - f.body.at
		case f.num == 4 || f.num == 5 || f.num == 6 || f.num == 7 || f.num == 10 || f.num == 11: // float_data and its kin
			t.typed += max(1, f.body.end-f.body.at) * fixedWidth(f.typ)
		case f.num == 13 && f.typ == protowire.BytesType: // external_data
			return h.entry(f.body, &t)
		case f.num == 14 && f.typ == protowire.VarintType: // data_location
			t.away = f.value == 1
		}
		return nil
	})
	if err != nil {
		return err
	}
	if parameter {
		if h.Parameters > math.MaxInt64-t.elems {
			return errors.New("more parameters than a file can hold")
		}
		h.Parameters += t.elems
	}
	if t.away || len(t.external) > 0 {
		return h.data(&t)
	}
	return t.check()
}

func fixedWidth(t protowire.Type) int64 {
	switch t {
	case protowire.Fixed64Type:
		return 8
	case protowire.Fixed32Type:
		return 4
	}
	return 1
}

func (t *storage) dim(n uint64) error {
	if t.axes++; t.axes > maxAxes {
		return fmt.Errorf("an initializer of more than %d axes", maxAxes)
	}
	if n > math.MaxInt32 || n > 0 && t.elems > 1<<48/int64(n) {
		return errors.New("an initializer has more values than a file can hold")
	}
	t.elems *= int64(n)
	return nil
}

// size is the number of bytes of the values, -1 where the type has no width.
func (t *storage) size() int64 {
	if t.typ >= uint64(len(bits)) || bits[t.typ] == 0 {
		return -1
	}
	return (t.elems*bits[t.typ] + 7) / 8
}

// check judges data that the file itself holds. Of typed fields a byte holds four values at most.
func (t *storage) check() error {
	if size := t.size(); t.raw >= 0 && size >= 0 {
		if size != t.raw {
			return fmt.Errorf("an initializer of %d values, %d bytes, has %d bytes of data", t.elems, size, t.raw)
		}
		return nil
	}
	if t.elems > 4*(t.typed+max(0, t.raw)) {
		return fmt.Errorf("an initializer of %d values has %d bytes of data", t.elems, t.typed+max(0, t.raw))
	}
	return nil
}

// entry reads one property of external data.
func (h *reading) entry(s section, t *storage) error {
	var key, value string
	err := s.each(func(f field) (err error) {
		switch {
		case f.num == 1 && f.typ == protowire.BytesType: // StringStringEntryProto.key
			key, err = h.text(f.body)
		case f.num == 2 && f.typ == protowire.BytesType: // value
			value, err = h.text(f.body)
		}
		return err
	})
	if err != nil {
		return err
	}
	if t.external == nil {
		t.external = map[string]string{}
	}
	if _, twice := t.external[key]; twice {
		return fmt.Errorf("external data: %q is given twice", key)
	}
	t.external[key] = value
	return nil
}

// data judges where external data lies, and keeps how long its file has to be.
func (h *reading) data(t *storage) error {
	place, ok := t.external["location"]
	if !ok {
		return errors.New("external data without a location")
	}
	number := func(key string, otherwise int64) (int64, error) {
		text, ok := t.external[key]
		if !ok {
			return otherwise, nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 0 || n > 1<<52 {
			return 0, fmt.Errorf("external data: %s %q, want bytes", key, text)
		}
		return n, nil
	}
	size := t.size()
	offset, err := number("offset", 0)
	if err != nil {
		return err
	}
	length, err := number("length", max(0, size))
	if err != nil {
		return err
	}
	if size >= 0 && length != size && length != 0 { // ONNX Runtime takes 0 for all that is needed
		return fmt.Errorf("external data: %d values, %d bytes, are said to be %d bytes", t.elems, size, length)
	}
	if h.DataSizes == nil {
		h.DataSizes = map[string]int64{}
	}
	if _, known := h.DataSizes[place]; !known {
		h.Data = append(h.Data, place)
	}
	h.DataSizes[place] = max(h.DataSizes[place], offset+max(length, size))
	return nil
}
