package openai

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// value is what encoding/json makes of a node's JSON.
func value(n *node) any {
	switch n.kind {
	case kindObject:
		m := map[string]any{}
		for i := range n.list {
			m[n.list[i].name] = value(&n.list[i])
		}
		return m
	case kindList:
		list := make([]any, len(n.list))
		for i := range n.list {
			list[i] = value(&n.list[i])
		}
		return list
	case kindText:
		return n.text()
	case kindNumber:
		return json.Number(n.raw)
	case kindNull:
		return nil
	}
	return n.kind == kindTrue
}

// within says whether a JSON text is within the bounds of parse, and has no name twice in an object.
func within(in []byte) bool {
	d := json.NewDecoder(bytes.NewReader(in))
	d.UseNumber()
	type level struct {
		object, value bool
		names         map[string]bool
	}
	stack, values := []level{}, 0
	for {
		token, err := d.Token()
		if err == io.EOF {
			return true
		}
		if err != nil {
			return false
		}
		if c, ok := token.(json.Delim); ok && (c == '}' || c == ']') {
			stack = stack[:len(stack)-1]
			continue
		}
		if n := len(stack) - 1; n >= 0 && stack[n].object {
			if !stack[n].value {
				name := token.(string)
				if stack[n].names[name] {
					return false
				}
				stack[n].names[name], stack[n].value = true, true
				continue
			}
			stack[n].value = false
		}
		if values++; values > maxValues {
			return false
		}
		if c, ok := token.(json.Delim); ok {
			if len(stack) == maxDepth {
				return false
			}
			stack = append(stack, level{object: c == '{', names: map[string]bool{}})
		}
	}
}

// compare holds that parse takes what encoding/json does, within its bounds, and reads the same of it.
func compare(t *testing.T, in []byte) {
	t.Helper()
	n, err := parse(context.Background(), in)
	object := bytes.HasPrefix(bytes.TrimLeft(in, " \t\r\n"), []byte("{"))
	if want := object && utf8.Valid(in) && json.Valid(in) && within(in); (err == nil) != want {
		t.Fatalf("%.200q: error %v, want one: %v", in, err, !want)
	}
	if err != nil {
		return
	}
	d := json.NewDecoder(bytes.NewReader(in))
	d.UseNumber()
	var want any
	if err := d.Decode(&want); err != nil {
		t.Fatal(err)
	}
	if got := value(n); !reflect.DeepEqual(got, want) {
		t.Errorf("%.200q: got %v, want %v", in, got, want)
	}
}

// bodies are texts at the edges of JSON.
var bodies = []string{
	"", "{}", " {\t\"a\" : [ ] }\r\n", "[]", "null", "{", "}", `{"a"`,
	`{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `{,}`, `{"a" 1}`,
	`{"a":1}{}`, `{"a":1} x`, `{a:1}`, `{'a':1}`, `{"a":[1,]}`, `{"a":[1 2]}`, `{"a":[,]}`, `{"a":[1`,
	`{"a":0}`, `{"a":-0}`, `{"a":01}`, `{"a":-}`, `{"a":+1}`,
	`{"a":1.}`, `{"a":.5}`, `{"a":1.5e}`, `{"a":1e+}`, `{"a":1E-07}`,
	`{"a":1e999999999}`, `{"a":0x10}`, `{"a":1_0}`, `{"a":NaN}`, `{"a":Infinity}`, `{"a":truex}`, `{"a":tru`, `{"a":nul}`,
	`{"a":"\""}`, `{"a":"\\"}`, `{"a":"\\\""}`, `{"a":"\/\b\f\n\r\t"}`, `{"a":"\u00e9\ud83d\ude00"}`, `{"a":"\ud83d"}`,
	`{"a":"\ude00x"}`, `{"a":"\u12g4"}`, `{"a":"\u12"}`, `{"a":"\x"}`,
	`{"a":"\`, `{"a":"`, `{"a":"` + "\n" + `"}`, `{"a":"` + "\x00" + `"}`,
	`{"a":"é` + "\u2028" + `"}`, "{\"a\":\"\xff\"}", "{\"\xc3\":1}",
	"\ufeff{}", `{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":{"b":1,"b":1}}`,
	`{"A":1,"a":2}`, `{"":1}`, `{"a":"\u0000"}`, `{"a":"\"` + "\x01" + `"}`,
	`{"a":"\u+123"}`, `{"a":"\u 123"}`, `{"a":"\u_123"}`,
	`{"a":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1) + "}",
	`{"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + "}",
	`{"a":` + strings.Repeat(`{"a":`, 100000) + "1" + strings.Repeat("}", 100000) + "}",
	`{"a":[` + strings.Repeat("1,", maxValues-3) + "1]}", `{"a":[` + strings.Repeat("1,", maxValues-2) + "1]}",
}

func TestJSON(t *testing.T) {
	for i, in := range bodies {
		t.Run(strconv.Itoa(i), func(t *testing.T) { compare(t, []byte(in)) })
	}
}

func FuzzJSON(f *testing.F) {
	for _, in := range bodies {
		if len(in) < 1000 {
			f.Add([]byte(in))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) { compare(t, in) })
}

// A string of escapes is read in one pass: quadratic time would take hours here.
func TestManyEscapes(t *testing.T) {
	for _, escape := range []string{`\n`, `\"`, `\u00e9`} {
		body := `{"a":"` + strings.Repeat(escape, 4<<20) + `"}`
		n, fault := parse(context.Background(), []byte(body))
		if fault != nil || len(n.list) != 1 {
			t.Errorf("%s: %v", escape, fault)
		}
	}
}

// ending is a context that is done when it has been asked a number of times.
type ending struct {
	context.Context
	left int
}

func (e *ending) Err() error {
	if e.left--; e.left < 0 {
		return context.Canceled
	}
	return nil
}

// Reading a body ends with its context, whatever the body has that takes long.
func TestParseEnds(t *testing.T) {
	parsers := map[string]func(context.Context, []byte) error{
		"chat":     func(ctx context.Context, b []byte) error { _, err := ParseChat(ctx, b); return err },
		"text":     func(ctx context.Context, b []byte) error { _, err := ParseText(ctx, b); return err },
		"response": func(ctx context.Context, b []byte) error { _, err := ParseResponse(ctx, b); return err },
		"tokenize": func(ctx context.Context, b []byte) error { _, err := ParseTokenize(ctx, b); return err },
		"ollama":   func(ctx context.Context, b []byte) error { _, err := ParseOllamaChat(ctx, b); return err },
	}
	for name, body := range map[string]string{
		"a long string": `{"a":"` + strings.Repeat("a", 4<<20), "escapes": `{"a":"` + strings.Repeat(`\n`, 2<<20),
		"a long name": `{"` + strings.Repeat("a", 4<<20), "values": `{"a":[` + strings.Repeat("1,", maxValues-3),
		"members": `{"a":[` + strings.Repeat(`{"a":{}},`, maxValues/2-2),
	} {
		for api, parse := range parsers {
			if err := parse(&ending{t.Context(), 3}, []byte(body)); !errors.Is(err, context.Canceled) {
				t.Errorf("%s, %s: %v, want that the context is done", api, name, err)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	body := []byte(`{"a":["` + strings.Repeat(`\u00e9`, 8<<20) + `"]}`)
	began := time.Now()
	if _, err := parse(ctx, body); err != nil {
		t.Fatal(err)
	}
	whole := time.Since(began)
	time.AfterFunc(whole/10, cancel)
	began = time.Now()
	if _, err := parse(ctx, body); !errors.Is(err, context.Canceled) || time.Since(began) > whole*8/10 {
		t.Errorf("%v after %v, want the end soon after %v", err, time.Since(began), whole/10)
	}
}

// TestStringBytes holds that each byte means the same wherever it stands in a string, and as in encoding/json.
func TestStringBytes(t *testing.T) {
	for at := range 20 {
		for b := range 0x80 {
			in := []byte(`{"a":"` + strings.Repeat("é", 10) + `"}`)
			in = append(in[:6+at], append([]byte{byte(b)}, in[6+at:]...)...)
			if !utf8.Valid(in) {
				continue
			}
			if _, err := parse(t.Context(), in); (err == nil) != json.Valid(in) {
				t.Fatalf("%q: %v, json.Valid says %v", in, err, json.Valid(in))
			}
		}
	}
}

// BenchmarkParseImage reads a body with an image of 300 KB in base64.
func BenchmarkParseImage(b *testing.B) {
	body := []byte(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` +
		strings.Repeat("AbC/", 100_000) + `"}}]}]}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := ParseChat(b.Context(), body); err != nil {
			b.Fatal(err)
		}
	}
}
