package serving

import (
	"archive/zip"
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/vision"
)

// Whose says whose conversations a call is about, and which.
type Whose struct {
	// Tenant is the credential's where callers have one; Subject a person of it.
	Tenant, Subject string
	// ID is a conversation's; empty where the call is about several, or none that is there yet.
	ID string
}

// conversing is a call about conversations.
type conversing struct {
	conversation.Store
	of conversation.Scope
	id string
	// object is what the audit line names: a conversation that is there, or an image.
	object string
}

// converse has do work on a subject's conversations, and writes the one line of the call, in the audit log too. It
// counts against the tenant's rate of requests. Its error is an *Error.
func (s *Service) converse(ctx context.Context, operation string, who Whose, do func(*conversing) error) error {
	began := time.Now()
	c := &conversing{Store: s.options.Conversations, id: who.ID, object: who.ID}
	err := s.beginConverse(ctx, &who)
	event := s.auditConverse(ctx, operation, who)
	if err == nil {
		err = s.auditBegin(event)
	}
	if err == nil {
		c.of = conversation.Scope{Tenant: who.Tenant, Subject: who.Subject}
		if err = do(c); err == nil {
			event.Object = c.object // before, it is a text that nobody has checked
		}
	}
	err = s.auditCall(event, s.conversationError(ctx, err))
	return s.logConverse(ctx, operation, who, began, err)
}

// auditConverse is the event of a call about conversations: the person by a pseudonym, and no content.
func (s *Service) auditConverse(ctx context.Context, operation string, who Whose) audit.Event {
	if !validID(who.Tenant) {
		who.Tenant = ""
	}
	e := s.auditEvent(ctx, "conversation_"+operation, who.Tenant)
	if s.options.Conversations != nil && who.Subject != "" && validID(who.Subject) {
		e.Subject = s.options.Conversations.Pseudonym(conversation.Scope{Tenant: who.Tenant, Subject: who.Subject})
	}
	return e
}

func (s *Service) beginConverse(ctx context.Context, who *Whose) error {
	var v Violations
	who.Tenant = TenantOf(ctx, who.Tenant, "tenant", &v)
	validateName(&v, "tenant", who.Tenant)
	validateName(&v, "subject", who.Subject)
	if err := v.Err(); err != nil {
		return err
	}
	if s.options.Conversations == nil {
		return noConversations()
	}
	use, _ := ctx.Value(usageKey{}).(*usage)
	if !use.adopt() {
		var err error
		if use, err = s.options.Quotas.enter(who.Tenant, CallerOf(ctx).Peer); err != nil {
			s.options.Telemetry.countQuota(ctx, err)
			return err
		}
	}
	use.end(0, true) // it counts against the rate alone
	return nil
}

func noConversations() error {
	return failed(FailedPrecondition, "this server keeps no conversations: it was started without --conversations; "+
		"send the whole conversation with each request")
}

// logConverse writes the line of a call, which names the subject by its pseudonym, and gives its error.
func (s *Service) logConverse(ctx context.Context, operation string, who Whose, began time.Time, told error) error {
	kind := KindOf(told)
	attrs := []slog.Attr{slog.String("operation", operation), slog.String("code", kind.String())}
	if s.options.Conversations != nil {
		of := conversation.Scope{Tenant: who.Tenant, Subject: who.Subject}
		attrs = append(attrs, slog.String("subject", s.options.Conversations.Pseudonym(of)))
	}
	attrs = append(attrs, slog.Float64("total_ms", float64(time.Since(began).Microseconds())/1000))
	s.options.Logger.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "conversation", attrs...)
	return told
}

// ErrNoConversation is the cause of errors of requests that name a conversation, or a turn of one, that there is none
// of.
var ErrNoConversation = errors.New("no such conversation")

// conversationError is a store's error as a caller sees it. One that is the store's own fault is logged.
func (s *Service) conversationError(ctx context.Context, err error) error {
	var limit *conversation.LimitError
	switch {
	case err == nil || errors.As(err, new(*Error)):
		return err
	case errors.Is(err, conversation.ErrRestricted):
		return failed(FailedPrecondition, "conversation: it is restricted: the subject alone may read it, and nobody goes on with it")
	case errors.Is(err, conversation.ErrNotFound):
		const text = "the subject has none of this name"
		return &Error{
			Kind: NotFound, Message: "conversation: " + text, Violations: Violations{{"conversation", text}},
			cause: ErrNoConversation,
		}
	case errors.Is(err, conversation.ErrHeld):
		return failed(FailedPrecondition, "conversation: a legal hold forbids it")
	case errors.Is(err, conversation.ErrConflict):
		return failed(Aborted, "conversation: it has gone on in between; read it, and try again")
	case errors.Is(err, conversation.ErrKeyReused):
		return failed(AlreadyExists, "idempotency_key: the subject used it for something else")
	case errors.As(err, &limit):
		return failed(Exhausted, "conversation: %v", limit)
	case errors.Is(err, conversation.ErrInvalid):
		return InvalidField("conversation", "%v", err)
	case ctx.Err() != nil:
		return Left(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return errSlowArchive()
	}
	s.options.Logger.LogAttrs(context.WithoutCancel(ctx), slog.LevelError, "the store of conversations failed",
		slog.Any("error", err))
	if errors.Is(err, conversation.ErrCorrupt) || errors.Is(err, conversation.ErrMaster) {
		return failed(Internal, "conversation: what is kept of it cannot be read; the server's log says more")
	}
	return failed(Unavailable, "conversation: the store of conversations cannot be reached: try again later")
}

// MaxMetadata is the most pairs of a conversation's metadata.
const MaxMetadata = 16

// CreateConversation begins a conversation. An error is an *Error, which names fields as the contract does, as those of
// the methods below are.
func (s *Service) CreateConversation(ctx context.Context, who Whose,
	n conversation.New) (out *conversation.Conversation, err error) {
	err = s.converse(ctx, "create", who, func(c *conversing) (err error) {
		if len(n.Info.Metadata) > MaxMetadata {
			return InvalidField("metadata", "%d pairs; want at most %d", len(n.Info.Metadata), MaxMetadata)
		}
		if out, err = c.Create(ctx, c.of, n); err == nil {
			c.object = out.ID
		}
		return err
	})
	return out, err
}

// AppendMessages adds messages to a conversation.
func (s *Service) AppendMessages(ctx context.Context, who Whose,
	a conversation.Appended) (p conversation.Place, err error) {
	err = s.converse(ctx, "append", who, func(c *conversing) (err error) {
		var v Violations
		validateName(&v, "idempotency_key", a.Key)
		if len(a.Messages) == 0 || len(a.Messages) > MaxMessages {
			v.Add("messages", "%d; want 1 to %d", len(a.Messages), MaxMessages)
		}
		if err := v.Err(); err != nil {
			return err
		}
		if err := s.validateShown(ctx, a.Messages); err != nil {
			return err
		}
		p, err = c.Append(ctx, c.of, c.id, a)
		return err
	})
	return p, err
}

// validateShown refuses files that no request may show: a conversation that has one would go on with none.
func (s *Service) validateShown(ctx context.Context, list []conversation.Message) error {
	limits, release := s.imageLimits()
	defer release()
	for i, m := range list {
		for j, p := range m.Parts {
			if p.Image == nil || len(p.Image.Data) == 0 {
				continue
			}
			if _, err := imaging.ReadHeader(ctx, p.Image.Data, limits); errors.Is(err, vision.ErrImage) {
				return InvalidField(fmt.Sprintf("messages[%d].parts[%d].image.data", i, j), "%v", err)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// GetConversation reads a conversation and up to limit of its messages after a number.
func (s *Service) GetConversation(ctx context.Context, who Whose, after uint64,
	limit int) (out *conversation.Conversation, list []conversation.Message, err error) {
	err = s.converse(ctx, "get", who, func(c *conversing) (err error) {
		out, list, err = c.Get(ctx, c.of, c.id, after, limit)
		return err
	})
	return out, list, err
}

// ConversationImage reads an image of a subject's, and has send give it on. It counts against the memory of media until
// then.
func (s *Service) ConversationImage(ctx context.Context, who Whose, digest [32]byte, send func([]byte) error) error {
	return s.converse(ctx, "image", who, func(c *conversing) error {
		c.object = hex.EncodeToString(digest[:])
		f, err := s.loadImage(ctx, c, c.of, digest)
		if err != nil {
			return err
		}
		defer f.Close()
		return send(f.Data())
	})
}

// maxLoading is how many images are read from the store at once, maxExporting how many archives are on their way.
const maxLoading, maxExporting = 2, 4

// loadImage reads an image into the memory of media.
func (s *Service) loadImage(ctx context.Context, store conversation.Store, of conversation.Scope,
	digest [32]byte) (*media.File, error) {
	select {
	case s.loading <- struct{}{}:
		defer func() { <-s.loading }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	data, err := store.Image(ctx, of, digest)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return s.hold(of.Tenant, data)
}

// ListConversations lists a subject's conversations from where a list ended.
func (s *Service) ListConversations(ctx context.Context, who Whose, from string,
	limit int) (list []conversation.Conversation, next string, err error) {
	err = s.converse(ctx, "list", who, func(c *conversing) (err error) {
		list, next, err = c.List(ctx, c.of, from, limit)
		if errors.Is(err, conversation.ErrInvalid) {
			err = InvalidField("page_token", "%d bytes that end no page; want next_page_token of a page before", len(from))
		}
		return err
	})
	return list, next, err
}

// DeleteConversation deletes a conversation.
func (s *Service) DeleteConversation(ctx context.Context, who Whose) error {
	return s.converse(ctx, "delete", who, func(c *conversing) error { return c.Delete(ctx, c.of, c.id) })
}

// ForkConversation begins a conversation with the messages of another, up to a number.
func (s *Service) ForkConversation(ctx context.Context, who Whose, upTo uint64,
	n conversation.New) (out *conversation.Conversation, err error) {
	err = s.converse(ctx, "fork", who, func(c *conversing) (err error) {
		out, err = c.Fork(ctx, c.of, c.id, upTo, n)
		if errors.Is(err, conversation.ErrInvalid) {
			err = InvalidField("up_to", "%v", err)
		}
		return err
	})
	return out, err
}

// archiveTime is how long an archive may take to be made or imported, exportBuffer how much of one is sent at once.
const (
	archiveTime  = 10 * time.Minute
	exportBuffer = 256 << 10
)

// archive takes a place for an archive that is made, without waiting. It gives its context, and what ends both.
func (s *Service) archive(ctx context.Context) (context.Context, func(), error) {
	select {
	case s.exporting <- struct{}{}:
	default:
		return nil, nil, Overloaded("as many archives are on their way as this server makes at once: try again later")
	}
	ctx, cancel := context.WithTimeout(ctx, archiveTime)
	return ctx, func() { cancel(); <-s.exporting }, nil
}

func errSlowArchive() error {
	return failed(Unavailable, "the archive took longer than %v, which is the most for one", archiveTime)
}

// ExportConversations writes conversations of the ids given, or all, as an archive.
func (s *Service) ExportConversations(ctx context.Context, who Whose, ids []string, to io.Writer) error {
	return s.converse(ctx, "export", who, func(c *conversing) error {
		ctx, end, err := s.archive(ctx)
		if err != nil {
			return err
		}
		defer end()
		b := bufio.NewWriterSize(to, exportBuffer)
		w := zip.NewWriter(b)
		if err := conversation.Export(ctx, c, c.of, ids, w); err != nil {
			return err
		}
		return errors.Join(w.Close(), b.Flush())
	})
}
