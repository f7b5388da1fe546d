package main

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"

	"github.com/mmserve/mmserve/internal/folder"
)

// configFlags have serve read its flags from a file. Kong's own YAML resolver takes unknown keys, aliases and keys
// given twice, which is why configFile is not that.
type configFlags struct {
	Config string `placeholder:"FILE" env:"MMSERVE_CONFIG" help:"Read flags from a YAML file, each by its name without dashes in front; the command line and variables go before it. SIGHUP reads it again."`
	// FromFile are the lines of the file that set flags which nothing before it did.
	FromFile    map[string]int `kong:"-"`
	PrintConfig bool           `help:"Print the configuration that is in effect as such a file, without secrets, and end."`
}

// notConfigured are the flags that a file cannot set.
var notConfigured = []string{"help", "config", "print-config"}

const (
	maxConfigBytes = 1 << 20
	// secretTag marks a flag whose value --print-config leaves out, as in `secret:""`. A file's path is no secret.
	secretTag = "secret"
)

// BeforeResolve reads the file once flags and variables are known.
func (s *serveCmd) BeforeResolve(k *kong.Context) error {
	var file string
	for _, f := range k.Flags() {
		if f.Name == "config" {
			file = k.FlagValue(f).(string)
		}
	}
	if file == "" {
		return nil
	}
	text, err := folder.ReadFile(file, maxConfigBytes)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	c, err := parseConfig(text, k.Flags())
	if err != nil {
		return fmt.Errorf("--config %s: %w", file, err)
	}
	s.Config, s.FromFile = file, map[string]int{}
	k.AddResolver(configResolver{configFile: c, lines: keyLines(text), used: s.FromFile})
	return nil
}

// flagNames are the flags that an error speaks of.
var flagNames = regexp.MustCompile(`--([a-z0-9][a-z0-9-]*)`)

// located has an error that speaks of a flag say where the file sets it.
func (f configFlags) located(err error) error {
	if err == nil || len(f.FromFile) == 0 {
		return err
	}
	places := ""
	for _, m := range flagNames.FindAllStringSubmatch(err.Error(), -1) {
		place := fmt.Sprintf("--%s is from %s line %d", m[1], f.Config, f.FromFile[m[1]])
		if f.FromFile[m[1]] > 0 && !strings.Contains(places, place) {
			places += "; " + place
		}
	}
	if places == "" {
		return err
	}
	return fmt.Errorf("%w%s", err, places)
}

// configResolver is a file that notes which of its lines count.
type configResolver struct {
	configFile
	lines, used map[string]int
}

// Resolve gives the file's value of a flag, unless a variable is set.
func (r configResolver) Resolve(k *kong.Context, p *kong.Path, f *kong.Flag) (any, error) {
	v, err := r.configFile.Resolve(k, p, f)
	if v != nil {
		r.used[f.Name] = r.lines[f.Name]
	}
	return v, err
}

// keyLines are the lines of the keys of a text that parseConfig takes.
func keyLines(text []byte) map[string]int {
	lines := map[string]int{}
	var doc yaml.Node
	if yaml.Unmarshal(text, &doc) != nil || len(doc.Content) == 0 {
		return lines
	}
	for i, key := range doc.Content[0].Content {
		if i%2 == 0 {
			lines[key.Value] = key.Line
		}
	}
	return lines
}

// configFile is what a file sets: values by the names of flags, as kong decodes them.
type configFile map[string]any

// parseConfig reads a file's text, which may set any of flags.
func parseConfig(text []byte, flags []*kong.Flag) (configFile, error) {
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return configFile{}, nil
	} else if err != nil {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: want the names of flags with their values, as listen: 127.0.0.1:8080", root.Line)
	}
	if err := checkNode(root, 2); err != nil {
		return nil, err
	}
	known := map[string]*kong.Flag{}
	for _, f := range flags {
		if !slices.Contains(notConfigured, f.Name) {
			known[f.Name] = f
		}
	}
	c := configFile{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		f := known[key.Value]
		if f == nil {
			return nil, unknownKey(key, known)
		}
		v, err := flagValue(value, f)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", value.Line, key.Value, err)
		}
		c[key.Value] = v
	}
	return c, nil
}

// checkNode refuses what a configuration has no use for: anchors and aliases, which can make much of little, explicit
// types, keys that are given twice or are no text, values that are missing, and collections within more than depth
// others.
func checkNode(n *yaml.Node, depth int) error {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: anchors and aliases are not taken", n.Line)
	case n.Style&yaml.TaggedStyle != 0:
		return fmt.Errorf("line %d: types such as %.40q are not taken", n.Line, n.Tag)
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return fmt.Errorf("line %d: a value is missing: want one, or no such line", n.Line)
	case n.Kind != yaml.ScalarNode && depth == 0:
		return fmt.Errorf("line %d: lists and maps hold single values only", n.Line)
	}
	seen := map[string]int{}
	for i, c := range n.Content {
		if err := checkNode(c, depth-1); err != nil {
			return err
		}
		if n.Kind != yaml.MappingNode || i%2 == 1 {
			continue
		}
		if c.Kind != yaml.ScalarNode {
			return fmt.Errorf("line %d: want a text for a key", c.Line)
		}
		if first, ok := seen[c.Value]; ok {
			return fmt.Errorf("line %d: %.80q is set in line %d already", c.Line, c.Value, first)
		}
		seen[c.Value] = c.Line
	}
	return nil
}

// flagValue is what kong decodes for f: the text that the command line would have, a list or a map.
func flagValue(n *yaml.Node, f *kong.Flag) (any, error) {
	t := f.Target.Type()
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Value == "" && !slices.Contains(mayBeEmpty, f.Name) {
			return nil, errors.New("it is empty: want a value, or no such line")
		}
		return n.Value, nil
	case yaml.SequenceNode:
		if t.Kind() != reflect.Slice {
			return nil, errors.New("want one value, not a list")
		}
		list := []any{}
		for _, e := range n.Content {
			list = append(list, element(e, t.Elem()))
		}
		return list, nil
	}
	if t.Kind() != reflect.Map {
		return nil, errors.New("want one value, not a map")
	}
	m := map[string]any{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		m[n.Content[i].Value] = element(n.Content[i+1], t.Elem())
	}
	return m, nil
}

// element is a value of a collection whose elements are of type t, as JSON has it.
func element(n *yaml.Node, t reflect.Type) any {
	var v any
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int64, reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		if n.Decode(&v) == nil {
			return v
		}
	}
	return n.Value
}

// unknownKey names the flag that was probably meant.
func unknownKey(key *yaml.Node, known map[string]*kong.Flag) error {
	if slices.Contains(notConfigured, key.Value) {
		return fmt.Errorf("line %d: %q belongs on the command line", key.Line, key.Value)
	}
	nearest, least := "", 0
	for name := range known {
		if d := editDistance(key.Value, name); nearest == "" || d < least || d == least && name < nearest {
			nearest, least = name, d
		}
	}
	return fmt.Errorf("line %d: no flag is called %.80q; the nearest is %q", key.Line, key.Value, nearest)
}

// editDistance is Levenshtein's, over the first bytes of a.
func editDistance(a, b string) int {
	a = a[:min(len(a), 80)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}

// Validate has nothing to add: parseConfig knows the flags already.
func (configFile) Validate(*kong.Application) error { return nil }

// Resolve gives the file's value of a flag, unless a variable is set.
func (c configFile) Resolve(_ *kong.Context, _ *kong.Path, f *kong.Flag) (any, error) {
	for _, name := range f.Envs {
		if _, ok := os.LookupEnv(name); ok {
			return nil, nil
		}
	}
	return c[f.Name], nil // nil: the file does not say
}

// A setting is a flag with the value that is in effect.
type setting struct {
	name   string
	value  *yaml.Node
	secret bool
}

// settings lists flags in their order, without those that have neither a value nor a default.
func settings(flags []*kong.Flag) (list []setting, err error) {
	for _, f := range flags {
		if slices.Contains(notConfigured, f.Name) || unset(f) {
			continue
		}
		s := setting{name: f.Name, value: new(yaml.Node), secret: f.Tag.Has(secretTag)}
		if err := s.value.Encode(encodable(f.Target.Interface())); err != nil {
			return nil, fmt.Errorf("--%s: %w", f.Name, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// unset says that f has no value to name.
func unset(f *kong.Flag) bool {
	switch {
	case !f.Target.IsZero() || f.Target.Kind() == reflect.Bool:
		return false
	case f.Target.Kind() == reflect.String:
		return !slices.Contains(mayBeEmpty, f.Name)
	}
	return !f.HasDefault
}

// encodable is v as a file has it: what has a text form as that.
func encodable(v any) any {
	switch v := v.(type) {
	case time.Duration:
		return v.String()
	case encoding.TextMarshaler:
		return v
	case fmt.Stringer:
		return v.String()
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice {
		list := []any{}
		for i := range r.Len() {
			list = append(list, encodable(r.Index(i).Interface()))
		}
		return list
	}
	return v
}

// printConfig writes the configuration as a file that parseConfig reads.
func printConfig(w io.Writer, flags []*kong.Flag) error {
	list, err := settings(flags)
	if err != nil {
		return err
	}
	root := &yaml.Node{Kind: yaml.MappingNode}
	for _, s := range list {
		if s.secret {
			root.FootComment += "# " + s.name + " is set, and is left out here: it is secret\n"
			continue
		}
		root.Content = append(root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: s.name}, s.value)
	}
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	return errors.Join(e.Encode(root), e.Close())
}

// changed names the settings that differ, in order.
func changed(before, after []setting) (names []string) {
	values := map[string]string{}
	for _, s := range before {
		values[s.name] = s.text()
	}
	for _, s := range after {
		if v, ok := values[s.name]; !ok || v != s.text() {
			names = append(names, s.name)
		}
		delete(values, s.name)
	}
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s setting) text() string {
	b, _ := yaml.Marshal(s.value) // it was encoded before
	return string(b)
}
