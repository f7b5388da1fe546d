package constrain

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/racetest"
)

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestHostileSchemas holds that schemas made to cost much are compiled or refused within two seconds of the processor,
// and that masks that cost much end their own answer.
func TestHostileSchemas(t *testing.T) {
	if racetest.Enabled {
		t.Skip("bounds of processor time are tested without the race detector")
	}
	fix := load(t, "tiny-vlm")
	product := `{"allOf":[` + strings.TrimSuffix(strings.Repeat(`{"anyOf":[{"minLength":1},{"maxLength":9},{"pattern":"a"},{"type":"null"}]},`, 40), ",") + `]}`
	var branches []string
	for i := range 150 {
		branches = append(branches, fmt.Sprintf(`{"type":"string","pattern":"^(?:[^%c]{3})*$"}`, rune(0x4e00+i)))
	}
	for _, schema := range []string{
		product, `{"minLength":1000000000,"type":"string"}`, `{"type":"array","minItems":1000000000,"maxItems":2000000000}`,
		`{"type":"number","multipleOf":1e-300}`, `{"type":"number","multipleOf":123456789.123}`,
		`{"type":"string","pattern":"(a{1000}){1000}"}`,
		`{"type":"string","pattern":"^.{900}a.{900}$","minLength":1000}`,
		strings.Repeat(`{"not":`, 100) + `{"type":"null"}` + strings.Repeat("}", 100),
		`{"type":"object","minProperties":1000000,"maxProperties":2000000}`, `{"anyOf":[` + strings.Join(branches, ",") + `]}`,
	} {
		before := cpuTime()
		g, err := fix.compiler.JSONSchema(t.Context(), []byte(schema), false)
		if err == nil {
			rng, s := newRand(3), g.Start(t.Context())
			for range 60 {
				mask := s.Mask()
				if s.Err() != nil {
					if !errors.Is(s.Err(), ErrWork) {
						t.Error(s.Err())
					}
					break
				}
				s.Accept(fix.sample(rng, mask))
			}
		}
		if took := cpuTime() - before; took > 4*time.Second {
			t.Errorf("%.60s took %v of the processor", schema, took)
		} else {
			t.Logf("%.60s: %v, %.80v", schema, took, err)
		}
	}
}
