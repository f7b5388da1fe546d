package openai

import (
	"fmt"
	"math"
	"strconv"
)

// reading is a body that is being read: its first fault, and the fields that nothing read.
type reading struct {
	err     *Error
	ignored []string
}

// object reads the members of a JSON object by name. After a fault it goes on, and gives zero values.
type object struct {
	*reading
	path string // of the object, with a dot at its end; "" at the top
	node *node
	read map[string]bool
}

func (r *reading) object(path string, n *node) object {
	return object{reading: r, path: path, node: n, read: map[string]bool{}}
}

// fault notes what is wrong with a parameter, unless something was before.
func (r *reading) fault(param, code, format string, args ...any) {
	if r.err == nil {
		r.err = NewError(InvalidRequest, param, code, format, args...)
	}
}

// wrongType is the fault of a value that is none of what is wanted.
func (r *reading) wrongType(param string, n *node, want string) {
	r.fault(param, CodeInvalidType, "%v; want %s", n.kind, want)
}

// get is a member, which counts as read; nil where there is none, or null.
func (o object) get(name string) *node {
	o.read[name] = true
	return o.node.member(name)
}

// known takes note that members mean nothing here, and may be there.
func (o object) known(names ...string) {
	for _, name := range names {
		o.read[name] = true
	}
}

// mostIgnored bounds how many unknown fields are kept, and longestIgnored each of their names.
const mostIgnored, longestIgnored = 32, 64

// done notes the members that nobody read.
func (o object) done() {
	for i := range o.node.list {
		name := o.node.list[i].name
		if o.read[name] || len(o.ignored) == mostIgnored {
			continue
		}
		if name = o.path + name; len(name) > longestIgnored {
			name = name[:longestIgnored]
		}
		o.ignored = append(o.ignored, name)
	}
}

// sub is a member that is an object; nil where there is none.
func (o object) sub(name string) *object {
	n := o.get(name)
	if n == nil {
		return nil
	}
	if n.kind != kindObject {
		o.wrongType(o.path+name, n, "an object")
		return nil
	}
	sub := o.reading.object(o.path+name+".", n)
	return &sub
}

// list is a member that is a list; nil where there is none.
func (o object) list(name string) []node {
	n := o.get(name)
	if n == nil {
		return nil
	}
	if n.kind != kindList {
		o.wrongType(o.path+name, n, "a list")
		return nil
	}
	return n.list
}

func (o object) str(name string) string {
	n := o.get(name)
	if n == nil {
		return ""
	}
	if n.kind != kindText {
		o.wrongType(o.path+name, n, "a string")
		return ""
	}
	return n.text()
}

// required is a string that has to be there; want says what is.
func (o object) required(name, want string) string {
	if o.get(name) == nil {
		o.fault(o.path+name, CodeMissing, "none; want %s", want)
	}
	return o.str(name)
}

// strs are the strings of a list.
func (o object) strs(name string) []string {
	var out []string
	for i, n := range o.list(name) {
		if n.kind != kindText {
			o.wrongType(fmt.Sprintf("%s%s[%d]", o.path, name, i), &n, "a string")
			return nil
		}
		out = append(out, n.text())
	}
	return out
}

func (o object) boolean(name string) bool {
	b := o.optionalBool(name)
	return b != nil && *b
}

func (o object) optionalBool(name string) *bool {
	n := o.get(name)
	if n == nil {
		return nil
	}
	is := n.kind == kindTrue
	if !is && n.kind != kindFalse {
		o.wrongType(o.path+name, n, "a boolean")
		return nil
	}
	return &is
}

func (o object) float(name string) *float32 {
	n := o.get(name)
	if n == nil {
		return nil
	}
	return o.reading.float(o.path+name, n)
}

func (r *reading) float(param string, n *node) *float32 {
	if n.kind != kindNumber {
		r.wrongType(param, n, "a number")
		return nil
	}
	f, err := strconv.ParseFloat(string(clip(n.raw)), 32)
	if err != nil || len(n.raw) > longestNumber {
		r.fault(param, CodeInvalidValue, "a number that is too large, or has more than %d digits", longestNumber)
		return nil
	}
	f32 := float32(f)
	return &f32
}

// longestNumber bounds what is read of a number.
const longestNumber = 64

func clip(raw []byte) []byte { return raw[:min(len(raw), longestNumber)] }

// integer is a whole number from least to most.
func (o object) integer(name string, least, most int64) *int64 {
	n := o.get(name)
	if n == nil {
		return nil
	}
	return o.reading.integer(o.path+name, n, least, most)
}

func (r *reading) integer(param string, n *node, least, most int64) *int64 {
	if n.kind != kindNumber {
		r.wrongType(param, n, "a whole number")
		return nil
	}
	i, err := strconv.ParseInt(string(clip(n.raw)), 10, 64)
	if err != nil { // 5.0 and 1e3 are whole, too
		f, wrong := strconv.ParseFloat(string(clip(n.raw)), 64)
		if i = int64(f); wrong == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			err = nil
		}
	}
	if err != nil || i < least || i > most || len(n.raw) > longestNumber {
		r.fault(param, CodeInvalidValue, "a number that is not whole, or out of range; want %d to %d", least, most)
		return nil
	}
	return &i
}

// count is a whole number from 0 to what 32 bits hold.
func (o object) count(name string) *uint32 { return o.countFrom(name, 0) }

// positive is a count of at least 1.
func (o object) positive(name string) *uint32 { return o.countFrom(name, 1) }

func (o object) countFrom(name string, least int64) *uint32 {
	i := o.integer(name, least, math.MaxUint32)
	if i == nil {
		return nil
	}
	n := uint32(*i)
	return &n
}

// counts are those of a list.
func (o object) counts(name string) []uint32 {
	var out []uint32
	for i, n := range o.list(name) {
		c := o.reading.integer(fmt.Sprintf("%s%s[%d]", o.path, name, i), &n, 0, math.MaxUint32)
		if c == nil {
			return nil
		}
		out = append(out, uint32(*c))
	}
	return out
}
