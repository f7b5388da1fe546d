package server

import (
	"context"
	"fmt"

	"github.com/mmserve/mmserve/batching"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// request is what a message asks for. The images' bytes are the message's.
func request(ctx context.Context, in *pb.GenerateRequest) *serving.Request {
	r := &serving.Request{
		ID: in.GetRequestId(), Model: in.GetModel(), Tenant: in.GetTenant(),
		MaxTokens: in.MaxTokens, MinTokens: in.GetMinTokens(), Stop: in.GetStop(),
		StopTokenIDs: in.GetStopTokenIds(), IgnoreEOS: in.GetIgnoreEos(),
		N: in.GetN(), Logprobs: in.GetLogprobs(), PromptLogprobs: in.GetPromptLogprobs(), TopLogprobs: in.GetTopLogprobs(),
		TokenIDs: in.GetReturnTokenIds(), IncludeStop: in.GetIncludeStop(),
		Subject:     in.GetSubject(),
		Speculative: in.Speculative, Sampling: sampling(in.GetSampling()), Constraint: constraint(in.GetConstraint()),
	}
	r.Peer, r.Priority = peerOf(ctx), priority(&r.Unread, in.GetPriority())
	if id := in.GetConversation(); id != "" {
		r.Turn = &serving.Turn{Conversation: id, Keep: true}
	}
	switch input := in.GetInput().(type) {
	case *pb.GenerateRequest_Chat:
		r.Chat = chat(&r.Unread, input.Chat)
	case *pb.GenerateRequest_Prompt:
		r.Prompt = &serving.Prompt{Parts: parts(&r.Unread, "prompt.parts", input.Prompt.GetParts())}
	}
	return r
}

// priority adds to unread what is none.
func priority(unread *serving.Violations, in pb.Priority) batching.Priority {
	p, ok := priorities[in]
	if !ok {
		unread.Add("priority", "%d; want PRIORITY_INTERACTIVE, PRIORITY_DEFAULT or PRIORITY_BATCH", in)
	}
	return p
}

var priorities = map[pb.Priority]batching.Priority{
	pb.Priority_PRIORITY_UNSPECIFIED: batching.PriorityDefault,
	pb.Priority_PRIORITY_INTERACTIVE: batching.PriorityInteractive,
	pb.Priority_PRIORITY_DEFAULT:     batching.PriorityDefault,
	pb.Priority_PRIORITY_BATCH:       batching.PriorityBatch,
}

// chat adds to unread what cannot be read of the messages.
func chat(unread *serving.Violations, in *pb.Chat) *serving.Chat {
	c := &serving.Chat{Messages: make([]serving.Message, len(in.GetMessages())), Continue: in.GetContinueFinalMessage()}
	for i, m := range in.GetMessages() {
		field := fmt.Sprintf("chat.messages[%d]", i)
		role, ok := roles[m.GetRole()]
		if !ok {
			unread.Add(field+".role", "%v; want ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT", m.GetRole())
		}
		c.Messages[i] = serving.Message{Role: role, Parts: parts(unread, field+".parts", m.GetParts())}
	}
	return c
}

var roles = map[pb.Role]string{
	pb.Role_ROLE_SYSTEM:    "system",
	pb.Role_ROLE_USER:      "user",
	pb.Role_ROLE_ASSISTANT: "assistant",
}

func parts(unread *serving.Violations, field string, in []*pb.Part) []serving.Part {
	list := make([]serving.Part, len(in))
	for i, p := range in {
		switch content := p.GetContent().(type) {
		case *pb.Part_Text:
			list[i].Text = content.Text
		case *pb.Part_TokenIds:
			if list[i].IDs = content.TokenIds.GetIds(); list[i].IDs == nil {
				list[i].IDs = []uint32{}
			}
		case *pb.Part_Image:
			list[i].Image = image(unread, fmt.Sprintf("%s[%d].image", field, i), content.Image)
		default:
			unread.Add(fmt.Sprintf("%s[%d]", field, i), "empty; want text or image, or token_ids in a prompt")
		}
	}
	return list
}

// image adds to unread what cannot be read of one in a field.
func image(unread *serving.Violations, field string, in *pb.Image) *serving.Image {
	detail, ok := details[in.GetDetail()]
	if !ok {
		unread.Add(field+".detail", "%d; want DETAIL_AUTO, DETAIL_LOW or DETAIL_HIGH", in.GetDetail())
	}
	return &serving.Image{Data: in.GetData(), Digest: in.GetDigest(), URL: in.GetUrl(), Detail: detail}
}

var details = map[pb.Detail]vision.Detail{
	pb.Detail_DETAIL_UNSPECIFIED: vision.DetailAuto,
	pb.Detail_DETAIL_AUTO:        vision.DetailAuto,
	pb.Detail_DETAIL_LOW:         vision.DetailLow,
	pb.Detail_DETAIL_HIGH:        vision.DetailHigh,
}

func sampling(in *pb.Sampling) serving.Sampling {
	if in == nil {
		return serving.Sampling{}
	}
	return serving.Sampling{
		Temperature: in.Temperature, TopP: in.TopP, MinP: in.MinP, TypicalP: in.TypicalP, TopK: in.TopK,
		RepetitionPenalty: in.RepetitionPenalty, PresencePenalty: in.PresencePenalty, FrequencyPenalty: in.FrequencyPenalty,
		LogitBias: in.GetLogitBias(), Seed: in.Seed,
	}
}

func constraint(in *pb.Constraint) *serving.Constraint {
	switch kind := in.GetKind().(type) {
	case *pb.Constraint_Choices:
		return &serving.Constraint{Kind: serving.Choices, Choices: kind.Choices.GetTexts(), Scores: kind.Choices.GetScores()}
	case *pb.Constraint_Regex:
		return &serving.Constraint{Kind: serving.Regex, Text: kind.Regex}
	case *pb.Constraint_JsonSchema:
		return &serving.Constraint{Kind: serving.JSONSchema, Text: kind.JsonSchema}
	case *pb.Constraint_JsonObject:
		return &serving.Constraint{Kind: serving.JSONObject}
	}
	if in != nil {
		return &serving.Constraint{}
	}
	return nil
}
