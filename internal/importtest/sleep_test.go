package importtest

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// sleeps lists the functions of tests that may call time.Sleep on the machine's clock, each with its reason. Everything
// else waits on a channel or a condition, or sleeps in a testing/synctest bubble, where time costs nothing.
var sleeps = map[string]string{
	// Conditions with a deadline, for what other processes or a library's goroutines do.
	"client/balance_test.go eventually":                        polls,
	"cmd/mmserve/eventually_test.go eventually":                polls,
	"cmd/mmserve/hostile_test.go settled":                      polls,
	"cmd/mmserve/serve_test.go logged":                         polls,
	"cmd/mmserve/tty_test.go until":                            polls,
	"deploy/observability/observability_test.go until":         polls,
	"deploy/observability/observability_test.go TestDashboard": polls,
	"server/server_test.go eventually":                         polls,
	"server/answer_test.go TestAnswers":                        polls,
	"serving/service_test.go idle":                             polls,
	// Load on real processes: the pause is the pace.
	"cmd/mmserve/serve_test.go TestRollingRestart":                       pace,
	"deploy/observability/observability_test.go load":                    pace,
	"server/media_test.go TestUploadMediaAborted":                        pace,
	"model/engine_bench_test.go BenchmarkLongPromptArrives":              pace,
	"cmd/mmserve/fairness_bench_test.go BenchmarkInteractiveAmongOthers": pace,
	"model/engine_test.go engineEqualsAlone":                             "some requests arrive while others decode",
	// What happens to another process while nothing is heard of it.
	"cmd/mmserve/caption_process_test.go TestCaptionServerKilledAndRestarted": "a killed server stays away for a while",
	"cmd/mmserve/caption_process_test.go TestCaptionSignals":                  "two signals, one after the other",
	"cmd/mmserve/caption_queue_test.go TestCaptionWorkersOfAQueue":            "a stopped worker outlives its lease",
	"cmd/mmserve/serve_test.go TestSignals":                                   "two signals, one after the other",
	"server/attack_test.go TestAttackHeldMessages":                            "gRPC tells nobody when a window grows",
	"server/attack_test.go TestAttackTinyFrames":                              "gRPC tells nobody when a window grows",
	"server/quota_test.go TestRefusedBeforeTheMessage":                        "gRPC tells nobody when a window grows",
	"server/http_limits_test.go TestHTTPStopFirst":                            "that nothing happens takes a while to see",
	"server/lifecycle_test.go TestBatchGathers":                               "that nothing happens takes a while to see",
	// Helpers that run in the bubbles of their callers, where time costs nothing.
	"loadtest/fairness_test.go flood":              bubble,
	"loadtest/paced_test.go newPaced":              bubble,
	"serving/history_test.go pass":                 bubble,
	"server/http_time_test.go TestHTTPReaderStops": bubble,
}

const (
	polls  = "polls until a deadline what nothing tells of"
	pace   = "the pause is the load's pace"
	bubble = "runs in the testing/synctest bubble of its callers"
)

// TestTestsDoNotSleep holds that tests do not wait for a time to pass.
func TestTestsDoNotSleep(t *testing.T) {
	seen := map[string]bool{}
	eachParsed(t, func(path string, _ []byte, fset *token.FileSet, f *ast.File) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := path + " " + fn.Name.Name
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				switch {
				case !ok:
				case isCall(call, "synctest", "Test"):
					return false
				case isCall(call, "time", "Sleep") && sleeps[name] == "":
					t.Errorf("%s: %s sleeps: wait for what happens, or give the reason in sleeps",
						fset.Position(call.Pos()), fn.Name.Name)
				case isCall(call, "time", "Sleep"):
					seen[name] = true
				}
				return true
			})
		}
	})
	for name := range sleeps {
		if !seen[name] {
			t.Logf("sleeps lists %s, which does not sleep now: leave it out", name)
		}
	}
}

func isCall(c *ast.CallExpr, pkg, name string) bool {
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}
