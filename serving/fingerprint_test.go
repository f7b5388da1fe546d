package serving_test

import (
	"log/slog"
	"regexp"
	"testing"

	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/serving"
)

// A model has one fingerprint however often it is opened, and another in another precision or with other files.
func TestFingerprint(t *testing.T) {
	modeltest.StartLibrary(t)
	open := func(c serving.Config) string {
		c.Threads, c.Slots, c.MaxLen, c.NoSelfTest, c.Logger = 1, 1, 128, true, slog.New(slog.DiscardHandler)
		d, err := serving.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close(t.Context())
		return d.Model.Fingerprint
	}
	first := open(serving.Config{})
	if !regexp.MustCompile(`^fp_[0-9a-f]{16}$`).MatchString(first) {
		t.Errorf("%q", first)
	}
	seen := map[string]string{first: "the same"}
	for name, c := range map[string]serving.Config{
		"the same": {}, "int8": {Precision: "int8"}, "int8 decoder": {Precision: "int8", VisionPrecision: "fp32"},
		"no model runs": {Pace: "0s,0s"},
	} {
		got := open(c)
		if other, ok := seen[got]; ok != (name == "the same") {
			t.Errorf("%s has the fingerprint of %s: %t", name, other, ok)
		}
		seen[got] = name
	}
}
