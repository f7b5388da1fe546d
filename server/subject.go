package server

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/audit"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/serving"
)

// person is what requests about a subject have.
type person interface {
	GetTenant() string
	GetSubject() string
}

func personOf(in person) serving.Person {
	return serving.Person{Tenant: in.GetTenant(), Subject: in.GetSubject()}
}

func receipt(r *audit.SignedReceipt) *pb.Receipt {
	return &pb.Receipt{Text: r.Text, Signature: r.Signature, Key: r.Key}
}

// archivePiece is the most bytes of an archive in one message.
const archivePiece = 1 << 20

// AccessSubject implements mmserve.v1.SubjectService.
func (s *Server) AccessSubject(in *pb.AccessSubjectRequest,
	stream grpc.ServerStreamingServer[pb.AccessSubjectResponse]) error {
	ctx := stream.Context()
	r, err := s.service.AccessSubject(ctx, personOf(in), pieces(func(piece []byte) error {
		return s.sendWithin(ctx, stream, &pb.AccessSubjectResponse{Chunk: piece})
	}))
	if err != nil {
		return toStatus(err)
	}
	return stream.Send(&pb.AccessSubjectResponse{Receipt: receipt(r)})
}

// pieces is a writer that sends what it is given.
type pieces func(piece []byte) error

// Write implements io.Writer.
func (send pieces) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := p[n:min(len(p), n+archivePiece)]
		if err := send(piece); err != nil {
			return n, fromStatus(err)
		}
		n += len(piece)
	}
	return n, nil
}

// CorrectSubject implements mmserve.v1.SubjectService.
func (s *Server) CorrectSubject(ctx context.Context,
	in *pb.CorrectSubjectRequest) (*pb.CorrectSubjectResponse, error) {
	var v serving.Violations
	role, ok := roles[in.GetMessage().GetRole()]
	if !ok {
		v.Add("message.role", "%v; want ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT", in.GetMessage().GetRole())
	}
	m := conversation.Message{Seq: in.GetNumber(), Role: role}
	if len(in.GetMessage().GetParts()) == 0 {
		v.Add("message.parts", "none; want at least one")
	}
	for _, p := range in.GetMessage().GetParts() {
		text, ok := p.GetContent().(*pb.Part_Text)
		if !ok {
			v.Add("message.parts", "not a text; want texts only")
			continue
		}
		m.Parts = append(m.Parts, conversation.Part{Text: text.Text})
	}
	if err := v.Err(); err != nil {
		return nil, toStatus(err)
	}
	r, err := s.service.CorrectSubject(ctx, personOf(in), in.GetConversation(), m)
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.CorrectSubjectResponse{Receipt: receipt(r)}, nil
}

// RestrictSubject implements mmserve.v1.SubjectService.
func (s *Server) RestrictSubject(ctx context.Context,
	in *pb.RestrictSubjectRequest) (*pb.RestrictSubjectResponse, error) {
	r, err := s.service.RestrictSubject(ctx, personOf(in), in.GetLift())
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.RestrictSubjectResponse{Receipt: receipt(r)}, nil
}

// DeleteSubject implements mmserve.v1.SubjectService.
func (s *Server) DeleteSubject(ctx context.Context, in *pb.DeleteSubjectRequest) (*pb.DeleteSubjectResponse, error) {
	r, inUse, err := s.service.DeleteSubject(ctx, personOf(in))
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.DeleteSubjectResponse{Receipt: receipt(r), InUse: inUse}, nil
}

// ObjectSubject implements mmserve.v1.SubjectService.
func (s *Server) ObjectSubject(ctx context.Context, in *pb.ObjectSubjectRequest) (*pb.ObjectSubjectResponse, error) {
	var to conversation.Objection
	for _, o := range []struct {
		objects bool
		to      conversation.Objection
	}{
		{in.GetLogging(), conversation.NoLogging}, {in.GetCaching(), conversation.NoCaching},
		{in.GetTraining(), conversation.NoTraining},
	} {
		if o.objects {
			to |= o.to
		}
	}
	r, err := s.service.ObjectSubject(ctx, personOf(in), to)
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.ObjectSubjectResponse{Receipt: receipt(r)}, nil
}

// ImportSubject implements mmserve.v1.SubjectService. One archive is received at a time: it is held in memory.
func (s *Server) ImportSubject(
	stream grpc.ClientStreamingServer[pb.ImportSubjectRequest, pb.ImportSubjectResponse]) error {
	ctx := stream.Context()
	select {
	case s.importing <- struct{}{}:
		defer func() { <-s.importing }()
	default:
		return toStatus(serving.Overloaded("another archive is being imported: try again later"))
	}
	in, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return toStatus(serving.InvalidField("archive", "no bytes; want a zip file"))
	} else if err != nil {
		return err
	}
	who := personOf(in)
	archive, err := receiveArchive(stream, in)
	if err != nil {
		clear(archive)
		return err
	}
	r, ids, err := s.service.ImportSubject(ctx, who, archive)
	if err != nil {
		return toStatus(err)
	}
	return stream.SendAndClose(&pb.ImportSubjectResponse{Receipt: receipt(r), Conversations: ids})
}

// receiveArchive reads the chunks of a stream, of which in is the first message.
func receiveArchive(stream grpc.ClientStreamingServer[pb.ImportSubjectRequest, pb.ImportSubjectResponse],
	in *pb.ImportSubjectRequest) (archive []byte, err error) {
	for {
		chunk := in.GetChunk()
		if len(chunk) > archivePiece || len(archive)+len(chunk) > serving.MaxImport {
			return archive, toStatus(serving.InvalidField("archive", "%d bytes up to here, the last piece of %d; want at most %d, "+
				"in pieces of at most %d", len(archive)+len(chunk), len(chunk), serving.MaxImport, archivePiece))
		}
		archive = append(archive, chunk...)
		clear(chunk)
		in, err = stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return archive, nil
		case err != nil:
			return archive, err
		case in.GetTenant() != "" || in.GetSubject() != "":
			return archive, toStatus(serving.InvalidField("subject", "given again; want it with the first message only"))
		}
	}
}
