package batching

import "time"

// pace is what steps have taken and sequences needed lately: exponential averages, 0 until there is a measurement.
type pace struct {
	token  float64 // seconds for a prompt token in a chunk
	step   float64 // seconds for a decode step
	prompt float64 // tokens of a prompt
	fresh  float64 // the part of it that was not in the prefix cache
	answer float64 // tokens that a sequence gave
	long   float64 // the same of one that gave many: few give more
	tpot   float64 // seconds from one token of a sequence to the next

	// Of decode steps, by whether they had drafts: seconds for each token that came of them. While drafts cost more than
	// they bring, off counts the steps until they are tried again, which next time is after wait.
	plain, drafted float64
	off, wait      int
}

// longestOff is the most steps for which drafts that do not pay are left out.
const longestOff = 512

// judge records what came of a decode step.
func (p *pace) judge(tokens int, drafts bool, d time.Duration) {
	if tokens == 0 {
		return
	}
	perToken := d.Seconds() / float64(tokens)
	if !drafts {
		average(&p.plain, perToken)
		return
	}
	average(&p.drafted, perToken)
	switch {
	case p.plain == 0 || p.drafted <= p.plain:
		p.wait = 0
	default:
		p.wait = min(max(2*p.wait, 16), longestOff)
		p.off, p.drafted = p.wait, 0
	}
}

// draftsPay says whether the next step may have drafts, as far as the latest ones tell.
func (p *pace) draftsPay() bool {
	if p.off > 0 {
		p.off--
		return false
	}
	return true
}

// Chunks are cut to multiples of panel, and where that takes too long to multiples of sliver: with fewer tokens a chunk
// costs more by being run than by its tokens.
const panel, sliver = 16, 4

// chunk records that a chunk of n tokens took d.
func (p *pace) chunk(n int, d time.Duration) {
	if n >= sliver {
		average(&p.token, d.Seconds()/float64(n))
	}
}

// decode records that a decode step took d.
func (p *pace) decode(d time.Duration) { average(&p.step, d.Seconds()) }

// answered records an answer of n tokens, the last of which came d after the first. One that was cut tells only that there
// are answers so long; were it left out, those that miss their deadlines would not count.
func (p *pace) answered(n int, d time.Duration, cut bool) {
	if n > 1 {
		average(&p.tpot, d.Seconds()/float64(n-1))
	}
	if !cut {
		average(&p.answer, float64(n))
	}
	switch x := float64(n); {
	case p.long == 0:
		p.long = x
	case x > p.long:
		p.long += (x - p.long) / 2
	case !cut:
		p.long += (x - p.long) / 16
	}
}

// answering is how long an answer takes after its first token. It is taken for a long one, of at most so many tokens if
// most is above 0, and of just so many if nothing else can end it.
func (p *pace) answering(most int, endless bool) time.Duration {
	n := p.long
	switch {
	case endless:
		n = float64(most)
	case most > 0:
		n = min(n, float64(most))
	}
	return time.Duration(max(n-1, 0) * p.tpot * float64(time.Second))
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

// fitting is the number of prompt tokens, a multiple of panel or sliver up to most, with which a chunk takes factor times
// as long as a decode step. It steers itself: a chunk that took too long makes the next one shorter, and as a token costs
// more the fewer there are and the more came before, the length settles where the time is right.
func (p *pace) fitting(factor float64, most int) int {
	if p.token == 0 || p.step == 0 {
		return most
	}
	n := factor * p.step / p.token
	if n >= float64(most) {
		return most
	}
	if n >= panel {
		return min(int(n)/panel*panel, most)
	}
	return min(max(int(n)/sliver, 1)*sliver, most)
}
