package serving

// Stage is a link of the chain that an answer's text goes through before it leaves: it lets text through, holds it
// back, puts other text in its place, leaves it out, or ends the answer. One goroutine calls it, for one answer.
//
// What a stage emits, in order, accounts for its input from the first byte on. How the input was cut must not matter:
// the text that leaves, and the end, are the same for every cut (servingtest.TestStage holds that).
type Stage interface {
	// Push takes the next bytes of the answer, which need not be whole words, and emits what is certain. An End is the
	// answer's: what was not emitted does not leave, and nothing is pushed any more.
	Push(text string, emit func(Piece)) *End
	// Flush emits what was held back, because the text ends here. It is called once at most, and not after an End.
	Flush(emit func(Piece)) *End
}

// Filter makes a stage for one answer of a model to a tenant ("" where the request names none); nil lets the text pass.
// It is called concurrently.
type Filter func(model, tenant string) Stage

// Piece is text on its way out.
type Piece struct {
	Text string
	// Covers is how many bytes of the stage's input it stands for: len(Text) where that is passed on as it came.
	Covers int
	// Hides says that the input is not to be known: the log-probabilities of its tokens do not leave either.
	Hides bool
	// thought says that it is of the model's thoughts, in a piece of the last stage.
	thought bool
}

// End is how a stage ends an answer.
type End struct {
	Reason FinishReason
	// Stop is the stop string that was found; nil if none was.
	Stop *string
}

// chain runs stages one after the other, and tells for what comes out of the last how much of the text that went into
// the first it accounts for.
type chain struct {
	links []link
	out   func(Piece)
}

// link is a stage, with what it was given and has not accounted for yet.
type link struct {
	stage Stage
	emit  func(Piece)
	given []segment
	end   *End // how a later stage ended the answer while this one emitted
}

// segment is a run of bytes of a stage's input, and how many bytes of the chain's input they stand for.
type segment struct {
	bytes, covers int
	hides         bool
}

// newChain gives what the last of the stages emits to out, its Covers in bytes of the chain's input.
func newChain(stages []Stage, out func(Piece)) *chain {
	c := &chain{links: make([]link, len(stages)), out: out}
	for i, s := range stages {
		c.links[i] = link{stage: s, emit: func(p Piece) { c.emitted(i, p) }}
	}
	return c
}

// push takes the next text of the answer.
func (c *chain) push(text string) *End {
	if text == "" {
		return nil
	}
	return c.give(0, Piece{Text: text, Covers: len(text)})
}

// give hands a piece to the stage i, or out. Where that stage ends the answer, those after it are flushed.
func (c *chain) give(i int, p Piece) *End {
	if i == len(c.links) {
		c.out(p)
		return nil
	}
	l := &c.links[i]
	l.add(segment{len(p.Text), p.Covers, p.Hides})
	if p.Text == "" { // accounted for with the next bytes, or at the end
		return nil
	}
	return c.ended(i, l.stage.Push(p.Text, l.emit))
}

// ended is how the answer ends after stage i said so, or a later one, which knew less text, before it.
func (c *chain) ended(i int, end *End) *End {
	if later := c.links[i].end; later != nil {
		return later
	}
	if end == nil {
		return nil
	}
	if later := c.flush(i + 1); later != nil {
		return later
	}
	return end
}

// emitted takes what stage i gives, until a later one has ended the answer. What the stage passed on as it came is cut
// where the stages before put other text, so that no more is hidden than they hid.
func (c *chain) emitted(i int, p Piece) {
	l := &c.links[i]
	for p.Covers == len(p.Text) && !p.Hides && len(l.given) > 1 && l.given[0].bytes < p.Covers && l.end == nil {
		n := l.given[0].bytes
		l.end = c.give(i+1, l.take(Piece{Text: p.Text[:n], Covers: n, thought: p.thought}))
		p.Text, p.Covers = p.Text[n:], p.Covers-n
	}
	if l.end == nil {
		l.end = c.give(i+1, l.take(p))
	}
}

// flush ends the text for the stages from i on.
func (c *chain) flush(i int) *End {
	for ; i < len(c.links); i++ {
		l := &c.links[i]
		if end := c.ended(i, l.stage.Flush(l.emit)); end != nil {
			return end
		}
		if len(l.given) > 0 { // left out by stages before
			c.give(i+1, l.take(Piece{Covers: l.bytes()}))
		}
	}
	return nil
}

func (s segment) verbatim() bool { return s.bytes == s.covers && !s.hides }

// add notes a segment of the link's input.
func (l *link) add(s segment) {
	if n := len(l.given) - 1; n >= 0 && l.given[n].verbatim() && s.verbatim() {
		l.given[n].bytes += s.bytes
		l.given[n].covers += s.covers
		return
	}
	l.given = append(l.given, s)
}

// bytes is how many bytes of the link's input are not accounted for.
func (l *link) bytes() (n int) {
	for _, s := range l.given {
		n += s.bytes
	}
	return n
}

// take gives p with its Covers in bytes of the chain's input instead of the link's. A segment that a stage put in the
// place of another text is accounted for with its last byte.
func (l *link) take(p Piece) Piece {
	left, i := p.Covers, 0
	p.Covers = 0
	for ; i < len(l.given); i++ {
		s := &l.given[i]
		if left == 0 && s.bytes > 0 {
			break
		}
		p.Hides = p.Hides || s.hides
		if left < s.bytes {
			if s.verbatim() {
				p.Covers += left
				s.covers -= left
			}
			s.bytes -= left
			break
		}
		left -= s.bytes
		p.Covers += s.covers
	}
	l.given = append(l.given[:0], l.given[i:]...)
	return p
}
