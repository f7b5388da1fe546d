package serving

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/mmserve/mmserve/conversation"
	"github.com/mmserve/mmserve/internal/audit"
)

// Person says whose data a call is about: a tenant's subject. Tenant is the credential's where callers have one.
type Person struct{ Tenant, Subject string }

// rights is a call about a person's data.
type rights struct {
	*Service
	of      conversation.Scope // as the subject
	receipt audit.Receipt
	inUse   bool // open requests have some of what goes
}

// exercise has do act for a person. A line of the audit log says so before, and another one after; where the first
// cannot be written nothing is done. Its error is an *Error.
func (s *Service) exercise(ctx context.Context, action string, who Person,
	do func(*rights) error) (*audit.SignedReceipt, error) {
	r, event, err := s.beginRights(ctx, action, who)
	if err != nil {
		return nil, err
	}
	err = do(r)
	told := s.rightsError(ctx, err)
	r.receipt.Time = time.Now().UTC().Truncate(time.Millisecond)
	event.Decision, event.Details = KindOf(told).label(), r.receipt.Counts
	event.Time = time.Time{}
	if kept := s.options.Audit.RecordSync(&event); kept != nil && told == nil {
		return nil, errAudit() // it was done, as the line before says
	}
	s.options.Logger.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "subject", slog.String("action", action),
		slog.String("subject", r.receipt.Subject), slog.String("code", KindOf(told).String()))
	if told != nil {
		return nil, told
	}
	return s.options.Audit.Keys().SignReceipt(&r.receipt)
}

func (s *Service) beginRights(ctx context.Context, action string, who Person) (*rights, audit.Event, error) {
	var v Violations
	who.Tenant = TenantOf(ctx, who.Tenant, "tenant", &v)
	validateName(&v, "tenant", who.Tenant)
	validateName(&v, "subject", who.Subject)
	if who.Subject == "" {
		v.Add("subject", "empty; want the person whose data it is about")
	}
	if err := v.Err(); err != nil {
		return nil, audit.Event{}, err
	}
	switch {
	case s.options.Conversations == nil:
		return nil, audit.Event{}, failed(FailedPrecondition,
			"this server keeps no conversations, and so nothing of any subject: it was started without --conversations")
	case s.options.Audit == nil:
		return nil, audit.Event{}, failed(FailedPrecondition,
			"this server has no audit log, which what is done with a person's data has to stand in: --audit-log")
	}
	use, err := s.options.Quotas.enter(who.Tenant, CallerOf(ctx).Peer)
	if err != nil {
		return nil, audit.Event{}, err
	}
	use.end(0, true) // it counts against the rate alone
	of := conversation.Scope{Tenant: who.Tenant, Subject: who.Subject, Purpose: conversation.ForSubject}
	r := &rights{Service: s, of: of, receipt: audit.Receipt{
		ID: rand.Text(), Action: action, Tenant: who.Tenant, Subject: s.options.Conversations.Pseudonym(of),
		Counts: map[string]int64{},
	}}
	event := s.auditEvent(ctx, action, who.Tenant)
	event.Kind, event.ID, event.Subject, event.Decision = audit.KindSubject, r.receipt.ID, r.receipt.Subject, "allowed"
	before := event
	if s.options.Audit.RecordSync(&before) != nil {
		return nil, event, &Error{Kind: Unavailable, Message: "the audit log cannot be written: nothing was done"}
	}
	return r, event, nil
}

// rightsError is an error of the store as a caller sees it.
func (s *Service) rightsError(ctx context.Context, err error) error {
	var limit *conversation.LimitError
	switch {
	case err == nil || errors.As(err, new(*Error)):
		return err
	case errors.Is(err, conversation.ErrNotFound):
		return failed(NotFound, "subject: nothing of this name is kept")
	case errors.Is(err, conversation.ErrHeld):
		return failed(FailedPrecondition, "subject: a legal hold forbids it")
	case errors.Is(err, conversation.ErrRestricted):
		return failed(FailedPrecondition, "subject: what is kept is restricted; lift that first")
	case errors.As(err, &limit):
		return failed(Exhausted, "subject: %v", limit)
	case errors.Is(err, conversation.ErrInvalid):
		return InvalidField("archive", "%v", err)
	case ctx.Err() != nil:
		return Left(ctx)
	case errors.Is(err, context.DeadlineExceeded):
		return errSlowArchive()
	}
	s.options.Logger.LogAttrs(context.WithoutCancel(ctx), slog.LevelError, "the store of conversations failed",
		slog.Any("error", err))
	return failed(Unavailable, "subject: the store of conversations failed: try again later")
}

// subjectFile is what an archive says of a subject beside conversations.
type subjectFile struct {
	Tenant        string    `json:"tenant,omitempty"`
	Subject       string    `json:"subject"`
	Pseudonym     string    `json:"pseudonym"`
	Created       time.Time `json:"created"`
	Restricted    bool      `json:"restricted"`
	LegalHold     bool      `json:"legal_hold"`
	NoLogging     bool      `json:"objects_to_logging"`
	NoCaching     bool      `json:"objects_to_caching"`
	NoTraining    bool      `json:"objects_to_training"`
	Conversations int64     `json:"conversations"`
	Bytes         int64     `json:"bytes"`
}

// AccessSubject writes all that is kept of a person to an archive: a zip file with conversations and images
// (conversation.Export), subject.json, and audit.jsonl with the audit log's lines. Its error is an *Error.
func (s *Service) AccessSubject(ctx context.Context, who Person, to io.Writer) (*audit.SignedReceipt, error) {
	return s.exercise(ctx, "access", who, func(r *rights) error {
		ctx, end, err := s.archive(ctx)
		if err != nil {
			return err
		}
		defer end()
		sum := sha256.New()
		z := zip.NewWriter(io.MultiWriter(to, sum))
		if err := r.describe(ctx, z); err != nil {
			return err
		}
		if err := conversation.Export(ctx, s.options.Conversations, r.of, nil, z); err != nil {
			return err
		}
		if err := r.auditLines(ctx, z); err != nil {
			return err
		}
		if err := z.Close(); err != nil {
			return err
		}
		r.receipt.Archive = hex.EncodeToString(sum.Sum(nil))
		return nil
	})
}

func (r *rights) describe(ctx context.Context, z *zip.Writer) error {
	subject, err := r.options.Conversations.Subject(ctx, r.of)
	if err != nil {
		return err
	}
	w, err := z.Create("subject.json")
	if err != nil {
		return err
	}
	objects := func(to conversation.Objection) bool { return subject.Objections&to != 0 }
	r.receipt.Counts["conversations"] = subject.Conversations
	return json.NewEncoder(w).Encode(subjectFile{
		Tenant: r.of.Tenant, Subject: r.of.Subject, Pseudonym: r.receipt.Subject, Created: subject.Created,
		Restricted: subject.State == conversation.Restricted, LegalHold: subject.Hold,
		NoLogging: objects(conversation.NoLogging), NoCaching: objects(conversation.NoCaching),
		NoTraining: objects(conversation.NoTraining), Conversations: subject.Conversations, Bytes: subject.Bytes,
	})
}

func (r *rights) auditLines(ctx context.Context, z *zip.Writer) error {
	w, err := z.Create("audit.jsonl")
	if err != nil {
		return err
	}
	return r.options.Audit.EachOf(ctx, r.receipt.Subject, func(line []byte) error {
		r.receipt.Counts["audit_lines"]++
		_, err := w.Write(append(bytes.TrimRight(line, "\n"), '\n'))
		return err
	})
}

// CorrectSubject replaces a message of a conversation. Its error is an *Error.
func (s *Service) CorrectSubject(ctx context.Context, who Person, id string,
	m conversation.Message) (*audit.SignedReceipt, error) {
	return s.exercise(ctx, "correct", who, func(r *rights) error {
		before, err := r.images(ctx)
		if err != nil {
			return err
		}
		if err := s.options.Conversations.Correct(ctx, r.of, id, m); err != nil {
			return err
		}
		r.receipt.Counts["messages"] = 1
		left, err := r.images(ctx)
		if err != nil {
			return err
		}
		return r.forget(ctx, slices.DeleteFunc(before, func(file [32]byte) bool { return slices.Contains(left, file) }))
	})
}

// RestrictSubject freezes what is kept of a person, or ends that. What models keep of the tenant's prompts goes: it is
// used for nothing any more. Its error is an *Error.
func (s *Service) RestrictSubject(ctx context.Context, who Person, lift bool) (*audit.SignedReceipt, error) {
	action, state := "restrict", conversation.Restricted
	if lift {
		action, state = "lift_restriction", conversation.Active
	}
	return s.exercise(ctx, action, who, func(r *rights) error {
		if _, err := s.options.Conversations.Subject(ctx, r.of); err != nil {
			return err
		}
		out, err := s.options.Conversations.SetSubject(ctx, r.of, conversation.SubjectChange{State: &state})
		if err != nil {
			return err
		}
		r.receipt.Counts["conversations"] = out.Conversations
		if lift {
			return nil
		}
		return r.forget(ctx, nil)
	})
}

// ObjectSubject notes what a person objects to, in place of what was noted before. Its error is an *Error.
func (s *Service) ObjectSubject(ctx context.Context, who Person,
	to conversation.Objection) (*audit.SignedReceipt, error) {
	return s.exercise(ctx, "object", who, func(r *rights) error {
		_, err := s.options.Conversations.SetSubject(ctx, r.of, conversation.SubjectChange{Objections: &to})
		r.receipt.Counts["objections"] = int64(to)
		if err == nil && to&conversation.NoCaching != 0 {
			err = r.forget(ctx, nil)
		}
		return err
	})
}

// DeleteSubject lets go of all that is kept of a person: the key of what is sealed first, then conversations and
// images, then what models keep in memory: patch embeddings of the images, and keys and values of the tenant's prompts,
// as those are not kept by person. inUse says that open requests have some of it, which goes when they end. Its error
// is an *Error.
func (s *Service) DeleteSubject(ctx context.Context, who Person) (_ *audit.SignedReceipt, inUse bool, err error) {
	receipt, err := s.exercise(ctx, "delete", who, func(r *rights) error {
		files, err := r.images(ctx)
		if err != nil {
			return err
		}
		// What is begun is ended, also where who asked is gone: once the key is deleted nobody can tell the images any more.
		ctx, end := context.WithTimeout(context.WithoutCancel(ctx), eraseTime)
		defer end()
		gone, failed := s.options.Conversations.Erase(ctx, r.of)
		if errors.Is(failed, conversation.ErrHeld) || errors.Is(failed, conversation.ErrNotFound) {
			return failed // nothing was begun
		}
		c := r.receipt.Counts
		c["conversations"], c["messages"], c["images"] = gone.Conversations, gone.Messages, gone.Images
		for _, file := range files {
			if s.options.Media != nil && s.options.Media.Delete(r.of.Tenant, file) {
				c["uploads"]++
			}
		}
		if err := errors.Join(failed, r.forget(ctx, files)); err != nil {
			return err
		}
		inUse = r.inUse
		r.receipt.Note = "Copies in backups are sealed with a key that is deleted. Lines of the audit log stay: they name " +
			"the person by a pseudonym, and have no content."
		return nil
	})
	return receipt, inUse, err
}

// eraseTime bounds a deletion whose caller may be gone.
const eraseTime = 5 * time.Minute

// images are the digests of all images in a person's conversations.
func (r *rights) images(ctx context.Context) (list [][32]byte, err error) {
	seen := map[[32]byte]bool{}
	store := r.options.Conversations
	for from := ""; ; {
		page, next, err := store.List(ctx, r.of, from, 0)
		if err != nil {
			return nil, err
		}
		for _, c := range page {
			for after := uint64(0); after < c.Messages; {
				_, messages, err := store.Get(ctx, r.of, c.ID, after, 0)
				if errors.Is(err, conversation.ErrNotFound) || err == nil && len(messages) == 0 {
					break // deleted in between
				} else if err != nil {
					return nil, err
				}
				for i := range messages {
					after = messages[i].Seq
					for _, p := range messages[i].Parts {
						if p.Image != nil && !seen[p.Image.Digest] {
							seen[p.Image.Digest] = true
							list = append(list, p.Image.Digest)
						}
					}
				}
			}
		}
		if from = next; next == "" {
			return list, nil
		}
	}
}

// forget has all models let go of what they keep of the tenant's prompts and of images, and waits for that a while.
func (r *rights) forget(ctx context.Context, files [][32]byte) error {
	var wait []<-chan struct{}
	for _, file := range files {
		gone := r.Service.forget(r.imageOf(r.of.Tenant, file))
		if gone == nil { // the last request that has it sees to the rest
			r.inUse = true
			continue
		}
		wait = append(wait, gone)
	}
	r.models.Each(func(d *Deployment) { wait = append(wait, d.Engine.ForgetTenant(r.of.Tenant)) })
	late := time.NewTimer(forgetTime)
	defer late.Stop()
	for _, gone := range wait {
		select {
		case <-gone:
		case <-late.C:
			r.inUse = true
			return nil
		case <-ctx.Done():
			return Left(ctx)
		}
	}
	return nil
}

// Bounds of an archive that is imported.
const (
	// MaxImport is the most bytes of an archive, which is held in memory: on disk it would be readable.
	MaxImport = 256 << 20
	// maxImportFiles is the most files in it.
	maxImportFiles = 100_000
)

// zipEntry begins each entry of a zip file's directory.
var zipEntry = []byte("PK\x01\x02")

// ImportSubject adds the conversations of an archive to a person's. The archive's memory is overwritten. Its error is
// an *Error, which names the field archive.
func (s *Service) ImportSubject(ctx context.Context, who Person,
	archive []byte) (_ *audit.SignedReceipt, ids []string, err error) {
	defer clear(archive)
	if len(archive) > MaxImport {
		return nil, nil, InvalidField("archive", "%d bytes; want at most %d", len(archive), MaxImport)
	}
	receipt, err := s.exercise(ctx, "import", who, func(r *rights) (err error) {
		sum := sha256.Sum256(archive)
		r.receipt.Archive = hex.EncodeToString(sum[:])
		if n := bytes.Count(archive, zipEntry); n > maxImportFiles { // before anything is made for each
			return InvalidField("archive", "%d files; want at most %d", n, maxImportFiles)
		}
		z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
		if err != nil {
			return InvalidField("archive", "no zip file")
		}
		ctx, end := context.WithTimeout(ctx, archiveTime)
		defer end()
		ids, err = conversation.Import(ctx, s.options.Conversations, r.of, z)
		r.receipt.Counts["conversations"] = int64(len(ids))
		return err
	})
	if err != nil {
		return nil, ids, fmt.Errorf("%w", err)
	}
	return receipt, ids, nil
}
