package serving

import (
	"context"
	"errors"
	"slices"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/tokenizer"
	"github.com/mmserve/mmserve/safety"
)

// answer is one of the n answers of a request on its way from tokens to events. One goroutine has it.
type answer struct {
	rec    *record
	index  int
	stream *batching.Stream
	to     Sink

	tokenizer *tokenizer.Tokenizer
	text      *tokenizer.Stream
	ends      []int32 // ids without text
	stages    *chain
	told      int // tokens that deltas told of

	leaving string // text that came out of the stages and was not sent yet
	thought string // the same of the model's thoughts
	passed  int    // bytes of text that the stages have accounted for, of
	made    int    // those there are so far

	tokenIDs   bool       // are told
	tokens     []token    // of which something is to be told and was not yet
	ready      []Logprobs // those of the next event; its memory is used again
	readyIDs   []int32    // the same of ids
	prompt     []Logprobs // of which nothing was sent yet, promptSize bytes
	promptSize int
	delta      Delta // the next; it is used again

	policed *policed       // nil without a policy
	filter  *safety.Stream // nil where the policy lets every text pass
	// classified is nil where no model looks at answers.
	classified *classifierStage
}

// token is what is told of one, with the bytes of text that it added: it is told once all of them are out, as a token
// that only a stop string was made of is not to be known.
type token struct {
	begin, end int
	hidden     bool // a stage put other text in the place of some of it
	id         int32
	logprobs   *Logprobs // nil if they are not asked for
}

func (l *life) newAnswer(req *checked, index int, stream *batching.Stream, to Sink, trim bool) *answer {
	a := &answer{
		rec: l.rec, index: index, stream: stream, to: to, ends: req.ends, tokenIDs: req.tokenIDs,
		tokenizer: l.model.Prompter.Tokenizer, text: l.model.Prompter.Tokenizer.NewStream(true),
	}
	stages := append(l.stages(req, trim), a.policyStages(req)...)
	if m := l.thinking(req); m.Open != "" {
		a.text.Show(m.Tokens(a.tokenizer)...)
		stages = append(stages, &thinkingStage{marks: m, inside: req.thinks})
	}
	a.stages = newChain(stages, a.leave)
	return a
}

// thinking is how the thoughts of an answer are marked. Those in a raw prompt's answer are text as any other, and an
// answer that is held to a constraint has none.
func (l *life) thinking(req *checked) fusion.Thinking {
	if req.prompt.Messages == nil || req.constraint != nil {
		return fusion.Thinking{}
	}
	return l.model.Prompter.Thinking
}

// stages are what the text of an answer goes through, in order. trim is whether a space at its start is the template's.
func (l *life) stages(req *checked, trim bool) (list []Stage) {
	if trim {
		list = append(list, &trimStage{})
	}
	if len(req.stop) > 0 {
		list = append(list, &stopStage{stops: req.stop, include: req.includeStop})
	}
	for _, filter := range l.options.Filters {
		if stage := filter(l.model.Name, req.tenant); stage != nil {
			list = append(list, stage)
		}
	}
	return list
}

// deliver turns the engine's tokens into text and sends it, up to the end of a stage's or the engine's.
func (a *answer) deliver(ctx context.Context) error {
	for {
		e, err := a.stream.Next(ctx)
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, ErrCut):
			a.stages.flush(0)
			_ = a.send() // a client that does not hear of this hears of the next
			return ErrCut
		case cause != nil:
			return cause
		case err != nil:
			return err
		}
		over, err := a.take(e)
		if err != nil {
			return err
		}
		switch {
		case over != nil:
			a.tokens = a.tokens[:0]
			return a.finish(&Finish{Reason: over.Reason, Stop: over.Stop})
		case e.Finish == batching.Error:
			return constraintError(ctx, "", e.Err)
		case e.Finish == batching.Expired:
			return context.DeadlineExceeded
		case e.Finish == batching.Cancelled: // by the engine's end, as nobody here asked for it
			return ErrCut
		case e.Finish != batching.Running:
			f := &Finish{Reason: finishReasons[e.Finish]}
			if e.Finish == batching.Stop && e.HasToken {
				f.StopTokenID = &e.Token.ID
			}
			return a.finish(f)
		}
	}
}

// take has the text of e go through the stages, and sends what comes out. over is how a stage ended the answer.
func (a *answer) take(e batching.Event) (over *End, err error) {
	piece := a.read(e)
	if err := a.tellPrompt(e); err != nil {
		return nil, err
	}
	begin := a.made
	a.made += len(piece)
	if e.HasToken && (a.tokenIDs || e.Token.Logprobs != nil) {
		t := token{begin: begin, end: a.made, id: e.Token.ID}
		if e.Token.Logprobs != nil {
			l := a.tokenLogprobs(e.Token.ID, e.Token.Logprobs)
			t.logprobs = &l
		}
		a.tokens = append(a.tokens, t)
	}
	over = a.stages.push(piece)
	if over == nil && e.Finish != batching.Running {
		over = a.stages.flush(0)
	}
	if over != nil {
		a.stream.Cancel() // now, as sending may have to wait for the client
	}
	return over, a.send()
}

// read is the text that is certain with e.
func (a *answer) read(e batching.Event) (piece string) {
	if e.HasToken {
		a.counts().completion++
		if !slices.Contains(a.ends, e.Token.ID) {
			piece = a.text.Push(e.Token.ID)
		}
	}
	if e.Finish != batching.Running {
		piece += a.text.Flush()
	}
	return piece
}

// leave takes what comes out of the stages.
func (a *answer) leave(p Piece) {
	if p.thought {
		a.thought += p.Text
		a.counts().reasoning = a.counts().completion
	} else {
		a.leaving += p.Text
	}
	from := a.passed
	a.passed += p.Covers
	if !p.Hides {
		return
	}
	for i := range a.tokens {
		l := &a.tokens[i]
		// A token without text may hold the first bytes of a character whose last one is hidden.
		l.hidden = l.hidden || l.begin < a.passed && l.end > from || l.begin == l.end && l.begin == from
	}
}

func (a *answer) counts() *answered { return &a.rec.answers[a.index] }

// maxIDBytes is the most that a token's id takes in a message.
const maxIDBytes = 5

// pieceBytes is about how much of log-probabilities one event carries; gRPC's clients accept messages of 4 MiB.
const pieceBytes = 256 << 10

// tellPrompt sends the prompt's log-probabilities in pieces, and leaves the last to finish.
func (a *answer) tellPrompt(e batching.Event) error {
	for i := range e.Prompt {
		l := a.tokenLogprobs(a.rec.ids[i+1], &e.Prompt[i])
		a.prompt = append(a.prompt, l)
		if a.promptSize += l.bytes(); a.promptSize < pieceBytes {
			continue
		}
		if err := a.sendDelta(Delta{PromptLogprobs: a.prompt}); err != nil {
			return err
		}
		a.prompt, a.promptSize = nil, 0
	}
	return nil
}

// due is what is told of the tokens whose text is out once the stages have accounted for passed bytes, as far as it
// fits one event; it sends the rest before. It is valid until the next call.
func (a *answer) due(passed int) ([]Logprobs, []int32, error) {
	n, size := 0, 0
	a.ready, a.readyIDs = a.ready[:0], a.readyIDs[:0]
	for ; n < len(a.tokens) && a.tokens[n].end <= passed; n++ {
		t := &a.tokens[n]
		if t.hidden {
			continue
		}
		if a.tokenIDs {
			a.readyIDs = append(a.readyIDs, t.id)
			size += maxIDBytes
		}
		if t.logprobs != nil {
			a.ready = append(a.ready, *t.logprobs)
			size += t.logprobs.bytes()
		}
		if size < pieceBytes {
			continue
		}
		if err := a.sendDelta(Delta{Logprobs: a.ready, TokenIDs: a.readyIDs}); err != nil {
			return nil, nil, err
		}
		a.ready, a.readyIDs, size = a.ready[:0], a.readyIDs[:0], 0
	}
	a.tokens = slices.Delete(a.tokens, 0, n)
	return a.ready, a.readyIDs, nil
}

func (a *answer) sendDelta(d Delta) error {
	a.delta = d
	a.delta.Index = a.index
	return a.to.Delta(&a.delta)
}

// send sends the text that came out of the stages, if there is any.
func (a *answer) send() error {
	if a.leaving == "" && a.thought == "" {
		return nil
	}
	logprobs, ids, err := a.due(a.passed)
	if err != nil {
		return err
	}
	d := Delta{
		Text: a.leaving, Reasoning: a.thought, Tokens: a.counts().completion - a.told,
		Logprobs: logprobs, TokenIDs: ids,
	}
	a.told, a.leaving, a.thought = a.counts().completion, "", ""
	return a.sendDelta(d)
}

// finish sends f, which says how the answer ended, with all that is left to tell.
func (a *answer) finish(f *Finish) (err error) {
	if f.Logprobs, f.TokenIDs, err = a.due(a.made); err != nil {
		return err
	}
	c := a.counts()
	c.finish, c.timing = f.Reason, a.stream.Timing()
	f.Index, f.Usage, f.Timings, f.PromptLogprobs = a.index, a.rec.usage(*c), a.rec.timings(c.timing), a.prompt
	if f.Findings = a.findings(); a.filter != nil {
		c.found = a.filter.Counts()
	}
	if a.index == 0 {
		f.ChoiceScores = a.rec.scores
	}
	return a.to.Finish(f)
}

var finishReasons = map[batching.FinishReason]FinishReason{
	batching.Stop:   FinishStop,
	batching.Length: FinishLength,
}

// tokenLogprobs writes a token's log-probabilities out.
func (a *answer) tokenLogprobs(id int32, l *decoder.Logprobs) Logprobs {
	one := func(id int32, value float32) TokenLogprob {
		return TokenLogprob{ID: id, Text: a.tokenizer.TokenBytes(id), Logprob: value}
	}
	out := Logprobs{Token: one(id, l.Picked)}
	if len(l.Top) > 0 {
		out.Top = make([]TokenLogprob, len(l.Top))
		for i, t := range l.Top {
			out.Top[i] = one(t.ID, t.Logprob)
		}
	}
	return out
}
