package server

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/media"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// maxListed is the most conversations of one list: with their titles and metadata they fit a message.
const maxListed = 100

// chunkBytes is the most bytes in one message of a file on its way out.
const chunkBytes = 1 << 20

// whose is what requests about conversations have.
type whose interface {
	GetTenant() string
	GetSubject() string
}

// named is a request about one conversation.
type named interface {
	whose
	GetConversation() string
}

func whoseOf(in whose) serving.Whose {
	return serving.Whose{Tenant: in.GetTenant(), Subject: in.GetSubject()}
}

func oneOf(in named) serving.Whose {
	return serving.Whose{Tenant: in.GetTenant(), Subject: in.GetSubject(), ID: in.GetConversation()}
}

// CreateConversation implements mmserve.v1.ConversationService.
func (s *Server) CreateConversation(ctx context.Context,
	in *pb.CreateConversationRequest) (*pb.CreateConversationResponse, error) {
	n := conversation.New{Info: conversation.Info{Title: in.GetTitle(), Metadata: in.GetMetadata()}}
	if in.GetKeep() != nil {
		keep := in.GetKeep().AsDuration()
		if in.GetKeep().CheckValid() != nil || keep < time.Second || keep > conversation.MaxKeep || keep%time.Second != 0 {
			return nil, toStatus(serving.InvalidField("keep", "%v; want whole seconds, up to %v", keep, conversation.MaxKeep))
		}
		n.Retention = conversation.Retention{Class: conversation.KeepDays, For: keep}
	}
	c, err := s.service.CreateConversation(ctx, whoseOf(in), n)
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.CreateConversationResponse{Conversation: conversationInfo(c)}, nil
}

// AppendMessages implements mmserve.v1.ConversationService.
func (s *Server) AppendMessages(ctx context.Context, in *pb.AppendMessagesRequest) (*pb.AppendMessagesResponse, error) {
	a := conversation.Appended{Key: in.GetIdempotencyKey(), After: in.After}
	var v serving.Violations
	for i, m := range in.GetMessages() {
		a.Messages = append(a.Messages, appended(&v, fmt.Sprintf("messages[%d]", i), m))
	}
	if err := v.Err(); err != nil {
		return nil, toStatus(err)
	}
	p, err := s.service.AppendMessages(ctx, oneOf(in), a)
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.AppendMessagesResponse{First: p.First, Last: p.Last, RepeatedAppend: p.Again}, nil
}

// appended is a message to keep. What cannot be read of it is added to the violations.
func appended(v *serving.Violations, field string, in *pb.Message) conversation.Message {
	role, ok := roles[in.GetRole()]
	if !ok {
		v.Add(field+".role", "%v; want ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT", in.GetRole())
	}
	out := conversation.Message{Role: role}
	if len(in.GetParts()) == 0 {
		v.Add(field+".parts", "none; want at least one")
	}
	for i, p := range in.GetParts() {
		at := fmt.Sprintf("%s.parts[%d]", field, i)
		switch content := p.GetContent().(type) {
		case *pb.Part_Text:
			out.Parts = append(out.Parts, conversation.Part{Text: content.Text})
		case *pb.Part_Image:
			out.Parts = append(out.Parts, conversation.Part{Image: appendedImage(v, at+".image", content.Image)})
		default:
			v.Add(at, "neither text nor image; want one of them")
		}
	}
	return out
}

func appendedImage(v *serving.Violations, field string, in *pb.Image) *conversation.Image {
	read := image(v, field, in)
	out := &conversation.Image{Data: read.Data, Detail: int(read.Detail)}
	switch {
	case read.URL != "" || (len(read.Data) > 0) == (read.Digest != ""):
		v.Add(field, "want either data or digest")
	case read.Digest != "":
		d, err := media.ParseDigest(read.Digest)
		if err != nil {
			v.Add(field+".digest", "%v", err)
		}
		out.Digest = d
	}
	return out
}

// GetConversation implements mmserve.v1.ConversationService.
func (s *Server) GetConversation(ctx context.Context,
	in *pb.GetConversationRequest) (*pb.GetConversationResponse, error) {
	if n := in.GetLimit(); n > conversation.MaxPage {
		return nil, toStatus(serving.InvalidField("limit", "%d; want at most %d", n, conversation.MaxPage))
	}
	c, list, err := s.service.GetConversation(ctx, oneOf(in), in.GetAfter(), int(in.GetLimit()))
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.GetConversationResponse{Conversation: conversationInfo(c)}
	size := proto.Size(out)
	for i := range list {
		m := storedMessage(&list[i])
		// One is always given: a message is smaller than an answer may be, but for what stands around it.
		if size += proto.Size(m) + 8; size > maxAnswerBytes && i > 0 {
			break
		}
		out.Messages = append(out.Messages, m)
	}
	return out, nil
}

func storedMessage(m *conversation.Message) *pb.StoredMessage {
	out := &pb.StoredMessage{
		Number: m.Seq, CreateTime: timestamppb.New(m.Time), Message: &pb.Message{Role: pbRoles[m.Role]},
	}
	if !m.Corrected.IsZero() {
		out.CorrectTime = timestamppb.New(m.Corrected)
	}
	for _, p := range m.Parts {
		part := &pb.Part{Content: &pb.Part_Text{Text: p.Text}}
		if p.Image != nil {
			part.Content = &pb.Part_Image{Image: &pb.Image{
				Digest: media.Digest(p.Image.Digest).String(), Detail: pbDetails[vision.Detail(p.Image.Detail)],
			}}
		}
		out.Message.Parts = append(out.Message.Parts, part)
	}
	return out
}

var pbRoles = map[string]pb.Role{
	"system": pb.Role_ROLE_SYSTEM, "user": pb.Role_ROLE_USER, "assistant": pb.Role_ROLE_ASSISTANT,
}

var pbDetails = map[vision.Detail]pb.Detail{
	vision.DetailAuto: pb.Detail_DETAIL_AUTO, vision.DetailLow: pb.Detail_DETAIL_LOW,
	vision.DetailHigh: pb.Detail_DETAIL_HIGH,
}

// GetConversationImage implements mmserve.v1.ConversationService.
func (s *Server) GetConversationImage(in *pb.GetConversationImageRequest,
	stream grpc.ServerStreamingServer[pb.GetConversationImageResponse]) error {
	digest, err := media.ParseDigest(in.GetDigest())
	if err != nil {
		return toStatus(serving.InvalidField("digest", "%v", err))
	}
	ctx := stream.Context()
	w := chunkWriter(func(b []byte) error {
		return s.sendWithin(ctx, stream, &pb.GetConversationImageResponse{Chunk: b})
	})
	return toStatus(s.service.ConversationImage(ctx, whoseOf(in), digest, func(data []byte) error {
		_, err := w.Write(data)
		return err
	}))
}

// chunkWriter sends what is written to it in messages of up to chunkBytes. Its function gives errors of serving.
type chunkWriter func([]byte) error

// Write implements io.Writer.
func (w chunkWriter) Write(data []byte) (int, error) {
	for at := 0; at < len(data); at += chunkBytes {
		if err := w(data[at:min(at+chunkBytes, len(data))]); err != nil {
			return at, err
		}
	}
	return len(data), nil
}

// ListConversations implements mmserve.v1.ConversationService.
func (s *Server) ListConversations(ctx context.Context,
	in *pb.ListConversationsRequest) (*pb.ListConversationsResponse, error) {
	size := int(in.GetPageSize())
	if size > maxListed {
		return nil, toStatus(serving.InvalidField("page_size", "%d; want at most %d", size, maxListed))
	}
	if size == 0 {
		size = maxListed
	}
	list, next, err := s.service.ListConversations(ctx, whoseOf(in), in.GetPageToken(), size)
	if err != nil {
		return nil, toStatus(err)
	}
	out := &pb.ListConversationsResponse{NextPageToken: next}
	for i := range list {
		out.Conversations = append(out.Conversations, conversationInfo(&list[i]))
	}
	return out, nil
}

// DeleteConversation implements mmserve.v1.ConversationService.
func (s *Server) DeleteConversation(ctx context.Context,
	in *pb.DeleteConversationRequest) (*pb.DeleteConversationResponse, error) {
	if err := s.service.DeleteConversation(ctx, oneOf(in)); err != nil {
		return nil, toStatus(err)
	}
	return &pb.DeleteConversationResponse{}, nil
}

// ExportConversations implements mmserve.v1.ConversationService.
func (s *Server) ExportConversations(in *pb.ExportConversationsRequest,
	stream grpc.ServerStreamingServer[pb.ExportConversationsResponse]) error {
	ctx := stream.Context()
	w := chunkWriter(func(b []byte) error {
		return s.sendWithin(ctx, stream, &pb.ExportConversationsResponse{Chunk: b})
	})
	return toStatus(s.service.ExportConversations(ctx, whoseOf(in), in.GetConversations(), w))
}

// ForkConversation implements mmserve.v1.ConversationService.
func (s *Server) ForkConversation(ctx context.Context,
	in *pb.ForkConversationRequest) (*pb.ForkConversationResponse, error) {
	c, err := s.service.ForkConversation(ctx, oneOf(in), in.GetUpTo(),
		conversation.New{Info: conversation.Info{Title: in.GetTitle()}})
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.ForkConversationResponse{Conversation: conversationInfo(c)}, nil
}

func conversationInfo(c *conversation.Conversation) *pb.Conversation {
	out := &pb.Conversation{
		Id: c.ID, CreateTime: timestamppb.New(c.Created), UpdateTime: timestamppb.New(c.Updated),
		Messages: c.Messages, Size: uint64(max(c.Bytes, 0)), Title: c.Info.Title, Metadata: c.Info.Metadata,
		ForkedFrom: c.Info.ForkedFrom, ForkedAt: c.Info.ForkedAt,
		Restricted: c.State == conversation.Restricted, Held: c.Hold,
	}
	if !c.Expires.IsZero() {
		out.ExpireTime = timestamppb.New(c.Expires)
	}
	return out
}
