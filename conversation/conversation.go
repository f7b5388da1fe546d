// Package conversation keeps conversations between requests: messages with images, encrypted under a key of the person
// they are of.
//
// A [Store] is SQLite ([OpenSQLite]) or PostgreSQL ([OpenPostgres]); conversationtest.TestStore holds what both do.
//
// # Whose
//
// A [Scope] says whose conversations a call is about: a tenant's subject, a person. Each subject has a data key, made
// at random, wrapped by a [Master] key and kept apart from the data. Forgetting that key ([Store.Erase]) makes all of
// the subject's records unreadable wherever they lie: in backups, in the write-ahead log, on worn-out disks.
//
// # What is readable in the files
//
// Random ids, times, sizes and counts, states, and how long things are kept. Tenants, subjects, keys of appends and
// digests of images are keyed hashes; messages, images, titles and metadata are sealed with AES-256-GCM. The additional
// data of each record is its place (format, kind, owner, conversation, number), so that a record which was moved,
// copied or exchanged does not open: see [ErrCorrupt]. That records at the end were taken away cannot be seen.
//
// # For who builds rights, retention and audit on it
//
//   - Access, transfer: [Export] writes all of a subject, or some conversations, into a zip archive; [Import] takes it
//     back.
//   - Correct: [Store.Correct] replaces a message in place.
//   - Restrict: [Store.SetSubject] with State Restricted, or [Store.Update] for one conversation. Restricted content
//     opens for [ForSubject] alone; a service's and an operator's calls fail with [ErrRestricted]. Deleting goes on to
//     work.
//   - Delete: [Store.Delete] and [Store.Erase]; what a legal hold protects fails with [ErrHeld].
//   - Object: [Subject.Objections] are kept here and obeyed by those who log, cache or export for training.
//   - Retention: [Retention] is set at Create, its clock starts again with each append. [Store.Due] lists what is due,
//     with its owner's name for the audit line; [Store.Expire] deletes one if it is still due then. [Store.Retain]
//     changes a tenant's class at once. Times are the store's clock's ([Options.Now]), never the database's.
//   - Audit: [Store.Pseudonym] is the keyed hash that stands for a subject where its name may not stand.
package conversation

import (
	"fmt"
	"time"
)

// Purpose says for whom a call reads or writes. Restricted content depends on it.
type Purpose int

const (
	// ForService is a call that answers a request, or changes what is kept for one.
	ForService Purpose = iota
	// ForSubject is the subject's own: it reads what is restricted.
	ForSubject
	// ForOperator is an administrator's. It deletes and changes states, and reads nothing that is restricted.
	ForOperator
)

// Scope is a tenant's subject, whose conversations a call is about. An empty Subject stands for all who are not told
// apart. Both are at most MaxNameBytes long.
type Scope struct {
	Tenant, Subject string
	Purpose         Purpose
}

// MaxNameBytes bounds a tenant's, a subject's and an append key's name.
const MaxNameBytes = 256

func (s Scope) check() error {
	if len(s.Tenant) > MaxNameBytes || len(s.Subject) > MaxNameBytes {
		return fmt.Errorf("a tenant of %d and a subject of %d bytes: want at most %d each", len(s.Tenant), len(s.Subject),
			MaxNameBytes)
	}
	return nil
}

// State says what may be done with content.
type State int

const (
	// Active is content in use.
	Active State = iota
	// Restricted is content that the subject alone may read, and that nobody may use or add to.
	Restricted
)

// Class is a class of retention.
type Class int

const (
	// KeepForever is kept until somebody deletes it.
	KeepForever Class = iota
	// KeepSession is kept for a while after it was last used.
	KeepSession
	// KeepDays is kept for some days after it was last used.
	KeepDays
)

// Retention is how long a conversation is kept. For counts from the last append; 0 is forever.
type Retention struct {
	Class Class
	For   time.Duration
}

// Objection is a set of uses that a subject objects to.
type Objection uint32

// What a subject may object to.
const (
	NoLogging Objection = 1 << iota
	NoCaching
	NoTraining
)

// Subject is what is kept of a person beside conversations.
type Subject struct {
	// Scope names it. Its Purpose is that of the call.
	Scope
	State      State
	Hold       bool // legal hold: nothing of it is deleted
	Objections Objection
	Created    time.Time
	// Conversations counts them, Bytes what their messages and images have, as they were given.
	Conversations, Bytes int64
}

// Conversation is one, without its messages.
type Conversation struct {
	// ID is "conv_" and 32 hexadecimal digits, at random.
	ID               string
	Created, Updated time.Time
	// Messages counts those there are. They are numbered from 1.
	Messages uint64
	// Bytes is what the messages have, without images.
	Bytes     int64
	State     State
	Hold      bool
	Retention Retention
	Expires   time.Time // zero: never
	Info      Info
}

// Info is what a caller says of a conversation. It is encrypted.
type Info struct {
	Title    string            `json:"title,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	// ForkedFrom is the conversation that this one was forked from, if any, and ForkedAt its last message then.
	ForkedFrom string `json:"forked_from,omitempty"`
	ForkedAt   uint64 `json:"forked_at,omitempty"`
}

// Message is a turn of "system", "user", "assistant" or "tool".
type Message struct {
	// Seq is its number, from 1, and Time when it was kept. Append sets both.
	Seq  uint64
	Time time.Time
	// Corrected is when it was last replaced; zero: never.
	Corrected time.Time

	Role  string
	Parts []Part
	// ToolCalls is JSON of what an assistant called, ToolCallID and ToolName say which call a tool's message answers.
	ToolCalls            []byte
	ToolCallID, ToolName string
}

// Part is a text, or an image.
type Part struct {
	Text  string
	Image *Image
}

// Image is an image file, kept once a subject however often it is shown.
type Image struct {
	// Digest is the SHA-256 of Data, and Size its bytes. Append sets both from Data; without Data, Digest names an image
	// that the subject has already.
	Digest [32]byte
	Size   int64
	// Data is empty in messages that Get gives: Image reads it.
	Data []byte
	// Detail is kept as it is given.
	Detail int
}
