package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/constrain"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// GenerateStream implements mmserve.v1.MMServe.
func (s *Server) GenerateStream(in *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateStreamResponse]) error {
	return s.route(stream.Context(), in, stream.Send)
}

// Generate implements mmserve.v1.MMServe: the stream, collected.
func (s *Server) Generate(ctx context.Context, in *pb.GenerateRequest) (*pb.GenerateResponse, error) {
	out := new(pb.GenerateResponse)
	var texts []strings.Builder
	completion := uint32(0)
	err := s.route(ctx, in, func(r *pb.GenerateStreamResponse) error {
		switch e := r.GetEvent().(type) {
		case *pb.GenerateStreamResponse_Start: // n is known to be within its limit from here on
			texts = make([]strings.Builder, max(in.GetN(), 1))
			for range texts {
				out.Choices = append(out.Choices, new(pb.Choice))
			}
			out.Id, out.Model, out.ModelDigest, out.Seed = e.Start.GetId(), e.Start.GetModel(), e.Start.GetModelDigest(), e.Start.GetSeed()
		case *pb.GenerateStreamResponse_Delta:
			texts[e.Delta.GetIndex()].WriteString(e.Delta.GetText())
			c := out.Choices[e.Delta.GetIndex()]
			c.Logprobs = append(c.Logprobs, e.Delta.GetLogprobs()...)
			out.PromptLogprobs = append(out.PromptLogprobs, e.Delta.GetPromptLogprobs()...)
		case *pb.GenerateStreamResponse_Finish:
			f, i := e.Finish, e.Finish.GetIndex()
			c := out.Choices[i]
			c.Seed, c.Text = out.Seed+uint64(i), texts[i].String()
			c.FinishReason, c.MatchedStop, c.CompletionTokens = f.GetFinishReason(), f.MatchedStop, f.GetUsage().GetCompletionTokens()
			c.Logprobs = append(c.Logprobs, f.GetLogprobs()...)
			out.PromptLogprobs = append(out.PromptLogprobs, f.GetPromptLogprobs()...)
			out.ChoiceScores = append(out.ChoiceScores, f.GetChoiceScores()...)
			out.Timings = f.GetTimings()
			if completion += c.CompletionTokens; i == 0 {
				out.Usage = f.GetUsage()
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	first := out.Choices[0]
	out.Text, out.FinishReason, out.MatchedStop = first.Text, first.FinishReason, first.MatchedStop
	out.Usage.CompletionTokens = completion
	if n := proto.Size(out); n > maxAnswerBytes {
		return nil, tooLarge(n)
	}
	return out, nil
}

// errCut is the cause of a request's end when the server shuts down and cannot wait any longer.
var errCut = errors.New("cut by shutdown")

// errUnloaded is the cause of a request's end when its model was taken out and cannot wait any longer.
var errUnloaded = errors.New("cut by unloading")

// route has a request answered by the model that it names.
func (s *Server) route(ctx context.Context, in *pb.GenerateRequest, send func(*pb.GenerateStreamResponse) error) error {
	own, release, err := s.forModel(in.GetModel())
	if err != nil {
		return err
	}
	defer release()
	return own.generate(ctx, in, send)
}

// cutBy has end called when the server or the model cannot wait for a request any longer, until stop is.
func (s *Server) cutBy(end context.CancelCauseFunc) (stop func()) {
	shutdown := context.AfterFunc(s.shutdown, func() { end(errCut) })
	unloaded := context.AfterFunc(s.deployment.Cutting(), func() { end(errUnloaded) })
	return func() { shutdown(); unloaded() }
}

// generate is the life of a request, in a straight line. A slot for each answer is taken before any work and given back
// whatever happens: by Release up to Submit, by the engine from there on, which drops the sequence when ctx ends.
// send is given one start, deltas, a finish for each answer.
func (s *Server) generate(ctx context.Context, in *pb.GenerateRequest, send func(*pb.GenerateStreamResponse) error) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	defer s.cutBy(end)()
	ctx, rec := s.newRecord(ctx, in)
	defer func() { err = rec.close(ctx, recover(), err) }()

	req, err := s.validate(in)
	if err != nil {
		return err
	}
	method, _ := grpc.Method(ctx)
	rec.asked(req, method == pb.MMServe_GenerateStream_FullMethodName)
	req.deadline, _ = ctx.Deadline()
	tickets, err := s.engine.AcquireFor(claim(ctx, req))
	if err != nil {
		return rec.refuse(err)
	}
	for _, t := range tickets {
		defer t.Release()
	}

	ctx = vision.WithPriority(ctx, int(req.priority))
	images, err := s.prepare(ctx, rec, req.images)
	if err != nil {
		return err
	}
	req.images = nil
	s.releaseMessage(ctx)
	rec.lap(&rec.preprocess)
	input, err := s.tokenize(ctx, req, images)
	if err != nil {
		return err
	}
	grammar, err := s.constrain(ctx, req.constraint, s.leadingSpace(input))
	if err != nil {
		return err
	}
	if req.maxTokens, err = s.fit(req, input); err != nil {
		return err
	}
	if err := s.fitMessage(req, input); err != nil && method == pb.MMServe_Generate_FullMethodName {
		return err
	}
	rec.prompt(input)
	rec.lap(&rec.tokenize)
	if len(images) > 0 {
		for _, t := range tickets {
			t.WillSubmit()
		}
	}
	if rec.cached, err = s.encode(ctx, &input, images, req.tenant); err != nil {
		return err
	}
	rec.lap(&rec.encode)

	if rec.scores, err = s.score(ctx, rec, req, input, grammar, tickets[req.n:]); err != nil {
		return err
	}
	return s.answer(ctx, rec, req, input, grammar, tickets[:req.n], send)
}

// claim is what the engine's admission needs to know of a request. Without a tenant it counts for the connection it came on.
func claim(ctx context.Context, req *request) batching.Claim {
	c := batching.Claim{
		Priority: req.priority, Tenant: req.tenant, Answers: req.n, Deadline: req.deadline,
		MaxTokens: cmp.Or(req.maxTokens, defaultMaxTokens), Endless: len(req.eos) == 0,
	}
	if req.scored != nil {
		c.Answers++
	}
	if p, ok := peer.FromContext(ctx); ok {
		c.Caller = p.Addr.String()
	}
	return c
}

// answer has all answers of a request generated and delivers each as it comes. If one fails all end.
func (s *Server) answer(ctx context.Context, rec *record, req *request, input fusion.Input, grammar *constrain.Grammar, tickets []*batching.Ticket, send func(*pb.GenerateStreamResponse) error) error {
	var group *batching.Group
	if req.n > 1 {
		var one sync.Mutex
		whole := send
		send = func(r *pb.GenerateStreamResponse) error {
			one.Lock()
			defer one.Unlock()
			return whole(r)
		}
		group = new(batching.Group)
	}
	g, ctx := errgroup.WithContext(ctx)
	var states []*constrain.State
	if grammar != nil {
		states = grammar.Starts(ctx, req.n)
	}
	answers := make([]*answer, req.n)
	rec.answers = make([]answered, req.n)
	for i, ticket := range tickets {
		r := batching.Request{
			ID: rec.id, Input: input, MaxTokens: req.maxTokens, Stop: req.eos, Sampling: req.sampling,
			Priority: req.priority, Tenant: req.tenant, Deadline: req.deadline, NoDrafts: req.noDrafts, Group: group, Further: i > 0, Tag: rec.tag(),
		}
		r.Sampling.Seed += uint64(i)
		if grammar != nil {
			r.Sampling.Constraint = states[i]
		}
		if req.promptLogprobs && i == 0 {
			r.PromptLogprobs = &req.sampling.TopLogprobs
		}
		stream, err := s.engine.Submit(ctx, ticket, r)
		if err != nil {
			return rec.refuse(err)
		}
		defer func() { rec.answers[i].timing = stream.Timing() }()
		answers[i] = s.newAnswer(rec, req, i, stream, send)
		answers[i].trim = s.trims(req, input, grammar)
	}
	if err := send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Start{Start: &pb.StreamStart{
		Id: rec.id, Model: s.model.Name, ModelDigest: s.model.Digest, Seed: req.sampling.Seed, Usage: rec.usage(answered{}),
	}}}); err != nil {
		return err
	}
	if req.n == 1 {
		return answers[0].deliver(ctx)
	}
	for _, a := range answers {
		g.Go(func() error { return a.deliver(ctx) })
	}
	return g.Wait()
}

// prepare decodes the images one after the other, each when the budget of all decodes has room.
func (s *Server) prepare(ctx context.Context, rec *record, parts []imagePart) ([]*vision.Image, error) {
	images := make([]*vision.Image, len(parts))
	for i, p := range parts {
		began := time.Now()
		img, err := s.model.Prompter.PrepareImage(ctx, p.data, p.detail, len(parts))
		if img != nil && !img.Started.IsZero() {
			began = img.Started
		}
		rec.images = append(rec.images, preparation{began, time.Now(), len(p.data), img})
		if errors.Is(err, vision.ErrImage) {
			return nil, invalid(p.field, "%v", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.field, err)
		}
		images[i] = img
	}
	return images, nil
}

// tokenize makes the input that the prompter gives for the request's prompt and its images.
func (s *Server) tokenize(ctx context.Context, req *request, images []*vision.Image) (in fusion.Input, err error) {
	rendered, err := s.model.Prompter.Render(ctx, req.prompt)
	if err == nil {
		in, err = s.model.Prompter.Input(rendered, images)
	}
	field := "prompt.parts"
	if req.prompt.Messages != nil {
		field = "chat.messages"
	}
	return in, promptError(field, err)
}

// promptError is what the prompter says of a field.
func promptError(field string, err error) error {
	if errors.As(err, new(*fusion.PromptError)) {
		return invalid(field, "%v", err)
	}
	return err
}

// fit gives the most tokens to generate, or says why the request does not fit the context.
func (s *Server) fit(req *request, in fusion.Input) (maxTokens int, err error) {
	prompt, room := len(in.IDs), s.model.MaxLen-len(in.IDs)
	if room < 1 {
		return 0, invalid("input", "%d tokens, %d of them of images; want at most %d, to leave one for the answer in a context of %d",
			prompt, in.ImageTokens(), s.model.MaxLen-1, s.model.MaxLen)
	}
	if req.maxTokens == 0 {
		return min(max(defaultMaxTokens, req.sampling.MinTokens), room), nil
	}
	if req.maxTokens > room {
		return 0, invalid("max_tokens", "%d; want at most %d: the prompt has %d tokens, %d of them of images, in a context of %d",
			req.maxTokens, room, prompt, in.ImageTokens(), s.model.MaxLen)
	}
	return req.maxTokens, nil
}

// maxAnswerBytes is the largest message that gRPC's clients accept unless they are told to.
const maxAnswerBytes = 4 << 20

// tokenOverhead is what a log-probability takes beside the token's own bytes.
const tokenOverhead = 18

// fitMessage refuses an answer that would not fit one message, before any of it is generated. What cannot be known yet, the
// tokens of the answer and the likeliest ones, is taken at twice the vocabulary's mean length.
func (s *Server) fitMessage(req *request, in fusion.Input) error {
	token := 2*s.meanToken + tokenOverhead
	place := token * float64(1+req.sampling.TopLogprobs)
	size := float64((req.n+1)*req.maxTokens) * s.meanToken
	if req.sampling.Logprobs {
		size += float64(req.n*req.maxTokens) * place
	}
	if req.promptLogprobs {
		size += float64(len(in.IDs)) * place
	}
	if size <= maxAnswerBytes {
		return nil
	}
	return tooLarge(int(size))
}

func tooLarge(size int) error {
	return invalid("input", "the answer would take about %d bytes with the log-probabilities and answers that are asked for; want at most %d in one message: "+
		"use GenerateStream, or ask for less (max_tokens, n, top_logprobs, prompt_logprobs)", size, maxAnswerBytes)
}

// meanTokenBytes is the mean length of a vocabulary's tokens, in bytes, over some that are spread evenly.
func meanTokenBytes(m *serving.Model) float64 {
	const samples = 4096
	total, n := 0, 0
	for id := 0; id < m.Vocab; id += max(1, m.Vocab/samples) {
		total += len(m.Prompter.Tokenizer.TokenBytes(int32(id)))
		n++
	}
	return float64(total) / float64(max(1, n))
}

// encode attaches the patch embeddings of all images, which the encoder is asked for together, and counts the
// positions whose embeddings had been made before.
func (s *Server) encode(ctx context.Context, in *fusion.Input, images []*vision.Image, tenant string) (cachedTokens int, err error) {
	patches, cached := make([][]float32, len(images)), make([]bool, len(images))
	g, gctx := errgroup.WithContext(ctx)
	for i, img := range images {
		if !s.options.SharePrefixes {
			img.Tenant = tenant
		}
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
