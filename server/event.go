package server

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/safety"
	"github.com/mmserve/mmserve/serving"
)

// events is a sink that sends what comes as messages of a stream.
type events struct {
	stream grpc.ServerStreamingServer[pb.GenerateStreamResponse]
}

func (e events) send(r *pb.GenerateStreamResponse) error { return fromStatus(e.stream.Send(r)) }

// Start implements serving.Sink.
func (e events) Start(s *serving.Start) error {
	return e.send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Start{Start: &pb.StreamStart{
		Id: s.ID, Model: s.Model, ModelDigest: s.ModelDigest, SystemFingerprint: s.Fingerprint,
		Seed: s.Seed, Usage: usage(s.Usage),
		PromptTokenIds: ids(s.PromptIDs),
	}}})
}

// Delta implements serving.Sink.
func (e events) Delta(d *serving.Delta) error {
	return e.send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Delta{Delta: &pb.StreamDelta{
		Text: d.Text, Reasoning: d.Reasoning, Tokens: uint32(d.Tokens), Index: uint32(d.Index),
		Logprobs: logprobs(d.Logprobs), PromptLogprobs: logprobs(d.PromptLogprobs),
		TokenIds: ids(d.TokenIDs),
	}}})
}

// Finish implements serving.Sink.
func (e events) Finish(f *serving.Finish) error {
	return e.send(&pb.GenerateStreamResponse{Event: &pb.GenerateStreamResponse_Finish{Finish: &pb.StreamFinish{
		FinishReason: finishReasons[f.Reason], MatchedStop: f.Stop, Index: uint32(f.Index),
		Usage: usage(f.Usage), Timings: timings(f.Timings),
		Logprobs: logprobs(f.Logprobs), PromptLogprobs: logprobs(f.PromptLogprobs), ChoiceScores: f.ChoiceScores,
		TokenIds: ids(f.TokenIDs), MatchedStopTokenId: id(f.StopTokenID), ConversationMessage: f.Message,
		Findings: findings(f.Findings),
	}}})
}

// response is a whole answer as one message.
func response(c *serving.Collector) *pb.GenerateResponse {
	first := &c.Choices[0]
	out := &pb.GenerateResponse{
		Id: c.ID, Model: c.Model, ModelDigest: c.ModelDigest, SystemFingerprint: c.Fingerprint, Seed: c.Seed,
		Text: first.Text, Reasoning: first.Reasoning, FinishReason: finishReasons[first.Reason], MatchedStop: first.Stop,
		Usage: usage(c.Usage), Timings: timings(c.Timings),
		PromptLogprobs: logprobs(c.PromptLogprobs), ChoiceScores: c.ChoiceScores,
		PromptTokenIds: ids(c.PromptIDs), MatchedStopTokenId: id(first.StopTokenID),
		ConversationMessage: c.Message,
		Findings:            findings(first.Findings),
	}
	for _, a := range c.Choices {
		out.Choices = append(out.Choices, &pb.Choice{
			Seed: a.Seed, Text: a.Text, Reasoning: a.Reasoning, FinishReason: finishReasons[a.Reason], MatchedStop: a.Stop,
			CompletionTokens: uint32(a.CompletionTokens), Logprobs: logprobs(a.Logprobs),
			TokenIds: ids(a.TokenIDs), MatchedStopTokenId: id(a.StopTokenID), Findings: findings(a.Findings),
		})
	}
	return out
}

var finishReasons = map[serving.FinishReason]pb.FinishReason{
	serving.FinishStop:   pb.FinishReason_FINISH_REASON_STOP,
	serving.FinishLength: pb.FinishReason_FINISH_REASON_LENGTH,

	serving.FinishContentFilter: pb.FinishReason_FINISH_REASON_CONTENT_FILTER,
}

var contentActions = map[safety.Action]pb.ContentAction{
	safety.Flag: pb.ContentAction_CONTENT_ACTION_FLAG, safety.Redact: pb.ContentAction_CONTENT_ACTION_REDACT,
	safety.Block: pb.ContentAction_CONTENT_ACTION_BLOCK,
}

var contentPlaces = map[safety.Place]pb.ContentPlace{
	safety.Input: pb.ContentPlace_CONTENT_PLACE_INPUT, safety.Output: pb.ContentPlace_CONTENT_PLACE_OUTPUT,
	safety.Images: pb.ContentPlace_CONTENT_PLACE_IMAGES,
}

func findings(counts []safety.Count) (list []*pb.ContentFinding) {
	for _, c := range counts {
		list = append(list, &pb.ContentFinding{
			Category: c.Category.String(), Place: contentPlaces[c.Place], Action: contentActions[c.Action], Count: uint32(c.N),
		})
	}
	return list
}

func usage(u serving.Usage) *pb.Usage {
	return &pb.Usage{
		PromptTokens: uint32(u.Prompt), TextTokens: uint32(u.Text), ImageTokens: uint32(u.Image),
		CachedImageTokens: uint32(u.CachedImage), CompletionTokens: uint32(u.Completion), CachedTokens: uint32(u.Cached),
		ReasoningTokens: uint32(u.Reasoning),
	}
}

// timings leaves out stages that did not happen.
func timings(t serving.Timings) *pb.Timings {
	happened := func(d time.Duration) *durationpb.Duration {
		if d == 0 {
			return nil
		}
		return durationpb.New(d)
	}
	return &pb.Timings{
		Preprocess: durationpb.New(t.Preprocess), Tokenize: durationpb.New(t.Tokenize), Encode: durationpb.New(t.Encode),
		Queue: happened(t.Queue), Prefill: happened(t.Prefill), Decode: happened(t.Decode),
		Ttft: happened(t.FirstToken), Total: durationpb.New(t.Total),
	}
}

func logprobs(list []serving.Logprobs) []*pb.Logprobs {
	if len(list) == 0 {
		return nil
	}
	out := make([]*pb.Logprobs, len(list))
	for i := range list {
		l := &list[i]
		out[i] = &pb.Logprobs{Token: tokenLogprob(&l.Token)}
		if len(l.Top) > 0 {
			out[i].Top = make([]*pb.TokenLogprob, len(l.Top))
			for j := range l.Top {
				out[i].Top[j] = tokenLogprob(&l.Top[j])
			}
		}
	}
	return out
}

func ids(list []int32) []uint32 {
	if len(list) == 0 {
		return nil
	}
	out := make([]uint32, len(list))
	for i, v := range list {
		out[i] = uint32(v)
	}
	return out
}

func id(v *int32) *uint32 {
	if v == nil {
		return nil
	}
	return proto.Uint32(uint32(*v))
}

func tokenLogprob(t *serving.TokenLogprob) *pb.TokenLogprob {
	return &pb.TokenLogprob{Id: uint32(t.ID), Text: t.Text, Logprob: t.Logprob}
}
