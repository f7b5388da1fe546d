package conversation

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Store keeps conversations. Its methods may be called concurrently, by several processes too, and what one of them
// reports as done has reached the disk. They fail with the errors below, wrapped, or those of the database.
type Store interface {
	// Create begins a conversation. A subject that there was none of is made.
	Create(ctx context.Context, of Scope, n New) (*Conversation, error)
	// Append adds messages to the end, all or none.
	Append(ctx context.Context, of Scope, id string, a Appended) (Place, error)
	// Locate finds what was appended with a key.
	Locate(ctx context.Context, of Scope, key string) (Place, error)
	// Get gives a conversation and up to limit (at most MaxPage) of its messages, those after the number given: fewer
	// where they have over MaxPageBytes together, and one at least if there is one.
	Get(ctx context.Context, of Scope, id string, after uint64, limit int) (*Conversation, []Message, error)
	// Image gives the bytes of an image that the subject has.
	Image(ctx context.Context, of Scope, digest [32]byte) ([]byte, error)
	// List gives up to limit (at most MaxPage) of the subject's conversations, the newest first, from where a list before
	// ended; next is empty at the end.
	List(ctx context.Context, of Scope, from string, limit int) (list []Conversation, next string, err error)
	// Update changes what is said of a conversation.
	Update(ctx context.Context, of Scope, id string, c Change) (*Conversation, error)
	// Correct replaces the message of m.Seq, and lets go of images that nothing else shows.
	Correct(ctx context.Context, of Scope, id string, m Message) error
	// Fork begins a conversation with the messages of another up to a number; 0 is all.
	Fork(ctx context.Context, of Scope, id string, upTo uint64, n New) (*Conversation, error)
	// Delete lets go of a conversation, and of images that no other shows.
	Delete(ctx context.Context, of Scope, id string) error

	// Subject gives what is kept of a subject.
	Subject(ctx context.Context, of Scope) (*Subject, error)
	// SetSubject changes it, and makes a subject that there is none of.
	SetSubject(ctx context.Context, of Scope, c SubjectChange) (*Subject, error)
	// Subjects gives up to limit of a tenant's subjects, in no order that says anything, as List does.
	Subjects(ctx context.Context, tenant, from string, limit int) (list []Subject, next string, err error)
	// Erase lets go of a subject: first of its key, then of all it has. Where it fails after the first, nothing can be
	// read any more, and the rest goes with the next call for the subject, or with Sweep.
	Erase(ctx context.Context, of Scope) (Erased, error)
	// Pseudonym is a keyed hash of whose a scope is: 32 hexadecimal digits, the same as long as the store lives.
	Pseudonym(of Scope) string

	// Due gives up to limit conversations whose time is over and that no hold protects, the first due first.
	Due(ctx context.Context, now time.Time, limit int) ([]Due, error)
	// Expire deletes a conversation if its time is over at now and no hold protects it, and says whether it did.
	Expire(ctx context.Context, of Scope, id string, now time.Time) (bool, error)
	// Retain gives all conversations of a tenant's class another time from their last append, and counts them.
	Retain(ctx context.Context, tenant string, r Retention) (int64, error)
	// Sweep deletes what is left of subjects whose key is gone: of erasures that were interrupted, and in backups from
	// before one. It counts subjects.
	Sweep(ctx context.Context) (int64, error)
	// Rewrap wraps with the newest master key all keys that another one wraps, and counts them. The store goes on.
	Rewrap(ctx context.Context) (int64, error)
	// Close ends the store's use.
	Close() error
}

// New is what a conversation begins with.
type New struct {
	Info      Info
	Retention Retention
	// Created is when it began, of an import. Default: now.
	Created time.Time
}

// Appended is what Append adds.
type Appended struct {
	Messages []Message
	// Key, unless it is empty, is the caller's name for this append, one of the subject's. Another append of the same key
	// and messages adds nothing and gives the place of the first, so that it may be tried again.
	Key string
	// After, unless nil, is the number of the last message there has to be: else ErrConflict.
	After *uint64
	// AsOf keeps the times that messages have, of an import.
	AsOf bool
}

// Place is where an append lies.
type Place struct {
	Conversation string
	First, Last  uint64
	// Again says that it had been done before.
	Again bool
}

// Change is what Update changes; nil stays.
type Change struct {
	Title     *string
	Metadata  map[string]string
	State     *State
	Hold      *bool
	Retention *Retention
}

// SubjectChange is what SetSubject changes; nil stays.
type SubjectChange struct {
	State      *State
	Hold       *bool
	Objections *Objection
}

// Erased counts what Erase let go of.
type Erased struct{ Conversations, Messages, Images int64 }

// Due is a conversation whose time is over.
type Due struct {
	Scope     Scope
	ID        string
	Expires   time.Time
	Retention Retention
}

// Errors of stores.
var (
	// ErrNotFound says that the subject has no such thing. What others have is not told from what there never was.
	ErrNotFound = errors.New("not found")
	// ErrRestricted says that the content is restricted, and the call not the subject's.
	ErrRestricted = errors.New("restricted: the subject alone may read it")
	// ErrHeld says that a legal hold forbids deleting.
	ErrHeld = errors.New("under legal hold")
	// ErrConflict says that others appended in between.
	ErrConflict = errors.New("the conversation has gone on in between")
	// ErrKeyReused says that the key of an append was another's, with other messages or in another conversation.
	ErrKeyReused = errors.New("the key was used for another append")
	// ErrCorrupt says that a record does not open: it was changed or moved, or is of another key.
	ErrCorrupt = errors.New("a record is not what was written there")
	// ErrMaster says that no master key that is known unwraps a key.
	ErrMaster = errors.New("wrapped by a master key that is not known")
	// ErrInvalid says that what was given cannot be kept.
	ErrInvalid = errors.New("invalid")
)

// LimitError says which bound of Limits would be passed.
type LimitError struct {
	What string // "messages of a conversation", say
	Most int64
}

func (e *LimitError) Error() string { return fmt.Sprintf("at most %d %s are kept", e.Most, e.What) }

// Limits bound what is kept. A zero field takes its default.
type Limits struct {
	// Messages of one conversation. Default: 10,000.
	Messages int64
	// MessageBytes is the most of one message, without its images. Default: 4 MiB.
	MessageBytes int64
	// ImageBytes is the most of one image file. Default: 64 MiB.
	ImageBytes int64
	// SubjectBytes is the most of all messages and images of a subject. Default: 1 GiB.
	SubjectBytes int64
	// Conversations of one subject. Default: 10,000.
	Conversations int64
}

// Bounds that are the same everywhere.
const (
	// MaxPage is the most entries of one list.
	MaxPage = 1000
	// MaxPageBytes is where a page of messages ends.
	MaxPageBytes = 16 << 20
	// MaxAppend is the most messages of one append, MaxParts the most parts of one message.
	MaxAppend, MaxParts = 2048, 2048
	// MaxInfoBytes bounds a title and metadata together.
	MaxInfoBytes = 16 << 10
)

// Options are those of every store.
type Options struct {
	// Master wraps the keys of subjects.
	Master Master
	Limits Limits
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// CachedKeys is how many subjects' keys are kept unwrapped in memory, KeyTime for how long. Default: 1024, 1 minute.
	CachedKeys int
	KeyTime    time.Duration
}

func (o Options) withDefaults() Options {
	setDefault(&o.Limits.Messages, 10_000)
	setDefault(&o.Limits.MessageBytes, 4<<20)
	setDefault(&o.Limits.ImageBytes, 64<<20)
	setDefault(&o.Limits.SubjectBytes, 1<<30)
	setDefault(&o.Limits.Conversations, 10_000)
	setDefault(&o.CachedKeys, 1024)
	setDefault(&o.KeyTime, time.Minute)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
