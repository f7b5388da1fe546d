package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/grpc"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/audit"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// subjectCmd is what a person may ask of whoever keeps data about them.
type subjectCmd struct {
	Access   subjectAccessCmd   `cmd:"" help:"Write all that is kept of a person to a zip archive."`
	Correct  subjectCorrectCmd  `cmd:"" help:"Replace a message of a conversation."`
	Restrict subjectRestrictCmd `cmd:"" help:"Freeze what is kept of a person, or end that with --lift."`
	Delete   subjectDeleteCmd   `cmd:"" help:"Delete all that is kept of a person, the key of what is sealed first."`
	Import   subjectImportCmd   `cmd:"" help:"Add the conversations of an archive that access gave, here or elsewhere."`
	Object   subjectObjectCmd   `cmd:"" help:"Note what a person objects to, in place of what was noted before."`
	Check    subjectCheckCmd    `cmd:"" help:"Check the signature of a receipt."`
}

// subjectFlags say of whom, and where the receipt goes.
type subjectFlags struct {
	//lint:ignore SA5008 kong takes a tag for each variable
	serverFlags `set:"server=127.0.0.1:8080" set:"ask=The server, host:port or unix:///path."`
	Tenant      string `placeholder:"NAME" help:"Whose person it is (default: the credential's)."`
	Receipt     string `placeholder:"FILE" help:"Write the signed receipt there, too."`
	Subject     string `arg:"" help:"The person, as the tenant calls them."`
}

// dial gives the calls, and what ends them.
func (f subjectFlags) dial() (pb.SubjectServiceClient, func() error, error) {
	if err := checkServers(f.Server); err != nil {
		return nil, nil, err
	}
	o, err := f.clientOptions(f.Server)
	if err != nil {
		return nil, nil, err
	}
	dial, err := client.DialOptions(f.Server, o...)
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient(f.Server, dial...)
	if err != nil {
		return nil, nil, err
	}
	return pb.NewSubjectServiceClient(conn), conn.Close, nil
}

// receipted is an answer with a receipt.
type receipted interface{ GetReceipt() *pb.Receipt }

// call asks the server, and prints the receipt.
func (f subjectFlags) call(ctx context.Context, out io.Writer,
	do func(context.Context, pb.SubjectServiceClient) (receipted, error)) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	rights, end, err := f.dial()
	if err != nil {
		return err
	}
	answer, err := do(ctx, rights)
	if err != nil {
		return errors.Join(plain(err), end())
	}
	return errors.Join(f.print(out, answer.GetReceipt()), end())
}

// print writes the receipt's text, and all of it to --receipt.
func (f subjectFlags) print(out io.Writer, r *pb.Receipt) error {
	if f.Receipt != "" {
		signed := audit.SignedReceipt{Text: r.GetText(), Signature: r.GetSignature(), Key: r.GetKey()}
		text, err := json.Marshal(signed)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f.Receipt, append(text, '\n'), 0o600); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%s\nsigned with key %s\n", harmless(string(r.GetText())), harmless(r.GetKey()))
	return err
}

type subjectAccessCmd struct {
	subjectFlags
	Out string `short:"o" required:"" placeholder:"FILE.zip" help:"The archive; it is made for its owner's eyes only."`
}

// Run writes the archive. One that breaks off is removed.
func (c subjectAccessCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, func(ctx context.Context, rights pb.SubjectServiceClient) (_ receipted, err error) {
		f, err := os.OpenFile(c.Out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		defer func() {
			if err = errors.Join(err, f.Close()); err != nil {
				err = errors.Join(err, os.Remove(c.Out))
			}
		}()
		stream, err := rights.AccessSubject(ctx, &pb.AccessSubjectRequest{Tenant: c.Tenant, Subject: c.Subject})
		if err != nil {
			return nil, err
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			if _, err := f.Write(m.GetChunk()); err != nil {
				return nil, err
			}
			if m.GetReceipt() != nil {
				return m, f.Sync()
			}
		}
	})
}

type subjectCorrectCmd struct {
	subjectFlags
	Conversation string `required:"" placeholder:"ID" help:"The conversation."`
	Number       uint64 `required:"" placeholder:"N" help:"The message's number, from 1."`
	Role         string `enum:"system,user,assistant" default:"user" help:"Who said it: system, user or assistant."`
	Text         string `required:"" placeholder:"TEXT" help:"What is to stand there; - reads standard input."`
}

// Run replaces the message.
func (c subjectCorrectCmd) Run(ctx context.Context, out io.Writer) error {
	text := c.Text
	if text == "-" {
		in, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
		if err != nil {
			return err
		}
		text = string(in)
	}
	message := map[string]func(...*pb.Part) *pb.Message{
		"system": client.System, "user": client.User, "assistant": client.Assistant,
	}[c.Role](client.Text(text))
	return c.call(ctx, out, func(ctx context.Context, rights pb.SubjectServiceClient) (receipted, error) {
		return rights.CorrectSubject(ctx, &pb.CorrectSubjectRequest{
			Tenant: c.Tenant, Subject: c.Subject, Conversation: c.Conversation, Number: c.Number, Message: message,
		})
	})
}

type subjectRestrictCmd struct {
	subjectFlags
	Lift bool `help:"End the restriction."`
}

// Run restricts what is kept.
func (c subjectRestrictCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, func(ctx context.Context, rights pb.SubjectServiceClient) (receipted, error) {
		return rights.RestrictSubject(ctx, &pb.RestrictSubjectRequest{Tenant: c.Tenant, Subject: c.Subject, Lift: c.Lift})
	})
}

type subjectDeleteCmd struct {
	subjectFlags
	Yes bool `required:"" help:"Yes: it cannot be undone."`
}

// Run deletes what is kept.
func (c subjectDeleteCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, func(ctx context.Context, rights pb.SubjectServiceClient) (receipted, error) {
		r, err := rights.DeleteSubject(ctx, &pb.DeleteSubjectRequest{Tenant: c.Tenant, Subject: c.Subject})
		if err == nil && r.GetInUse() {
			fmt.Fprintln(out, "open requests have some of it, which goes when they end")
		}
		return r, err
	})
}

type subjectImportCmd struct {
	subjectFlags
	Archive string `required:"" placeholder:"FILE.zip" help:"The archive."`
}

// importPiece is the most bytes of an archive in one message.
const importPiece = 1 << 20

// Run sends the archive.
func (c subjectImportCmd) Run(ctx context.Context, out io.Writer) error {
	f, err := os.Open(c.Archive)
	if err != nil {
		return err
	}
	defer f.Close()
	return c.call(ctx, out, func(ctx context.Context, rights pb.SubjectServiceClient) (receipted, error) {
		stream, err := rights.ImportSubject(ctx)
		if err != nil {
			return nil, err
		}
		if err := sendArchive(stream, f, &pb.ImportSubjectRequest{Tenant: c.Tenant, Subject: c.Subject}); err != nil {
			return nil, err
		}
		return stream.CloseAndRecv()
	})
}

// sendArchive sends a file in pieces. Where the server takes no more, its answer says why.
func sendArchive(stream grpc.ClientStreamingClient[pb.ImportSubjectRequest, pb.ImportSubjectResponse], f io.Reader,
	first *pb.ImportSubjectRequest) error {
	piece, in := make([]byte, importPiece), first
	for {
		n, err := io.ReadFull(f, piece)
		in.Chunk = piece[:n]
		if n > 0 && stream.Send(in) != nil {
			return nil
		}
		in = &pb.ImportSubjectRequest{}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

type subjectObjectCmd struct {
	subjectFlags
	Logging  bool `help:"To lines in the server's log about their requests."`
	Caching  bool `help:"To anything that models keep of their prompts."`
	Training bool `help:"To giving anything of theirs out for training."`
}

// Run notes what the person objects to.
func (c subjectObjectCmd) Run(ctx context.Context, out io.Writer) error {
	return c.call(ctx, out, func(ctx context.Context, rights pb.SubjectServiceClient) (receipted, error) {
		return rights.ObjectSubject(ctx, &pb.ObjectSubjectRequest{
			Tenant: c.Tenant, Subject: c.Subject, Logging: c.Logging, Caching: c.Caching, Training: c.Training,
		})
	})
}

type subjectCheckCmd struct {
	Public  string `required:"" placeholder:"FILE" help:"Public keys of the server: its audit log's name and .pub."`
	Receipt string `arg:"" placeholder:"FILE" help:"The receipt, as --receipt wrote it."`
}

// maxReceipt bounds the file of a receipt, in bytes.
const maxReceipt = 64 << 10

// Run prints the receipt if it is signed.
func (c subjectCheckCmd) Run(out io.Writer) error {
	text, err := readRegular(c.Receipt, maxReceipt)
	if err != nil {
		return err
	}
	keys, err := audit.ReadPublic(c.Public)
	if err != nil {
		return err
	}
	var signed audit.SignedReceipt
	if err := json.Unmarshal(text, &signed); err != nil {
		return fmt.Errorf("%s is no receipt: %w", c.Receipt, err)
	}
	if _, err := signed.Check(keys); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\nsigned with key %s\n", harmless(string(signed.Text)), harmless(signed.Key))
	return err
}
