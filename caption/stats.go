package caption

import (
	"container/heap"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Stats counts what a run does. Its methods may be called at any time, from any goroutine.
type Stats struct {
	// Noun is what is counted, in the plural. Default: images.
	Noun string

	listed, skipped, failedBefore, written, failed, copied, cut atomic.Int64
	retried, refused                                            atomic.Int64
	promptTokens, imageTokens, tokens, imageBytes               atomic.Int64

	mu      sync.Mutex
	run     *runner // nil before and after the run
	began   time.Time
	ended   time.Time
	errors  map[string]*ErrorKind
	slowest slowest
}

// ErrorKind is an error code: how many rows have it, and one of them.
type ErrorKind struct {
	Code    string `json:"code"`
	Count   int64  `json:"count"`
	ID      string `json:"example_id"`
	Example string `json:"example"`
}

// Slow is a row that took long.
type Slow struct {
	ID      string  `json:"id"`
	Seconds float64 `json:"seconds"`
	Tokens  uint32  `json:"tokens"`
}

// Snapshot is what a run has done so far.
type Snapshot struct {
	// Listed images, and rows: skipped because they are there, written, of those failed, copied, and cut by max_tokens.
	Listed     int64 `json:"listed"`
	Skipped    int64 `json:"skipped"`
	Written    int64 `json:"written"`
	Failed     int64 `json:"failed"`
	Duplicates int64 `json:"duplicates"`
	Cut        int64 `json:"cut"`
	// FailedBefore rows are skipped ones without an answer.
	FailedBefore int64 `json:"failed_before"`
	// Retried calls, and calls that found a server full.
	Retried int64 `json:"retried"`
	Refused int64 `json:"refused"`
	// Tokens of prompts, of those of images, and of answers.
	PromptTokens int64 `json:"prompt_tokens"`
	ImageTokens  int64 `json:"image_tokens"`
	Tokens       int64 `json:"completion_tokens"`
	// ImageBytes is the size of the images that rows were written for.
	ImageBytes int64         `json:"image_bytes"`
	Elapsed    time.Duration `json:"elapsed_ns"`
	// InFlight calls are open, of at most Limit.
	InFlight int `json:"in_flight"`
	Limit    int `json:"limit"`
	// ReadFull and WriteFull tell how full the queues before asking and before writing are, 0 to 1. An empty first one:
	// reading is the bottleneck; a full second one: writing is.
	ReadFull  float64 `json:"read_queue"`
	WriteFull float64 `json:"write_queue"`
	Paused    bool    `json:"paused"`
}

func (s *Stats) start(r *runner) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run = r
	if s.began.IsZero() { // else it counts several runs, one after the other
		s.began, s.errors = time.Now(), map[string]*ErrorKind{}
	}
}

func (s *Stats) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run, s.ended = nil, time.Now()
}

// skip counts a row that is there from an earlier run.
func (s *Stats) skip(r *Row) {
	s.skipped.Add(1)
	if r.OK() {
		return
	}
	s.failedBefore.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure(r)
}

// failure notes the kind of a failed row. The caller holds mu.
func (s *Stats) failure(r *Row) {
	k := s.errors[r.ErrorCode]
	if k == nil {
		k = &ErrorKind{Code: r.ErrorCode, ID: r.ID, Example: r.Error}
		s.errors[r.ErrorCode] = k
	}
	k.Count++
}

// wrote counts a row.
func (s *Stats) wrote(r *Row) {
	s.written.Add(1)
	if r.DuplicateOf != "" {
		s.copied.Add(1)
	} else {
		s.promptTokens.Add(int64(r.PromptTokens))
		s.imageTokens.Add(int64(r.ImageTokens))
		s.tokens.Add(int64(r.CompletionTokens))
	}
	if r.FinishReason == "length" {
		s.cut.Add(1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slowest.add(Slow{r.ID, r.Seconds, r.CompletionTokens})
	if r.OK() {
		return
	}
	s.failed.Add(1)
	s.failure(r)
}

// Snapshot gives the counts.
func (s *Stats) Snapshot() Snapshot {
	n := Snapshot{
		Listed: s.listed.Load(), Skipped: s.skipped.Load(), FailedBefore: s.failedBefore.Load(), Written: s.written.Load(),
		Failed:     s.failed.Load(),
		Duplicates: s.copied.Load(), Cut: s.cut.Load(), Retried: s.retried.Load(), Refused: s.refused.Load(),
		PromptTokens: s.promptTokens.Load(), ImageTokens: s.imageTokens.Load(), Tokens: s.tokens.Load(),
		ImageBytes: s.imageBytes.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.began.IsZero() {
		return n
	}
	if s.run == nil {
		n.Elapsed = s.ended.Sub(s.began)
		return n
	}
	n.Elapsed = time.Since(s.began)
	n.InFlight, n.Limit = s.run.lim.now()
	n.ReadFull = float64(len(s.run.ordered)) / float64(cap(s.run.ordered))
	n.WriteFull = float64(len(s.run.rows)) / float64(cap(s.run.rows))
	n.Paused = s.run.brk.paused()
	return n
}

// Errors gives the kinds of errors, the most frequent first.
func (s *Stats) Errors() []ErrorKind {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ErrorKind
	for _, k := range slices.Sorted(maps.Keys(s.errors)) {
		out = append(out, *s.errors[k])
	}
	slices.SortStableFunc(out, func(a, b ErrorKind) int { return int(b.Count - a.Count) })
	return out
}

// Slowest gives the rows that took longest, the slowest first.
func (s *Stats) Slowest() []Slow {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Clone(s.slowest)
	slices.SortFunc(out, func(a, b Slow) int {
		if a.Seconds > b.Seconds {
			return -1
		}
		return 1
	})
	return out
}

// slowest is a heap of the slowest rows, the fastest of them on top.
type slowest []Slow

const keepSlowest = 10

func (h slowest) Len() int           { return len(h) }
func (h slowest) Less(i, j int) bool { return h[i].Seconds < h[j].Seconds }
func (h slowest) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *slowest) Push(x any)        { *h = append(*h, x.(Slow)) }
func (h *slowest) Pop() any {
	x := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return x
}

func (h *slowest) add(s Slow) {
	switch {
	case s.Seconds == 0:
	case len(*h) < keepSlowest:
		heap.Push(h, s)
	case s.Seconds > (*h)[0].Seconds:
		(*h)[0] = s
		heap.Fix(h, 0)
	}
}
