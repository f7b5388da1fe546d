package tokenizer

import (
	"slices"
	"strconv"
	"strings"
)

// decoder is one step from tokens to text.
//
// Tokens go through the steps one by one. After a step that fuses them there is one
// token left, the whole text, which the steps after it get in parts.
type decoder interface {
	// stage returns the step for one text, which gives what it makes of it to next.
	// fused says that its input is parts of one token. A stage is used by one goroutine.
	stage(next stage, fused bool) stage
	// fuses says that the output is parts of one token even if the input is not.
	fuses() bool
	// raw is what the step makes of one token amid others.
	raw(token string, fused bool) string
}

type stage interface {
	push(token string)
	flush() // the tokens are over
}

// Decode returns the text of ids, without special tokens if skipSpecial. An id without a
// token has no text. Bytes that are no UTF-8 become U+FFFD.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	s := t.NewStream(skipSpecial)
	for _, id := range ids {
		s.feed(id)
	}
	return s.Flush()
}

// Stream decodes ids one at a time. It is used by one goroutine.
type Stream struct {
	tokenizer   *Tokenizer
	skipSpecial bool
	shown       []int32 // special tokens that are not left out
	first       stage
	out         *output
}

// NewStream returns a stream, which leaves out special tokens if skipSpecial. What its
// Push and Flush return is, put together, what Decode returns.
func (t *Tokenizer) NewStream(skipSpecial bool) *Stream {
	out := new(output)
	s := &Stream{tokenizer: t, skipSpecial: skipSpecial, out: out}
	if len(t.decoders) == 0 {
		s.first = &joiner{out: out}
		return s
	}
	fused := make([]bool, len(t.decoders)) // by step: its input
	for i := 1; i < len(t.decoders); i++ {
		fused[i] = fused[i-1] || t.decoders[i-1].fuses()
	}
	s.first = out
	for i := len(t.decoders) - 1; i >= 0; i-- {
		s.first = t.decoders[i].stage(s.first, fused[i])
	}
	return s
}

// Push takes the next id and returns the text that is certain now, which is empty while
// the bytes of a character are incomplete. Where the file decodes bytes by ByteFallback,
// a run of byte tokens is certain at its end only: one wrong byte spoils them all.
func (s *Stream) Push(id int32) string {
	s.feed(id)
	return s.out.take()
}

// Flush ends the stream and returns the rest of the text.
func (s *Stream) Flush() string {
	s.first.flush()
	return s.out.take()
}

// Show has special tokens of these ids not left out. It comes before the first Push.
func (s *Stream) Show(ids ...int32) { s.shown = ids }

func (s *Stream) feed(id int32) {
	content, special, ok := s.tokenizer.Token(id)
	if ok && !(special && s.skipSpecial && !slices.Contains(s.shown, id)) {
		s.first.push(content)
	}
}

// TokenBytes returns the bytes that id stands for amid other tokens. It is nil for a
// special token and for an id without a token.
func (t *Tokenizer) TokenBytes(id int32) []byte {
	content, special, ok := t.Token(id)
	if !ok || special {
		return nil
	}
	fused := false
	for _, d := range t.decoders {
		content = d.raw(content, fused)
		fused = fused || d.fuses()
	}
	return []byte(content)
}

// output is the end of the stages.
type output struct{ text strings.Builder }

func (o *output) push(token string) { o.text.WriteString(token) }
func (o *output) flush()            {}

func (o *output) take() string {
	text := o.text.String()
	o.text.Reset()
	return text
}

// joiner puts spaces between tokens, which is what a file without a decoder means.
type joiner struct {
	out  *output
	some bool
}

func (j *joiner) push(token string) {
	if j.some {
		j.out.push(" ")
	}
	j.some = true
	j.out.push(token)
}

func (j *joiner) flush() {}

// whole gives a stage that needs whole tokens the parts of a fused one at the end.
type whole struct {
	text strings.Builder
	next stage
}

func (w *whole) push(part string) { w.text.WriteString(part) }

func (w *whole) flush() {
	w.next.push(w.text.String())
	w.next.flush()
}

// stageOf is a stage of a function from token to token. fused input is collected first.
func stageOf(f func(string) string, next stage, fused bool) stage {
	var s stage = &mapStage{f, next}
	if fused {
		s = &whole{next: s}
	}
	return s
}

type mapStage struct {
	f    func(string) string
	next stage
}

func (m *mapStage) push(token string) { m.next.push(m.f(token)) }
func (m *mapStage) flush()            { m.next.flush() }

// byteLevelDecoder maps tokens from the byte-level alphabet to bytes.
type byteLevelDecoder struct{}

func (byteLevelDecoder) fuses() bool { return true }

func (byteLevelDecoder) raw(token string, _ bool) string {
	return string(appendByteLevel(nil, token))
}

func (byteLevelDecoder) stage(next stage, fused bool) stage {
	var s stage = &byteLevelStage{next: next}
	if fused {
		s = &whole{next: s}
	}
	return s
}

type byteLevelStage struct {
	pending []byte
	next    stage
}

func (s *byteLevelStage) push(token string) {
	s.pending = appendByteLevel(s.pending, token)
	s.emit(false)
}

func (s *byteLevelStage) flush() {
	s.emit(true)
	s.next.flush()
}

// emit passes on the runes in pending, and at the end what could have become one.
func (s *byteLevelStage) emit(end bool) {
	var text strings.Builder
	rest := s.pending
	for len(rest) > 0 {
		n, valid, short := nextText(rest)
		if short && !end {
			break
		}
		if valid {
			text.Write(rest[:n])
		} else {
			text.WriteString("\uFFFD")
		}
		rest = rest[n:]
	}
	s.pending = append(s.pending[:0], rest...)
	if text.Len() > 0 {
		s.next.push(text.String())
	}
}

// replaceDecoder replaces the matches of a pattern in each token.
type replaceDecoder struct {
	find finder
	with string
}

func (replaceDecoder) fuses() bool { return false }

func (d replaceDecoder) raw(token string, _ bool) string {
	var b strings.Builder
	done := 0
	d.find.findAll(token, func(start, end int) {
		b.WriteString(token[done:start])
		b.WriteString(d.with)
		done = end
	})
	if done == 0 && b.Len() == 0 {
		return token
	}
	b.WriteString(token[done:])
	return b.String()
}

func (d replaceDecoder) stage(next stage, fused bool) stage {
	return stageOf(func(token string) string { return d.raw(token, fused) }, next, fused)
}

// byteFallbackDecoder turns runs of tokens such as <0xE2> into text. If a run is not
// UTF-8, each of its bytes is U+FFFD.
type byteFallbackDecoder struct{}

func (byteFallbackDecoder) fuses() bool { return false }

func (byteFallbackDecoder) raw(token string, _ bool) string {
	if b, ok := byteToken(token); ok {
		return string([]byte{b})
	}
	return token
}

func (byteFallbackDecoder) stage(next stage, fused bool) stage {
	var s stage = &byteFallbackStage{next: next}
	if fused {
		s = &whole{next: s}
	}
	return s
}

type byteFallbackStage struct {
	run  []byte
	next stage
}

func (s *byteFallbackStage) push(token string) {
	if b, ok := byteToken(token); ok {
		s.run = append(s.run, b)
		return
	}
	s.emit()
	s.next.push(token)
}

func (s *byteFallbackStage) flush() {
	s.emit()
	s.next.flush()
}

func (s *byteFallbackStage) emit() {
	defer func() { s.run = s.run[:0] }()
	for rest := s.run; len(rest) > 0; {
		n, valid, _ := nextText(rest)
		if !valid {
			for range s.run {
				s.next.push("\uFFFD")
			}
			return
		}
		rest = rest[n:]
	}
	if len(s.run) > 0 {
		s.next.push(string(s.run))
	}
}

// byteToken returns the byte of a token such as <0xE2>.
func byteToken(token string) (byte, bool) {
	if len(token) != len("<0xE2>") || !strings.HasPrefix(token, "<0x") || token[5] != '>' {
		return 0, false
	}
	b, err := strconv.ParseUint(token[3:5], 16, 8)
	return byte(b), err == nil
}

// fuseDecoder makes one token of all.
type fuseDecoder struct{}

func (fuseDecoder) fuses() bool                        { return true }
func (fuseDecoder) raw(token string, _ bool) string    { return token }
func (fuseDecoder) stage(next stage, fused bool) stage { return next }

// stripDecoder removes up to start and stop times content from the ends of a token.
type stripDecoder struct {
	content     string // one rune
	start, stop int
}

func (stripDecoder) fuses() bool { return false }

func (d stripDecoder) raw(token string, fused bool) string {
	if fused {
		return token // it is not at an end of the text
	}
	for i := 0; i < d.start && strings.HasPrefix(token, d.content); i++ {
		token = token[len(d.content):]
	}
	for i := 0; i < d.stop && strings.HasSuffix(token, d.content); i++ {
		token = token[:len(token)-len(d.content)]
	}
	return token
}

func (d stripDecoder) stage(next stage, fused bool) stage {
	if fused {
		return &stripStage{stripDecoder: d, next: next}
	}
	return stageOf(func(token string) string { return d.raw(token, false) }, next, false)
}

// stripStage strips a text that comes in parts.
type stripStage struct {
	stripDecoder     // start is how many may still be removed
	held         int // how many of content are at the end so far, and may be removed
	next         stage
}

func (s *stripStage) push(part string) {
	for ; s.start > 0 && strings.HasPrefix(part, s.content); s.start-- {
		part = part[len(s.content):]
	}
	if part == "" {
		return
	}
	s.start = 0
	text := strings.Repeat(s.content, s.held) + part
	rest := text
	for s.held = 0; s.held < s.stop && strings.HasSuffix(rest, s.content); s.held++ {
		rest = rest[:len(rest)-len(s.content)]
	}
	if rest != "" {
		s.next.push(rest)
	}
}

func (s *stripStage) flush() { s.next.flush() }

// metaspaceDecoder turns replacement into spaces; in the first token it removes it if
// the pre-tokenizer would have put it there.
type metaspaceDecoder struct {
	replacement string
	prepended   bool
}

func (metaspaceDecoder) fuses() bool { return false }

func (d metaspaceDecoder) raw(token string, _ bool) string {
	return strings.ReplaceAll(token, d.replacement, " ")
}

func (d metaspaceDecoder) stage(next stage, fused bool) stage {
	with := " "
	if d.prepended {
		with = ""
	}
	return stageOf(func(token string) string {
		token = strings.ReplaceAll(token, d.replacement, with)
		with = " "
		return token
	}, next, fused)
}

// wordPieceDecoder joins tokens that go on with a word, which start with prefix, and puts
// a space before the others. cleanUp then takes spaces away that English would not have.
type wordPieceDecoder struct {
	prefix  string
	cleanUp bool
}

func (wordPieceDecoder) fuses() bool { return false }

func (d wordPieceDecoder) raw(token string, fused bool) string {
	if fused {
		return token
	}
	return d.cleaned(d.joined(token))
}

func (d wordPieceDecoder) joined(token string) string {
	if after, ok := strings.CutPrefix(token, d.prefix); ok {
		return after
	}
	return " " + token
}

// cleaned applies the reference's replacements, in its order, within one token.
func (d wordPieceDecoder) cleaned(token string) string {
	if !d.cleanUp || !strings.Contains(token, " ") {
		return token
	}
	for _, r := range [][2]string{{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"},
		{" 'm", "'m"},
		{" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}} {
		token = strings.ReplaceAll(token, r[0], r[1])
	}
	return token
}

func (d wordPieceDecoder) stage(next stage, fused bool) stage {
	first := true
	return stageOf(func(token string) string {
		if !first {
			token = d.joined(token)
		}
		first = false
		return d.cleaned(token)
	}, next, fused)
}

// wordEndDecoder turns the suffix that ends a word into a space, in the last token into
// nothing.
type wordEndDecoder string

func (wordEndDecoder) fuses() bool { return false }

func (d wordEndDecoder) raw(token string, _ bool) string {
	return strings.ReplaceAll(token, string(d), " ")
}

func (d wordEndDecoder) stage(next stage, fused bool) stage {
	var s stage = &wordEndStage{suffix: string(d), next: next}
	if fused {
		s = &whole{next: s}
	}
	return s
}

type wordEndStage struct {
	suffix string
	held   string // the last token so far
	some   bool
	next   stage
}

func (s *wordEndStage) push(token string) {
	if s.some {
		s.next.push(strings.ReplaceAll(s.held, s.suffix, " "))
	}
	s.held, s.some = token, true
}

func (s *wordEndStage) flush() {
	if s.some {
		s.next.push(strings.ReplaceAll(s.held, s.suffix, ""))
	}
	s.next.flush()
}
