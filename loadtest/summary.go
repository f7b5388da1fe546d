package loadtest

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Formulas say what each number of a report is.
var Formulas = []struct{ Name, Text string }{
	{"due", "when the schedule wants a request sent; latencies count from there, from_send ones from when it was sent"},
	{"ttft", "first non-empty piece of text received − due"},
	{"tpot", "(e2e − ttft) ÷ (output tokens by the server's count − 1), of answers with two tokens or more"},
	{"itl", "time between two pieces of text of one answer, of all answers together; a piece can be several tokens"},
	{"e2e", "end of the answer received − due"},
	{"percentile", "p of n values: the ⌈p·n⌉-th smallest; latencies are of whole answers (OK)"},
	{"window", "from the end of the warm-up to the end of the schedule, of each rate; requests count if they were due in it"},
	{"throughput", "requests ended, tokens received, images answered inside the window ÷ its length, whenever they were due"},
	{"goodput", "requests due in the window whose whole answer kept the SLO ÷ the window's length"},
	{"attainment", "the same ÷ (requests due in the window − those abandoned on purpose)"},
	{"lag", "sent − due: what this program was late by"},
	{"token mismatch", "answers whose tokens received differ from the server's count; special tokens at the end of an answer have no text and are not received"},
}

// TTFT is the time to the first text; false if none came.
func (s *Sample) TTFT() (time.Duration, bool) {
	if len(s.Deltas) == 0 {
		return 0, false
	}
	return s.Deltas[0].At - s.Due, true
}

// E2E is the time to the end of the answer.
func (s *Sample) E2E() time.Duration { return s.Ended - s.Due }

// TPOT is the time per output token after the first; false if there are none.
func (s *Sample) TPOT() (time.Duration, bool) {
	ttft, ok := s.TTFT()
	n := s.tokens()
	if !ok || n < 2 {
		return 0, false
	}
	return (s.E2E() - ttft) / time.Duration(n-1), true
}

// tokens is the server's count of the answer's tokens, or if it gives none, the client's.
func (s *Sample) tokens() int { return cmp.Or(s.Answer.Completion, s.received()) }

// received is the client's count.
func (s *Sample) received() (n int) {
	for _, d := range s.Deltas {
		n += d.Tokens
	}
	return n
}

// Quantiles are of one measure, in milliseconds but for Count.
type Quantiles struct {
	Count int     `json:"count"`
	Mean  float64 `json:"mean_ms"`
	Std   float64 `json:"std_ms"`
	Min   float64 `json:"min_ms"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	P95   float64 `json:"p95_ms"`
	P99   float64 `json:"p99_ms"`
	// P999 is 0 of fewer than 1000 values: it would be the largest.
	P999 float64 `json:"p999_ms,omitempty"`
	Max  float64 `json:"max_ms"`
}

// quantiles sorts d.
func quantiles(d []time.Duration) Quantiles {
	if len(d) == 0 {
		return Quantiles{}
	}
	slices.Sort(d)
	var sum, squares float64
	for _, x := range d {
		sum += ms(x)
	}
	mean := sum / float64(len(d))
	for _, x := range d {
		squares += (ms(x) - mean) * (ms(x) - mean)
	}
	q := Quantiles{
		Count: len(d), Mean: mean, Std: math.Sqrt(squares / float64(len(d))),
		Min: ms(d[0]), P50: ms(rank(d, 0.5)), P90: ms(rank(d, 0.9)), P95: ms(rank(d, 0.95)), P99: ms(rank(d, 0.99)),
		Max: ms(d[len(d)-1]),
	}
	if len(d) >= 1000 {
		q.P999 = ms(rank(d, 0.999))
	}
	return q
}

// rank is the ⌈p·n⌉-th smallest of sorted values.
func rank(sorted []time.Duration, p float64) time.Duration {
	i := int(math.Ceil(p*float64(len(sorted))-1e-9)) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// Summary is what a window of a run came to.
type Summary struct {
	WindowSeconds float64 `json:"window_seconds"`

	Due       int            `json:"due"`
	OK        int            `json:"ok"`
	Abandoned int            `json:"abandoned"`
	Good      int            `json:"good"`
	Errors    map[string]int `json:"errors,omitempty"`

	DueRate    float64 `json:"due_per_s"`
	Throughput float64 `json:"requests_per_s"`
	Goodput    float64 `json:"goodput_per_s"`
	Attainment float64 `json:"attainment"`
	OutputRate float64 `json:"output_tokens_per_s"`
	PromptRate float64 `json:"prompt_tokens_per_s"`
	ImageRate  float64 `json:"images_per_s"`

	TTFT     Quantiles `json:"ttft"`
	TPOT     Quantiles `json:"tpot"`
	ITL      Quantiles `json:"itl"`
	E2E      Quantiles `json:"e2e"`
	FromSend struct {
		TTFT Quantiles `json:"ttft"`
		E2E  Quantiles `json:"e2e"`
	} `json:"from_send"`
	Lag Quantiles `json:"lag"`

	// Tokens of whole answers.
	Tokens struct {
		Prompt         int `json:"prompt"`
		Image          int `json:"image"`
		CachedImage    int `json:"cached_image"`
		Cached         int `json:"cached"`
		Output         int `json:"output"`
		OutputReceived int `json:"output_received"`
		Mismatches     int `json:"mismatches"` // answers where the two differ
		Missing        int `json:"missing"`    // tokens that the server counts and that were not received
		Extra          int `json:"extra"`      // the other way round
	} `json:"tokens"`
	// Server has the stages by the server's clock, where it tells.
	Server map[string]Quantiles `json:"server,omitempty"`
}

// Summarize sums up the requests of samples that were due in [from, to) of a run.
func Summarize(samples []Sample, from, to time.Duration, slo SLO) Summary {
	return summarize(samples, []Window{{From: from, To: to}}, slo)
}

// summarize sums up the requests that were due in any of some windows.
func summarize(samples []Sample, windows []Window, slo SLO) Summary {
	s := Summary{Errors: map[string]int{}, Server: map[string]Quantiles{}}
	for _, w := range windows {
		s.WindowSeconds += (w.To - w.From).Seconds()
	}
	var ttft, tpot, itl, e2e, sentTTFT, sentE2E, lag []time.Duration
	stages := map[string][]time.Duration{}
	inside := func(t time.Duration) bool {
		return slices.ContainsFunc(windows, func(w Window) bool { return t >= w.From && t < w.To })
	}
	var done, tokens, images, prompt int
	for i := range samples {
		q := &samples[i]
		for _, d := range q.Deltas {
			if inside(d.At) {
				tokens += d.Tokens
			}
		}
		if q.ok() && inside(q.Ended) {
			done++
			images += q.Images
			prompt += q.Answer.Prompt
		}
		if !inside(q.Due) || q.WarmUp {
			continue
		}
		s.Due++
		if q.Code != codeNotSent {
			lag = append(lag, q.Sent-q.Due)
		}
		switch {
		case q.Code == codeAbandoned:
			s.Abandoned++
			continue
		case !q.ok():
			s.Errors[q.Code]++
			continue
		}
		s.OK++
		if slo.Met(q) {
			s.Good++
		}
		e2e, sentE2E = append(e2e, q.E2E()), append(sentE2E, q.Ended-q.Sent)
		if d, ok := q.TTFT(); ok {
			ttft, sentTTFT = append(ttft, d), append(sentTTFT, q.Deltas[0].At-q.Sent)
		}
		if d, ok := q.TPOT(); ok {
			tpot = append(tpot, d)
		}
		for j := 1; j < len(q.Deltas); j++ {
			itl = append(itl, q.Deltas[j].At-q.Deltas[j-1].At)
		}
		for name, d := range q.Answer.Stages {
			stages[name] = append(stages[name], d)
		}
		s.count(q)
	}
	if w := s.WindowSeconds; w > 0 {
		s.DueRate, s.Throughput, s.Goodput = float64(s.Due)/w, float64(done)/w, float64(s.Good)/w
		s.OutputRate, s.PromptRate, s.ImageRate = float64(tokens)/w, float64(prompt)/w, float64(images)/w
	}
	if n := s.Due - s.Abandoned; n > 0 {
		s.Attainment = float64(s.Good) / float64(n)
	}
	s.TTFT, s.TPOT, s.ITL, s.E2E = quantiles(ttft), quantiles(tpot), quantiles(itl), quantiles(e2e)
	s.FromSend.TTFT, s.FromSend.E2E, s.Lag = quantiles(sentTTFT), quantiles(sentE2E), quantiles(lag)
	for name, d := range stages {
		s.Server[name] = quantiles(d)
	}
	return s
}

// count adds the tokens of a whole answer.
func (s *Summary) count(q *Sample) {
	t, a := &s.Tokens, q.Answer
	t.Prompt += a.Prompt
	t.Image += a.Image
	t.CachedImage += a.CachedImage
	t.Cached += a.Cached
	t.Output += a.Completion
	received := q.received()
	t.OutputReceived += received
	if received != a.Completion {
		t.Mismatches++
	}
	t.Missing += max(0, a.Completion-received)
	t.Extra += max(0, received-a.Completion)
}
