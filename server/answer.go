package server

import (
	"context"
	"errors"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/tokenizer"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// answer is one of the n answers of a request on its way from tokens to messages. One goroutine has it.
type answer struct {
	server *Server
	rec    *record
	index  int
	stream *batching.Stream
	send   func(*pb.GenerateStreamResponse) error

	text  *tokenizer.Stream
	ends  []int32 // ids without text
	stops stopMatcher
	told  int  // tokens that deltas told of
	trim  bool // a space may come that belongs to the template and is left out

	logprobs   []logprob      // not sent yet
	prompt     []*pb.Logprobs // of which nothing was sent yet, promptSize bytes
	promptSize int
	made       int // bytes of text so far, and of these
	sent       int // those sent
}

// logprob is a token's, with the number of bytes of text that were there once it had come: it is told with the last of
// them, as a token that only a stop string was made of is not to be known.
type logprob struct {
	end int
	out *pb.Logprobs
}

func (s *Server) newAnswer(rec *record, req *request, index int, stream *batching.Stream, send func(*pb.GenerateStreamResponse) error) *answer {
	return &answer{
		server: s, rec: rec, index: index, stream: stream, send: send, ends: req.ends,
		text: s.model.Prompter.Tokenizer.NewStream(true), stops: stopMatcher{stops: req.stop},
	}
}

// deliver turns the engine's tokens into text and sends it, up to a stop string or the engine's own end.
func (a *answer) deliver(ctx context.Context) error {
	for {
		e, err := a.stream.Next(ctx)
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, errCut):
			_ = a.delta(a.stops.flush()) // a client that does not hear of this hears of the next
			return errCut
		case cause != nil:
			return cause
		case err != nil:
			return err
		}
		piece := a.trimmed(a.read(e))
		if err := a.tellPrompt(e); err != nil {
			return err
		}
		a.made += len(piece)
		if e.HasToken && e.Token.Logprobs != nil {
			a.logprobs = append(a.logprobs, logprob{a.made, a.server.logprobs(e.Token.ID, e.Token.Logprobs)})
		}
		out, matched, found := a.stops.push(piece)
		if !found && e.Finish != batching.Running {
			out += a.stops.flush()
		}
		if err := a.delta(out); err != nil {
			return err
		}
		switch {
		case found:
			a.stream.Cancel() // now, as sending may have to wait for the client
			a.logprobs = nil
			return a.finish(pb.FinishReason_FINISH_REASON_STOP, &matched)
		case e.Finish == batching.Error:
			return constraintError(ctx, "", e.Err)
		case e.Finish == batching.Expired:
			return context.DeadlineExceeded
		case e.Finish == batching.Cancelled: // by the engine's end, as nobody here asked for it
			return errCut
		case e.Finish != batching.Running:
			return a.finish(finishReasons[e.Finish], nil)
		}
	}
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

// trimmed leaves a space at the start of the answer out, if it is the template's.
func (a *answer) trimmed(piece string) string {
	if a.trim && piece != "" {
		a.trim = false
		return strings.TrimPrefix(piece, " ")
	}
	return piece
}

func (a *answer) counts() *answered { return &a.rec.answers[a.index] }

// pieceBytes is about how much of log-probabilities one message carries; clients accept 4 MiB.
const pieceBytes = 256 << 10

// tellPrompt sends the prompt's log-probabilities in pieces, and leaves the last to finish.
func (a *answer) tellPrompt(e batching.Event) error {
	for i := range e.Prompt {
		l := a.server.logprobs(a.rec.ids[i+1], &e.Prompt[i])
		a.prompt = append(a.prompt, l)
		if a.promptSize += proto.Size(l); a.promptSize < pieceBytes {
			continue
		}
		if err := a.sendDelta(&pb.StreamDelta{PromptLogprobs: a.prompt}); err != nil {
			return err
		}
		a.prompt, a.promptSize = nil, 0
	}
	return nil
}

// few is the end of list that fits one message, after it sent the rest.
func (a *answer) few(list []*pb.Logprobs) ([]*pb.Logprobs, error) {
	size, from := 0, 0
	for i, l := range list {
		if size += proto.Size(l); size < pieceBytes {
			continue
		}
		if err := a.sendDelta(&pb.StreamDelta{Logprobs: list[from : i+1]}); err != nil {
			return nil, err
		}
		size, from = 0, i+1
	}
	return list[from:], nil
}

func (a *answer) sendDelta(d *pb.StreamDelta) error {
	d.Index = uint32(a.index)
	return a.send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Delta{Delta: d}})
}

// delta sends text, if there is any.
func (a *answer) delta(text string) error {
	if text == "" {
		return nil
	}
	a.sent += len(text)
	logprobs, err := a.few(a.due(a.sent))
	if err != nil {
		return err
	}
	d := &pb.StreamDelta{Text: text, Tokens: uint32(a.counts().completion - a.told), Logprobs: logprobs}
	a.told = a.counts().completion
	return a.sendDelta(d)
}

// due takes the log-probabilities of the tokens whose text has been sent once sent bytes have been.
func (a *answer) due(sent int) (list []*pb.Logprobs) {
	for len(a.logprobs) > 0 && a.logprobs[0].end <= sent {
		list = append(list, a.logprobs[0].out)
		a.logprobs = a.logprobs[1:]
	}
	return list
}

func (a *answer) finish(reason pb.FinishReason, matched *string) error {
	logprobs, err := a.few(a.due(a.made))
	if err != nil {
		return err
	}
	c := a.counts()
	c.finish, c.timing = reason, a.stream.Timing()
	f := &pb.StreamFinish{
		FinishReason: reason, MatchedStop: matched, Index: uint32(a.index),
		Usage: a.rec.usage(*c), Timings: a.rec.timings(c.timing),
		Logprobs: logprobs, PromptLogprobs: a.prompt,
	}
	if a.index == 0 {
		f.ChoiceScores = a.rec.scores
	}
	return a.send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Finish{Finish: f}})
}

var finishReasons = map[batching.FinishReason]pb.FinishReason{
	batching.Stop:   pb.FinishReason_FINISH_REASON_STOP,
	batching.Length: pb.FinishReason_FINISH_REASON_LENGTH,
}

// logprobs writes a token's log-probabilities out.
func (s *Server) logprobs(id int32, l *decoder.Logprobs) *pb.Logprobs {
	one := func(id int32, value float32) *pb.TokenLogprob {
		return &pb.TokenLogprob{Id: uint32(id), Text: s.model.Prompter.Tokenizer.TokenBytes(id), Logprob: value}
	}
	out := &pb.Logprobs{Token: one(id, l.Picked)}
	for _, t := range l.Top {
		out.Top = append(out.Top, one(t.ID, t.Logprob))
	}
	return out
}
