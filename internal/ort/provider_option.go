package ort

import (
	"slices"
	"strconv"
	"strings"
)

// option is a setting of a provider: what it may be, in words and as a check. ONNX Runtime ignores keys it does not
// know, and some values as well.
type option struct {
	allowed string
	ok      func(string) bool
}

// oneOf is a setting with a few values.
func oneOf(values ...string) option {
	return option{strings.Join(values, " or "), func(s string) bool { return slices.Contains(values, s) }}
}

// flag is a setting that is on or off.
var flag = oneOf("0", "1")

// unrecorded is a setting that has a provider record a session's first runs and play them again, over the memory that
// they were recorded with, whatever tensors later runs are given. mmserve's runs are not of one shape over one memory.
var unrecorded = option{"0: a recorded run would be played over another request's memory", func(s string) bool { return s == "0" }}

// whole is a number without a fraction, in a range.
func whole(least, most int64) option {
	allowed := strconv.FormatInt(least, 10) + " to " + strconv.FormatInt(most, 10)
	return option{allowed, func(s string) bool {
		n, err := strconv.ParseInt(s, 10, 64)
		return err == nil && n >= least && n <= most && s == strconv.FormatInt(n, 10)
	}}
}

// device is the number of one of several devices.
var device = whole(0, 255)

// size is a number of bytes.
var size = whole(1, 1<<62)

// path is a file or folder.
var path = option{"a path", func(s string) bool { return s != "" && !strings.ContainsRune(s, 0) }}
