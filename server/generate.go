package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/constrain"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/vision"
)

// GenerateStream implements mmserve.v1.MMServe.
func (s *Server) GenerateStream(in *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	return s.generate(stream.Context(), in, stream.Send)
}

// Generate implements mmserve.v1.MMServe: the stream, collected.
func (s *Server) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	out := new(pb.GenerateResponse)
	var text strings.Builder
	err := s.generate(ctx, in, func(r *pb.GenerateStreamResponse) error {
		switch e := r.GetEvent().(type) {
		case *pb.GenerateStreamResponse_Start:
			out.Id, out.Model, out.ModelDigest, out.Seed = e.Start.GetId(), e.Start.GetModel(), e.Start.GetModelDigest(), e.Start.GetSeed()
		case *pb.GenerateStreamResponse_Delta:
			text.WriteString(e.Delta.GetText())
		case *pb.GenerateStreamResponse_Finish:
			out.Text, out.FinishReason, out.MatchedStop = text.String(), e.Finish.GetFinishReason(), e.Finish.MatchedStop
			out.Usage, out.Timings = e.Finish.GetUsage(), e.Finish.GetTimings()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// errCut is the cause of a request's end when the server shuts down and cannot wait any longer.
var errCut = errors.New("cut by shutdown")

// generate is the life of a request, in a straight line. The slot is taken before any work and given back
// whatever happens: by Release up to Submit, by the engine from there on, which drops the sequence when ctx ends.
// send is given one start, deltas, one finish.
func (s *Server) generate(ctx context.Context, in *pb.GenerateRequest, send func(*pb.GenerateStreamResponse) error) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer context.AfterFunc(s.shutdown, func() { end(errCut) })()
	ctx, rec := s.newRecord(ctx, in)
	defer func() { err = rec.close(ctx, recover(), err) }()

	req, err := s.validate(in)
	if err != nil {
		return err
	}
	method, _ := grpc.Method(ctx)
	rec.asked(req, method == pb.MMServe_GenerateStream_FullMethodName)
	deadline, _ := ctx.Deadline()
	ticket, err := s.engine.AcquireBy(deadline, req.priority, 0)
	if err != nil {
		return rec.refuse(err)
	}
	defer ticket.Release()

	images, err := s.prepare(ctx, rec, req.pictures)
	if err != nil {
		return err
	}
	rec.lap(&rec.preprocess)
	input, err := s.tokenize(req, images)
	if err != nil {
		return err
	}
	if req.sampling.Constraint, err = s.constrain(ctx, req.constraint); err != nil {
		return err
	}
	maxTokens, err := s.fit(req, input)
	if err != nil {
		return err
	}
	rec.prompt(input)
	rec.lap(&rec.tokenize)
	cached, err := s.encode(ctx, &input, images)
	if err != nil {
		return err
	}
	rec.cached = cached
	rec.lap(&rec.encode)

	stream, err := s.engine.Submit(ctx, ticket, batching.Request{
		ID: rec.id, Input: input, MaxTokens: maxTokens, Stop: req.eos, Sampling: req.sampling,
		Priority: req.priority, Tenant: req.tenant, Deadline: deadline, Tag: rec.tag(),
	})
	if err != nil {
		return rec.refuse(err)
	}
	defer func() { rec.timing = stream.Timing() }()
	if err := send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Start{Start: &pb.StreamStart{
		Id: rec.id, Model: s.model.Name, ModelDigest: s.model.Digest, Seed: req.sampling.Seed, Usage: rec.usage(),
	}}}); err != nil {
		return err
	}
	return s.deliver(ctx, rec, req.stop, stream, send)
}

// prepare decodes the pictures one after the other, each when a core is free for it.
func (s *Server) prepare(ctx context.Context, rec *record, pictures []picture) ([]*vision.Image, error) {
	images := make([]*vision.Image, len(pictures))
	for i, p := range pictures {
		select {
		case s.preparing <- struct{}{}:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		began := time.Now()
		img, err := func() (*vision.Image, error) {
			defer func() { <-s.preparing }() // also when a decoder panics
			if len(pictures) > 1 && s.model.Layout.SplitAlone {
				p.detail = pb.Detail_DETAIL_LOW
			}
			return s.model.Prepare(p.data, p.detail)
		}()
		rec.pictures = append(rec.pictures, preparation{began, time.Now(), len(p.data), img})
		if errors.Is(err, vision.ErrImage) {
			return nil, invalid(p.field, "%v", err)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.field, err)
		}
		images[i] = img
	}
	return images, nil
}

// tokenize writes the prompt out, replaces each placeholder by its picture's expansion, turns it all into ids and
// finds the pictures' positions among them.
func (s *Server) tokenize(req *request, images []*vision.Image) (fusion.Input, error) {
	var p chat.Prompt
	var err error
	field, addSpecial := "chat.messages", s.model.AddSpecial
	if req.messages != nil {
		p, err = s.model.Template.Render(req.messages)
		addSpecial = addSpecial && (s.model.BOS == "" || !strings.HasPrefix(p.Text, s.model.BOS))
	} else {
		field = "prompt.parts"
		p, err = chat.Raw(req.raw, s.model.Layout.Placeholder, s.model.Guarded)
	}
	if errors.Is(err, chat.ErrMessages) {
		return fusion.Input{}, invalid(field, "%v", err)
	}
	if err != nil {
		return fusion.Input{}, err
	}
	grids := make([]vision.Grid, len(images))
	for i, img := range images {
		grids[i] = img.Grid
	}
	text, err := s.model.Layout.ExpandPrompt(p.Text, grids)
	if err != nil {
		return fusion.Input{}, err
	}
	ids := s.model.Tokenizer.EncodeGuarded(text, p.Guard, addSpecial)
	if len(ids) == 0 {
		return fusion.Input{}, invalid(field, "no tokens; want at least one")
	}
	if len(images) == 0 {
		return fusion.Input{IDs: ids}, nil
	}
	return s.model.Layout.Locate(ids, images)
}

// constrain compiles a constraint, when a core is free for it; nil gives nil.
func (s *Server) constrain(ctx context.Context, in *pb.Constraint) (decoder.Constraint, error) {
	if in == nil {
		return nil, nil
	}
	select {
	case s.preparing <- struct{}{}:
		defer func() { <-s.preparing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	compiler, err := s.model.Compiler()
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "constraint: model %q takes none: %v", s.model.Name, err)
	}
	var g *constrain.Grammar
	var field string
	switch kind := in.GetKind().(type) {
	case *pb.Constraint_Choices:
		field = "choices.texts"
		g, err = compiler.Choice(kind.Choices.GetTexts())
	case *pb.Constraint_Regex:
		field = "regex"
		g, err = compiler.Regexp(kind.Regex)
	case *pb.Constraint_JsonSchema:
		field = "json_schema"
		g, err = compiler.JSONSchema([]byte(kind.JsonSchema))
	default:
		field = "json_object"
		g, err = compiler.JSONObject()
	}
	if err != nil {
		return nil, invalid("constraint."+field, "%v", err)
	}
	return g.Start(), nil
}

// fit gives the most tokens to generate, or says why the request does not fit the context.
func (s *Server) fit(req *request, in fusion.Input) (maxTokens int, err error) {
	prompt, room := len(in.IDs), s.model.MaxLen-len(in.IDs)
	if room < 1 {
		return 0, invalid("input", "%d tokens, %d of them of pictures; want at most %d, to leave one for the answer in a context of %d",
			prompt, in.ImageTokens(), s.model.MaxLen-1, s.model.MaxLen)
	}
	if req.maxTokens == 0 {
		return min(max(defaultMaxTokens, req.sampling.MinTokens), room), nil
	}
	if req.maxTokens > room {
		return 0, invalid("max_tokens", "%d; want at most %d: the prompt has %d tokens, %d of them of pictures, in a context of %d",
			req.maxTokens, room, prompt, in.ImageTokens(), s.model.MaxLen)
	}
	return req.maxTokens, nil
}

// encode attaches the patch embeddings of all pictures, which the encoder is asked for together, and counts the
// positions whose embeddings had been made before.
func (s *Server) encode(ctx context.Context, in *fusion.Input, images []*vision.Image) (cachedTokens int, err error) {
	patches, cached := make([][]float32, len(images)), make([]bool, len(images))
	g, gctx := errgroup.WithContext(ctx)
	for i, img := range images {
		g.Go(func() (err error) {
			patches[i], cached[i], err = s.model.Encode(gctx, img)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	for i := range images {
		if err := in.Attach(i, patches[i], s.model.Hidden); err != nil {
			return 0, err
		}
		if cached[i] {
			cachedTokens += len(patches[i]) / s.model.Hidden
		}
	}
	return cachedTokens, nil
}

// deliver turns the engine's tokens into text and sends it, up to a stop string or the engine's own end.
func (s *Server) deliver(ctx context.Context, rec *record, stop []string, stream *batching.Stream, send func(*pb.GenerateStreamResponse) error) error {
	text, stops := s.model.Tokenizer.NewStream(true), stopMatcher{stops: stop}
	sent := 0 // tokens that deltas told of
	delta := func(text string) error {
		if text == "" {
			return nil
		}
		d := &pb.StreamDelta{Text: text, Tokens: uint32(rec.completion - sent)}
		sent = rec.completion
		return send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Delta{Delta: d}})
	}
	finish := func(reason pb.FinishReason, matched *string) error {
		rec.finish = reason
		rec.timing = stream.Timing()
		return send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Finish{Finish: &pb.StreamFinish{
			FinishReason: reason, MatchedStop: matched, Usage: rec.usage(), Timings: rec.timings(),
		}}})
	}
	for {
		e, err := stream.Next(ctx)
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, errCut):
			if err := delta(stops.flush()); err != nil {
				return err
			}
			return finish(pb.FinishReason_FINISH_REASON_CANCELLED, nil)
		case cause != nil:
			return cause
		case err != nil:
			return err
		}
		piece := ""
		if e.HasToken {
			rec.completion++
			if !slices.Contains(s.model.EOS, e.Token.ID) {
				piece = text.Push(e.Token.ID)
			}
		}
		if e.Finish != batching.Running {
			piece += text.Flush()
		}
		out, matched, found := stops.push(piece)
		if !found && e.Finish != batching.Running {
			out += stops.flush()
		}
		if err := delta(out); err != nil {
			return err
		}
		switch {
		case found:
			stream.Cancel() // now, as sending may have to wait for the client
			return finish(pb.FinishReason_FINISH_REASON_STOP, &matched)
		case e.Finish == batching.Error:
			return e.Err
		case e.Finish == batching.Expired:
			return context.DeadlineExceeded
		case e.Finish != batching.Running:
			return finish(finishReasons[e.Finish], nil)
		}
	}
}

var finishReasons = map[batching.FinishReason]pb.FinishReason{
	batching.Stop:      pb.FinishReason_FINISH_REASON_STOP,
	batching.Length:    pb.FinishReason_FINISH_REASON_LENGTH,
	batching.Cancelled: pb.FinishReason_FINISH_REASON_CANCELLED,
}
