package constrain

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/dlclark/regexp2"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/mmserve/mmserve/internal/racetest"
)

// refusedSchemas are those that nothing satisfies, that are no schemas, or that no automaton reads.
var refusedSchemas = []string{"array not schema", "endless recursion", "pattern backref", "required unknown closed",
	"type required draft3"}

type ecmaRegexp struct{ *regexp2.Regexp }

func (r ecmaRegexp) MatchString(s string) bool {
	ok, err := r.Regexp.MatchString(s)
	return ok && err == nil
}

// ecmaEngine reads patterns as Go does, in linear time, or as ECMA-262 says where Go cannot.
func ecmaEngine(expr string) (jsonschema.Regexp, error) {
	if re, err := regexp.Compile(expr); err == nil {
		return re, nil
	}
	re, err := regexp2.Compile(expr, regexp2.ECMAScript)
	return ecmaRegexp{re}, err
}

// TestCorpus holds that schemas as people's tools write them are taken, and that whatever ends is valid to another
// implementation. MMSERVE_SCHEMA_ANSWERS sets the answers to each; 6 by default.
func TestCorpus(t *testing.T) {
	answers := racetest.Part(6)
	if n, err := strconv.Atoi(os.Getenv("MMSERVE_SCHEMA_ANSWERS")); err == nil {
		answers = n
	}
	fix := load(t, "tiny-vlm")
	total, taken, ended := 0, 0, 0
	for _, file := range []string{"pydantic", "zod", "threads"} {
		data, err := os.ReadFile("testdata/schemas/" + file + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var schemas map[string]json.RawMessage
		if err := json.Unmarshal(data, &schemas); err != nil {
			t.Fatal(err)
		}
		for name, text := range schemas {
			total++
			t.Run(file+"/"+name, func(t *testing.T) {
				g, err := fix.compiler.JSONSchema(t.Context(), text, false)
				if refused := slices.Contains(refusedSchemas, name); refused != (err != nil) {
					t.Fatalf("error %v, refused %v", err, refused)
				}
				if err != nil {
					t.Log(err)
					return
				}
				taken++
				v, err := validator(string(text))
				if err != nil {
					t.Fatal(err)
				}
				rng := newRand(11)
				own := 0
				for range answers {
					answer, whole := fix.walk(t, g, rng, 3000)
					if !whole {
						continue
					}
					own++
					if err := validate(v, answer); err != nil {
						t.Errorf("%.300s: %v", answer, err)
					}
				}
				long := name == "props 300 required" || strings.HasPrefix(name, "outlines267") || name == "pattern \\b" // at random
				if ended += own; own == 0 && !long && !racetest.Enabled {
					t.Error("no answer ended")
				}
			})
		}
	}
	t.Logf("%d of %d schemas taken, %d answers ended", taken, total, ended)
}
