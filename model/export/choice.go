package export

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/ort"
)

// storedAs are the layout's names of how weights are stored, most faithful first, and the suffixes of their files.
// Any other name has itself as the suffix. Reference: transformers.js DEFAULT_DTYPE_SUFFIX_MAPPING.
var storedAs = []struct{ name, suffix string }{
	{"fp32", ""}, {"fp16", "_fp16"}, {"q8", "_quantized"}, {"int8", "_int8"}, {"uint8", "_uint8"},
	{"q4", "_q4"}, {"q4f16", "_q4f16"}, {"bnb4", "_bnb4"}, {"q2", "_q2"}, {"q2f16", "_q2f16"}, {"q1", "_q1"}, {"q1f16",
		"_q1f16"},
}

func suffixOf(dtype string) string {
	for _, d := range storedAs {
		if d.name == dtype {
			return d.suffix
		}
	}
	return "_" + dtype
}

// choice picks the file of each session.
type choice struct {
	dir      string
	files    []string
	asked    map[string]string // session → dtype; "" is for those not named
	declared map[string]string
}

func newChoice(dir, dtypes string, config []byte) (c choice, err error) {
	c, err = choiceAmong(Files(dir), dtypes, config)
	c.dir = filepath.Join(dir, "onnx")
	return c, err
}

// choiceAmong picks among files of these names.
func choiceAmong(files []string, dtypes string, config []byte) (c choice, err error) {
	c = choice{files: files, asked: map[string]string{}, declared: map[string]string{}}
	for _, item := range strings.Split(dtypes, ",") {
		session, dtype, named := strings.Cut(item, "=")
		if !named {
			session, dtype = "", item
		}
		if dtype = strings.TrimSpace(dtype); dtype != "" {
			c.asked[strings.TrimSpace(session)] = dtype
		}
	}
	var file struct {
		JS struct {
			DType json.RawMessage `json:"dtype"`
		} `json:"transformers.js_config"`
	}
	if err := json.Unmarshal(config, &file); err != nil {
		return c, fmt.Errorf("config.json: transformers.js_config: %w", err)
	}
	if len(file.JS.DType) == 0 || string(file.JS.DType) == "null" {
		return c, nil
	}
	var all string
	if json.Unmarshal(file.JS.DType, &all) == nil {
		c.declared[""] = all
	} else if err := json.Unmarshal(file.JS.DType, &c.declared); err != nil {
		return c, fmt.Errorf("config.json: transformers.js_config.dtype: %w", err)
	}
	return c, nil
}

func (c choice) graph(session string) (g Graph, err error) {
	g.Session = session
	if g.DType, g.Why, err = c.pick(session); err != nil {
		return g, err
	}
	if g.File, err = ort.ReadFile(filepath.Join(c.dir, session+suffixOf(g.DType)+".onnx")); err != nil {
		return g, err
	}
	for _, name := range append([]string{filepath.Base(g.Path)}, g.Data...) {
		if !filepath.IsLocal(name) {
			return g, fmt.Errorf("%s: external data at %q, want a file beside it", g.Path, name)
		}
		st, err := os.Stat(filepath.Join(c.dir, filepath.FromSlash(name)))
		if err != nil {
			return g, fmt.Errorf("%s: %w", g.Path, err)
		}
		g.Bytes += st.Size()
	}
	return g, nil
}

// pick chooses a session's dtype and says why.
func (c choice) pick(session string) (dtype, why string, err error) {
	there := c.there(session)
	if len(there) == 0 {
		return "", "", fmt.Errorf("onnx/ has no %s*.onnx", session)
	}
	if dtype, ok := find(c.asked, session); ok {
		if !slices.Contains(there, dtype) {
			return "", "", fmt.Errorf("--onnx-dtype: onnx/ has no %s as %s; it has %s", session, dtype, strings.Join(there, ", "))
		}
		return dtype, "asked for", nil
	}
	if dtype, ok := find(c.declared, session); ok && slices.Contains(there, dtype) {
		return dtype, "as config.json's transformers.js_config wants it", nil
	}
	if len(there) == 1 {
		return there[0], "the only one there", nil
	}
	return there[0], "the most faithful of " + strings.Join(there, ", "), nil
}

func find(list map[string]string, session string) (string, bool) {
	if dtype, ok := list[session]; ok {
		return dtype, true
	}
	dtype, ok := list[""]
	return dtype, ok
}

// there lists the dtypes of a session's files, most faithful first.
func (c choice) there(session string) []string {
	var list, others []string
	for _, d := range storedAs {
		if slices.Contains(c.files, session+d.suffix+".onnx") {
			list = append(list, d.name)
		}
	}
	for _, f := range c.files {
		dtype, ok := strings.CutPrefix(strings.TrimSuffix(f, ".onnx"), session+"_")
		if ok && suffixOf(dtype) == "_"+dtype && !slices.Contains(list, dtype) {
			others = append(others, dtype)
		}
	}
	return append(list, others...)
}

// Files lists the graphs of a folder in the layout.
func Files(dir string) []string {
	entries, _ := os.ReadDir(filepath.Join(dir, "onnx"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return graphNames(names)
}

// graphNames are those of graphs.
func graphNames(names []string) (list []string) {
	for _, n := range names {
		if strings.HasSuffix(n, ".onnx") {
			list = append(list, n)
		}
	}
	return list
}
