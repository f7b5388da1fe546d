package constrain

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDocumented holds that docs/constraints.md lists every keyword and format that is held, and that what it says of
// patterns is so.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/constraints.md")
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Concat(schemaKeywords, listKeywords, mapKeywords, countKeywords, boundKeywords,
		slices.Collect(maps.Keys(keywordTypes)),
		slices.Collect(maps.Keys(formats)), []string{"type", "enum", "const", "dependentRequired", "$ref", "$dynamicRef",
			"$recursiveRef"})
	for _, name := range names {
		if !strings.Contains(string(doc), "`"+name+"`") {
			t.Errorf("%s is not there", name)
		}
	}
	for pattern, held := range map[string]bool{
		`^\d\w\s\p{L}$`: true, `^(?<name>a|b)+\u0041[^x-z]{2,3}$`: true, `^(?!ab)(?=a)[a-c]{2}$`: true, `\bword\b`: true,
		`^a(?=b)b$`: false, `(?<=a)b`: false, `(a)\1`: false, `a\Bb`: false, `a\b c`: false,
	} {
		schema := appendJSON([]byte(`{"type":"string","pattern":`), pattern)
		if _, err := small(t).compiler.JSONSchema(t.Context(), append(schema, '}'), false); (err == nil) != held {
			t.Errorf("%s: %v", pattern, err)
		}
	}
}
