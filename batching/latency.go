package batching

import (
	"math"
	"time"
)

// latencyModel is how long steps took and how much sequences needed lately. It is a plain value: estimates are made
// from copies. The zero value knows nothing and estimates 0.
type latencyModel struct {
	token recent // seconds for a prompt token in a chunk
	step  recent // seconds for a decode step
	gap   recent // seconds from one token of a sequence to its next, chunks of others in between included

	prompt float64 // tokens of a prompt
	fresh  float64 // the part of it that was not in the prefix cache
	answer float64 // tokens that a sequence gave
	long   float64 // the same of one that gave many: few give more

	measured time.Time // when a step was measured last

	// Of decode steps, by whether they had drafts: seconds for each token that came of them. While drafts cost more than
	// they bring, off counts the steps until they are tried again, which next time is after wait.
	plain, drafted float64
	off, wait      int
}

const (
	// freshFor is how long after the last step estimates hold in full; from then on they halve every fadeBy. An estimate
	// that refuses all work prevents its own correction, so it must not last.
	freshFor, fadeBy = 10 * time.Second, 10 * time.Second
	// longestOff is the most steps for which drafts that do not pay are left out.
	longestOff = 512
	// stallFactor is how many usual steps a step counts for at most where the cost of drafts is averaged.
	stallFactor = 4
)

// recent is a window of the latest measurements.
type recent struct {
	samples [8]float64
	n       int // measurements so far
}

func (r *recent) add(x float64) {
	if x > 0 { // otherwise the clock has not moved, or backwards
		r.samples[r.n%len(r.samples)] = x
		r.n++
	}
}

// mean leaves the largest measurement out: a process that stood still for a while makes one that says nothing about the
// next.
func (r *recent) mean() float64 {
	k, sum, largest := min(r.n, len(r.samples)), 0.0, 0
	for i, x := range r.samples[:k] {
		if x > r.samples[largest] {
			largest = i
		}
	}
	if k < 2 {
		return r.samples[0]
	}
	for i, x := range r.samples[:k] {
		if i != largest {
			sum += x
		}
	}
	return sum / float64(k-1)
}

// recordChunk records that a chunk of n tokens took d.
func (m *latencyModel) recordChunk(n int, d time.Duration, now time.Time) {
	m.measured = now
	if n >= sliver {
		m.token.add(d.Seconds() / float64(n))
	}
}

// recordMixed records that a step that decoded, and ran a chunk of n tokens beside, took d, gap after the decode step
// before.
func (m *latencyModel) recordMixed(n int, d, gap time.Duration, now time.Time) {
	m.measured = now
	if step := m.step.mean(); n >= sliver && step > 0 {
		m.token.add(max(d.Seconds()-step, d.Seconds()/16) / float64(n))
	}
	m.gap.add(gap.Seconds())
}

// recordDecode records that a decode step of so many rows took d and gave so many tokens, gap after the decode step
// before.
func (m *latencyModel) recordDecode(d, gap time.Duration, rows, tokens int, now time.Time) {
	m.measured = now
	m.step.add(d.Seconds())
	if tokens > 0 {
		m.gap.add(gap.Seconds() * float64(rows) / float64(tokens))
	}
}

// recordDrafts records what came of a decode step with or without drafts.
func (m *latencyModel) recordDrafts(tokens int, drafts bool, d time.Duration) {
	if tokens == 0 {
		return
	}
	seconds := d.Seconds()
	if usual := m.step.mean(); usual > 0 {
		seconds = min(seconds, stallFactor*usual)
	}
	perToken := seconds / float64(tokens)
	if !drafts {
		average(&m.plain, perToken)
		return
	}
	average(&m.drafted, perToken)
	switch {
	case m.plain == 0 || m.drafted <= m.plain:
		m.wait = 0
	default:
		m.wait = min(max(2*m.wait, 16), longestOff)
		m.off, m.drafted = m.wait, 0
	}
}

// draftsPay says whether the next step may have drafts, as far as the latest ones tell.
func (m *latencyModel) draftsPay() bool {
	if m.off > 0 {
		m.off--
		return false
	}
	return true
}

// recordAnswer records an answer of n tokens. One that was cut tells only that there are answers so long; were it left
// out, those that miss their deadlines would not count.
func (m *latencyModel) recordAnswer(n int, cut bool) {
	if !cut {
		average(&m.answer, float64(n))
	}
	switch x := float64(n); {
	case m.long == 0:
		m.long = x
	case x > m.long:
		m.long += (x - m.long) / 2
	case !cut:
		m.long += (x - m.long) / 16
	}
}

// recordPrompt records that a prompt of n tokens begins, so many of them found in the prefix cache.
func (m *latencyModel) recordPrompt(n, cached int) {
	average(&m.prompt, float64(n))
	average(&m.fresh, float64(n-cached)/float64(n))
}

// answering is how many seconds an answer takes after its first token. It is taken for a long one, of at most so many
// tokens if most is above 0, and of just so many if nothing else can end it.
func (m *latencyModel) answering(most int, endless bool) float64 {
	n := m.long
	switch {
	case endless && most > 0:
		n = float64(most)
	case most > 0:
		n = min(n, float64(most))
	}
	return max(n-1, 0) * m.gap.mean()
}

// faded is what is left at now of an estimate in seconds. A clock that jumped back counts as one that went on.
func (m *latencyModel) faded(seconds float64, now time.Time) time.Duration {
	if idle := now.Sub(m.measured).Abs(); idle > freshFor {
		seconds *= math.Exp2(-float64(idle-freshFor) / float64(fadeBy))
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond)
}

func average(a *float64, x float64) {
	switch {
	case x <= 0: // the clock has not moved
	case *a == 0:
		*a = x
	default:
		*a += (x - *a) / 4
	}
}

// Chunks are cut to multiples of panel, and where that takes too long to multiples of sliver: with fewer tokens a chunk
// costs more by being run than by its tokens.
const panel, sliver = 16, 4

// fitting is the number of prompt tokens, a multiple of panel or sliver up to most, with which a chunk takes factor
// times as long as a decode step. It steers itself: chunks that took too long make the next ones shorter, and as a
// token costs more the fewer there are and the more came before, the length settles where the time is right.
func (m *latencyModel) fitting(factor float64, most int) int {
	token, step := m.token.mean(), m.step.mean()
	if token == 0 || step == 0 {
		return most
	}
	n := factor * step / token
	if n >= float64(most) {
		return most
	}
	if n >= panel {
		return min(int(n)/panel*panel, most)
	}
	return min(max(int(n)/sliver, 1)*sliver, most)
}
