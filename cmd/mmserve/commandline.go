package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
)

// What all commands share of how they are typed: names of any bytes, ranges of numbers, help, and what to do about a
// mistake.

// versionFlag prints the version.
type versionFlag bool

// BeforeReset is before anything else of the command line counts.
func (versionFlag) BeforeReset(app *kong.Kong) error {
	fmt.Fprintln(app.Stdout, "mmserve", programVersion())
	app.Exit(0)
	return nil
}

// helpCmd stands in the list of commands; helpArguments does what it is for.
type helpCmd struct {
	Command []string `arg:"" optional:"" help:"Which command."`
}

// helpArguments has `help COMMAND` be `COMMAND --help`.
func helpArguments(args []string) []string {
	if len(args) == 0 || args[0] != "help" {
		return args
	}
	var command []string
	for _, word := range args[1:] {
		if !strings.HasPrefix(word, "-") {
			command = append(command, word)
		}
	}
	return append(command, "--help")
}

// stringMapper takes a text as it is. Kong's own turns bytes that are no UTF-8 into others, so that a file of such a
// name would not be found.
var stringMapper = kong.KindMapper(reflect.String, kong.MapperFunc(decodeString))

func decodeString(ctx *kong.DecodeContext, to reflect.Value) error {
	token, err := ctx.Scan.PopValue("string")
	if err != nil {
		return err
	}
	text, ok := token.Value.(string)
	if !ok { // a file of the configuration has numbers
		text = fmt.Sprint(token.Value)
	}
	to.SetString(text)
	return nil
}

// checkRanges refuses numbers outside of what their flags' tags say: range:"0..2" has both ends in it, and either may
// be left out. What is not given is not looked at, nor is a default.
func checkRanges(k *kong.Context) error {
	for _, flag := range k.Flags() {
		tag := flag.Tag.Get("range")
		if tag == "" || !flag.Set && !fromEnvironment(flag) {
			continue
		}
		least, most, _ := strings.Cut(tag, "..")
		value := flag.Target
		for value.Kind() == reflect.Pointer && !value.IsNil() {
			value = value.Elem()
		}
		if !within(value, least, most) {
			return fmt.Errorf("--%s %v: want %s", flag.Name, value.Interface(), rangeText(least, most))
		}
	}
	return nil
}

func fromEnvironment(flag *kong.Flag) bool {
	for _, name := range flag.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return true
		}
	}
	return false
}

func rangeText(least, most string) string {
	switch {
	case most == "":
		return least + " or more"
	case least == "":
		return "at most " + most
	}
	return least + " to " + most
}

// within compares as exactly as the type allows. NaN is nowhere within.
func within(v reflect.Value, least, most string) bool {
	bound := func(text string, otherwise float64) float64 {
		if d, err := time.ParseDuration(text); err == nil && v.Type() == reflect.TypeFor[time.Duration]() {
			return float64(d)
		}
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			return f
		}
		return otherwise
	}
	var f float64
	switch {
	case v.CanInt():
		f = float64(v.Int())
	case v.CanUint():
		f = float64(v.Uint())
	case v.CanFloat():
		f = v.Float()
	default:
		return true
	}
	return f >= bound(least, f) && f <= bound(most, f)
}

// advised adds to an error of the command line what to do.
func advised(err error, args []string) error {
	text := err.Error()
	for _, arg := range args {
		if arg == "--" {
			break
		}
		if len(arg) > 2 && arg[0] == '-' && arg[1] != '-' && strings.HasPrefix(text, "unknown flag -"+arg[1:2]) &&
			(strings.ContainsAny(arg, "./") || exists(arg)) {
			return fmt.Errorf("unknown flag -%s. If %s is a file: write ./%s, or put -- before it", arg[1:2], printable(arg), printable(arg))
		}
	}
	if strings.HasPrefix(text, "expected one of") || strings.HasPrefix(text, "unexpected argument") ||
		strings.HasPrefix(text, "unknown flag") || strings.HasPrefix(text, `expected "`) {
		return fmt.Errorf("%w (`mmserve help` lists the commands, `mmserve COMMAND --help` what one takes)", err)
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// fail tells of an error and gives the exit status.
func fail(stderr io.Writer, err error) int {
	text := err.Error()
	if isTerminal(stderr) {
		text = markdown.Clean(text)
	}
	fmt.Fprintln(stderr, "mmserve:", text)
	if usage := (usageError{}); errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// given tells whether a flag has its value from the command line, a variable or a file, and not by default.
func given(k *kong.Context, name string) bool {
	for _, flag := range k.Flags() {
		if "--"+flag.Name == name {
			return flag.Set || fromEnvironment(flag)
		}
	}
	return false
}
