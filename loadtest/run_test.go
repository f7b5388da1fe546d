package loadtest_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/mmserve/mmserve/loadtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake answers each request as its function says.
type fake func(ctx context.Context, r *loadtest.Request, token func(int)) (loadtest.Answer, error)

func (f fake) Generate(ctx context.Context, r *loadtest.Request, token func(int)) (loadtest.Answer, error) {
	return f(ctx, r, token)
}
func (fake) String() string { return "fake" }
func (fake) Close() error   { return nil }

// instant answers at once.
var instant = fake(func(context.Context, *loadtest.Request, func(int)) (loadtest.Answer, error) {
	return loadtest.Answer{}, nil
})

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func lengths(t testing.TB, s string) loadtest.Lengths {
	t.Helper()
	l, err := loadtest.ParseLengths(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func process(t testing.TB, s string) loadtest.Process {
	t.Helper()
	p, err := loadtest.ParseProcess(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func text(t testing.TB) *loadtest.Mix {
	return &loadtest.Mix{Prompt: lengths(t, "4"), Output: lengths(t, "8"), Name: "t"}
}

func constant(t testing.TB, rate float64, d time.Duration) loadtest.Schedule {
	return loadtest.Schedule{Stages: []loadtest.Stage{{Rate: rate, Duration: d}}, Process: process(t, "constant")}
}

// TestOpenLoop holds that requests go out when they are due, however long others take.
func TestOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var mu sync.Mutex
		var sent []time.Duration
		target := fake(func(ctx context.Context, r *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			mu.Lock()
			sent = append(sent, time.Since(begin))
			mu.Unlock()
			return loadtest.Answer{}, sleep(ctx, 30*time.Second)
		})
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 10, 5*time.Second),
			Mix: text(t)})
		if err != nil {
			t.Fatal(err)
		}
		if len(sent) != 50 || r.Took != 34900*time.Millisecond {
			t.Errorf("%d requests, the last ended at %v; want 50 and 34.9 s", len(sent), r.Took)
		}
		for i, s := range r.Samples {
			if want := time.Duration(i) * 100 * time.Millisecond; s.Due != want || s.Sent != want || s.E2E() != 30*time.Second {
				t.Errorf("request %d was due at %v, sent at %v, took %v; want %v and 30 s", i, s.Due, s.Sent, s.E2E(), want)
			}
		}
	})
}

// TestStall holds that a stall of the server is seen by all requests that were due in it, where a loop that waits for
// answers would have sent only one.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		target := fake(func(ctx context.Context, _ *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			if since := time.Since(begin); since < 10*time.Second {
				return loadtest.Answer{}, sleep(ctx, 10*time.Second-since)
			}
			return loadtest.Answer{}, sleep(ctx, time.Millisecond)
		})
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 1, 20*time.Second),
			Mix: text(t)})
		if err != nil {
			t.Fatal(err)
		}
		q := loadtest.Summarize(r.Samples, 0, 20*time.Second, loadtest.SLO{E2E: time.Second}).E2E
		if q.Count != 20 || q.Max != 10000 || q.P50 != 1 || q.P90 != 8000 {
			t.Errorf("%+v; want 10 of 20 requests slow, by 10, 9, … 1 s", q)
		}
	})
}

func TestMaxOpenIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := fake(func(ctx context.Context, _ *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			return loadtest.Answer{}, sleep(ctx, time.Minute)
		})
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 1, 10*time.Second),
			Mix: text(t), MaxOpen: 4})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, 10*time.Second, loadtest.SLO{})
		if s.Due != 10 || s.OK != 4 || s.Errors["NOT_SENT"] != 6 || s.Attainment != 0.4 {
			t.Errorf("%+v; want 10 due, 4 OK, 6 not sent", s)
		}
	})
}

func TestDeadlineAndAbandonment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deadlines := 0
		target := fake(func(ctx context.Context, r *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			if _, ok := ctx.Deadline(); ok {
				deadlines++
			}
			token(1)
			return loadtest.Answer{}, sleep(ctx, time.Minute)
		})
		mix := text(t)
		mix.AbandonShare, mix.AbandonAfter = 0.5, time.Second
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 10, 20*time.Second),
			Mix: mix, Deadline: 20 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, 20*time.Second, loadtest.SLO{})
		if deadlines != 200 || s.Due != 200 || s.Abandoned+s.Errors["DEADLINE_EXCEEDED"] != 200 || s.Abandoned < 70 ||
			s.Abandoned > 130 {
			t.Errorf("%d with a deadline, %+v; want about half of 200 abandoned, the others at their deadline", deadlines, s)
		}
		for _, q := range r.Samples {
			if q.Code == "DEADLINE_EXCEEDED" && q.E2E() != 20*time.Second {
				t.Errorf("deadline after %v", q.E2E())
			}
		}
	})
}

func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
		defer cancel()
		target := fake(func(ctx context.Context, _ *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			return loadtest.Answer{}, sleep(ctx, 2*time.Second)
		})
		var last loadtest.Progress
		r, err := loadtest.Run(ctx, loadtest.Config{Target: target, Schedule: constant(t, 1, time.Hour), Mix: text(t),
			Progress: func(p loadtest.Progress) { last = p }})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, r.Windows[0].To, loadtest.SLO{})
		if !r.Interrupted || r.Windows[0].To != 4500*time.Millisecond || s.OK != 3 || s.Errors["INTERRUPTED"] != 2 {
			t.Errorf("interrupted %v after %v: %+v", r.Interrupted, r.Windows[0].To, s)
		}
		if last.Due != 5 || last.Done != 5 || last.Open != 0 {
			t.Errorf("the last progress is %+v", last)
		}
	})
}

func TestErrorsByCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		target := fake(func(ctx context.Context, r *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			n++
			if n%2 == 0 {
				return loadtest.Answer{}, errors.New("connection reset")
			}
			token(3)
			return loadtest.Answer{Completion: 4, Finish: "stop"}, nil
		})
		r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, 1, 10*time.Second),
			Mix: text(t)})
		if err != nil {
			t.Fatal(err)
		}
		s := loadtest.Summarize(r.Samples, 0, 11*time.Second, loadtest.SLO{})
		if s.OK != 5 || s.Errors["TRANSPORT"] != 5 {
			t.Errorf("%+v", s)
		}
		if k := s.Tokens; k.Output != 20 || k.OutputReceived != 15 || k.Mismatches != 5 || k.Missing != 5 || k.Extra != 0 {
			t.Errorf("tokens %+v", k)
		}
	})
}

// TestJoin holds that the steps of a search keep their times apart.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		target := fake(func(ctx context.Context, _ *loadtest.Request, token func(int)) (loadtest.Answer, error) {
			token(1)
			return loadtest.Answer{}, sleep(ctx, 2*time.Second)
		})
		var runs []*loadtest.Result
		for _, rate := range []float64{2, 1} {
			r, err := loadtest.Run(t.Context(), loadtest.Config{Target: target, Schedule: constant(t, rate, 10*time.Second),
				Mix: text(t), WarmUp: 5 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			runs = append(runs, r)
		}
		report := loadtest.NewReport(loadtest.Join(runs), loadtest.About{SLO: loadtest.SLO{E2E: 3 * time.Second},
			Attain: 0.9})
		if len(report.Stages) != 2 || report.Stages[0].Rate != 1 || report.Stages[0].Due != 5 ||
			report.Stages[1].Due != 10 || report.Stages[1].Good != 10 {
			t.Errorf("stages %+v", report.Stages)
		}
		if report.Stages[1].From != 5 || report.Stages[0].From != 16.5 {
			t.Errorf("stages begin at %v and %v", report.Stages[1].From, report.Stages[0].From)
		}
		if report.Knee == nil || report.Knee.Rate != 2 || report.Knee.Above != 0 {
			t.Errorf("knee %+v", report.Knee)
		}
	})
}
