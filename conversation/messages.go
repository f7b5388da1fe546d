package conversation

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
)

// encoded is a message that is about to be kept.
type encoded struct {
	body            []byte
	images          []*Image
	time, corrected int64
}

// encode checks a message and writes it, with the digests and sizes of images that come with their bytes. Of others, k
// has the size.
func (s *sqlStore) encode(ctx context.Context, k *known, m Message) (e encoded, err error) {
	if err := m.check(); err != nil {
		return e, err
	}
	e.time, e.corrected = micros(m.Time), microsOrZero(m.Corrected)
	parts := make([]Part, len(m.Parts))
	for i, p := range m.Parts {
		if parts[i] = p; p.Image == nil {
			continue
		}
		img := *p.Image
		if len(img.Data) > 0 {
			img.Digest, img.Size = sha256.Sum256(img.Data), int64(len(img.Data))
		}
		if len(img.Data) == 0 {
			if img.Size, err = s.imageSize(ctx, k, img.Digest); err != nil {
				return e, err
			}
		}
		if img.Size > s.o.Limits.ImageBytes {
			return e, &LimitError{"bytes of an image", s.o.Limits.ImageBytes}
		}
		parts[i].Image = &img
		e.images = append(e.images, &img)
	}
	m.Parts = parts
	if e.body, err = json.Marshal(m.body()); err == nil && int64(len(e.body)) > s.o.Limits.MessageBytes {
		err = &LimitError{"bytes of a message", s.o.Limits.MessageBytes}
	}
	return e, err
}

// appending is an append on its way.
type appending struct {
	*sqlStore
	of       Scope
	id       []byte
	messages []encoded
	after    *uint64
	key      string
	asOf     bool
	digest   []byte // of what is appended
}

// Append implements Store.
func (s *sqlStore) Append(ctx context.Context, of Scope, text string, a Appended) (p Place, err error) {
	id, err := parseID(text)
	if err != nil {
		return p, err
	}
	if len(a.Messages) == 0 || len(a.Messages) > MaxAppend || len(a.Key) > MaxNameBytes {
		return p, fmt.Errorf("%w: %d messages and a key of %d bytes; want 1 to %d and at most %d", ErrInvalid,
			len(a.Messages), len(a.Key), MaxAppend, MaxNameBytes)
	}
	ap := &appending{sqlStore: s, of: of, id: id, after: a.After, key: a.Key, asOf: a.AsOf}
	if ap.key == "" && s.data.uncertain {
		ap.key = "\x00" + rand.Text() // no caller's: those are text
	}
	err = s.with(ctx, of, false, func(k *known) error {
		if err := ap.encodeAll(ctx, k, a.Messages); err != nil {
			return err
		}
		ap.digest = ap.sum(k)
		return s.data.update(ctx, func(t *tx, _ bool) error {
			p, err = ap.in(ctx, t, k)
			return err
		})
	})
	return p, err
}

func (a *appending) encodeAll(ctx context.Context, k *known, list []Message) error {
	a.messages = nil
	for _, m := range list {
		e, err := a.encode(ctx, k, m)
		if err != nil {
			return err
		}
		a.messages = append(a.messages, e)
	}
	return nil
}

// imageSize is the size of an image that the subject has.
func (s *sqlStore) imageSize(ctx context.Context, k *known, digest [32]byte) (size int64, err error) {
	err = s.data.view(ctx, func(t *tx) error {
		return t.row(ctx, `SELECT size FROM images WHERE name = ?`, s.hash.image(k.id, digest)).Scan(&size)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return 0, errNoImage
	}
	return size, err
}

var errNoImage = fmt.Errorf("%w: an image that came as a digest is not kept for the subject", ErrInvalid)

// sum stands for all that is appended, and where.
func (a *appending) sum(k *known) []byte {
	parts := [][]byte{k.id, a.id}
	for _, e := range a.messages {
		parts = append(parts, e.body)
	}
	return a.hash.sum("messages", parts...)
}

func (a *appending) in(ctx context.Context, t *tx, k *known) (p Place, err error) {
	r, err := t.subjectToUse(ctx, k)
	if err != nil {
		return p, err
	}
	name := a.hash.appendKey(k.id, a.key)
	if a.key != "" {
		p, digest, err := t.located(ctx, name)
		if err == nil {
			if !hmac.Equal(digest, a.digest) {
				return p, ErrKeyReused
			}
			p.Again = true
			return p, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return p, err
		}
	}
	c, err := t.conversation(ctx, k, a.id, true)
	if err != nil {
		return p, err
	}
	if err := a.allowed(&c); err != nil {
		return p, err
	}
	size, total, err := a.insertAll(ctx, t, k, uint64(c.last))
	if err != nil {
		return p, err
	}
	if r.bytes+total > a.o.Limits.SubjectBytes {
		return p, &LimitError{"bytes of a subject", a.o.Limits.SubjectBytes}
	}
	p = Place{Conversation: idText(a.id), First: uint64(c.last) + 1, Last: uint64(c.last) + uint64(len(a.messages))}
	return p, a.count(ctx, t, k, &c, grown{size, total, name})
}

// grown is what an append adds: bytes of the conversation's messages, of the subject with new images, and the key's
// name.
type grown struct {
	size, total int64
	name        []byte
}

// count has the conversation and the subject know of what was added, and remembers the key.
func (a *appending) count(ctx context.Context, t *tx, k *known, c *conversationRow, g grown) error {
	last := c.last + int64(len(a.messages))
	now := max(micros(a.o.Now()), c.updated)
	expires := sql.NullInt64{Int64: now + c.keepFor, Valid: c.keepFor > 0}
	_, err := t.exec(ctx, `UPDATE conversations SET last = ?, bytes = bytes + ?, updated = ?, expires = ? WHERE id = ?`,
		last, g.size, now, expires, a.id)
	if err != nil {
		return err
	}
	if _, err = t.exec(ctx, `UPDATE subjects SET bytes = bytes + ? WHERE id = ?`, g.total, k.id); err != nil || a.key == "" {
		return err
	}
	_, err = t.exec(ctx, `INSERT INTO appends (name, conversation, first, last, digest) VALUES (?, ?, ?, ?, ?)`,
		g.name, a.id, c.last+1, last, a.digest)
	return err
}

// allowed says why nothing may be added to a conversation.
func (a *appending) allowed(c *conversationRow) error {
	switch {
	case c.state == Restricted:
		return ErrRestricted
	case a.after != nil && *a.after != uint64(c.last):
		return ErrConflict
	case c.last+int64(len(a.messages)) > a.o.Limits.Messages:
		return &LimitError{"messages of a conversation", a.o.Limits.Messages}
	}
	return nil
}

// insertAll adds the messages after the one of the number given.
func (a *appending) insertAll(ctx context.Context, t *tx, k *known, after uint64) (size, total int64, err error) {
	now := micros(a.o.Now())
	for i, e := range a.messages {
		if !a.asOf {
			e.time, e.corrected = now, 0
		}
		seq := after + uint64(i) + 1
		grown, err := a.show(ctx, t, k, a.id, numbered{e, seq})
		if err != nil {
			return 0, 0, err
		}
		_, err = t.exec(ctx, `INSERT INTO messages (conversation, seq, created, corrected, size, body) VALUES (?, ?, ?, ?, ?, ?)`,
			a.id, int64(seq), e.time, e.corrected, len(e.body), k.seal(k.at(kindMessage, a.id, seq), e.body))
		if err != nil {
			return 0, 0, err
		}
		size += int64(len(e.body))
		total += int64(len(e.body)) + grown
	}
	return size, total, nil
}

// numbered is a message with its place.
type numbered struct {
	encoded
	seq uint64
}

// show notes that a message shows images, keeps those that the subject does not have, and counts their bytes.
func (s *sqlStore) show(ctx context.Context, t *tx, k *known, conv []byte, m numbered) (grown int64, err error) {
	for _, img := range m.images {
		name := s.hash.image(k.id, img.Digest)
		err := t.row(ctx, `SELECT 1 FROM images WHERE name = ?`, name).Scan(new(int))
		if errors.Is(err, sql.ErrNoRows) {
			if len(img.Data) == 0 {
				return 0, errNoImage
			}
			_, err = t.exec(ctx, `INSERT INTO images (name, subject, size, body) VALUES (?, ?, ?, ?)`,
				name, k.id, img.Size, k.seal(k.at(kindImage, name, 0), img.Data))
			grown += img.Size
		}
		if err != nil {
			return 0, err
		}
		_, err = t.exec(ctx, `INSERT INTO shown (name, conversation, seq) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`,
			name, conv, int64(m.seq))
		if err != nil {
			return 0, err
		}
	}
	return grown, nil
}

// located is where an append of a key's name lies, and the sum of it.
func (t *tx) located(ctx context.Context, name []byte) (p Place, digest []byte, err error) {
	var id []byte
	err = t.row(ctx, `SELECT conversation, first, last, digest FROM appends WHERE name = ?`, name).
		Scan(&id, &p.First, &p.Last, &digest)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil, ErrNotFound
	}
	p.Conversation = idText(id)
	return p, digest, err
}

// Locate implements Store.
func (s *sqlStore) Locate(ctx context.Context, of Scope, key string) (p Place, err error) {
	if key == "" || len(key) > MaxNameBytes {
		return p, ErrNotFound
	}
	err = s.with(ctx, of, false, func(k *known) error {
		return s.data.view(ctx, func(t *tx) error {
			if _, err := t.subjectToRead(ctx, k, of); err != nil {
				return err
			}
			p, _, err = t.located(ctx, s.hash.appendKey(k.id, key))
			p.Again = err == nil
			return err
		})
	})
	return p, err
}

// errPageEnd ends the reading of rows.
var errPageEnd = errors.New("the page is full")

// messageRow is a row of messages.
type messageRow struct {
	seq, created, corrected int64
	body                    []byte
}

// messages reads up to limit messages after a number, a page at most.
func (t *tx) messages(ctx context.Context, id []byte, after uint64, limit int) (rows []messageRow, err error) {
	if after >= 1<<63 {
		return nil, nil
	}
	size := 0
	err = t.each(ctx, func(r *sql.Rows) error {
		var m messageRow
		if err := r.Scan(&m.seq, &m.created, &m.corrected, &m.body); err != nil {
			return err
		}
		if size += len(m.body); size > MaxPageBytes && len(rows) > 0 {
			return errPageEnd
		}
		rows = append(rows, m)
		return nil
	}, `SELECT seq, created, corrected, body FROM messages WHERE conversation = ? AND seq > ? ORDER BY seq LIMIT ?`,
		id, int64(after), limit)
	if errors.Is(err, errPageEnd) {
		err = nil
	}
	return rows, err
}

// Get implements Store.
func (s *sqlStore) Get(ctx context.Context, of Scope, text string, after uint64, limit int) (c *Conversation,
	list []Message, err error) {
	id, err := parseID(text)
	if err != nil {
		return nil, nil, err
	}
	err = s.with(ctx, of, false, func(k *known) error {
		var row conversationRow
		var rows []messageRow
		err := s.data.view(ctx, func(t *tx) (err error) {
			if row, err = t.conversationToRead(ctx, k, of, id); err == nil {
				rows, err = t.messages(ctx, id, after, page(limit))
			}
			return err
		})
		if err != nil {
			return err
		}
		if c, err = row.value(k); err != nil {
			return err
		}
		list = make([]Message, len(rows))
		for i, r := range rows {
			if list[i], err = r.value(k, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return c, list, nil
}

// value opens a message.
func (r *messageRow) value(k *known, conv []byte) (m Message, err error) {
	m.Seq, m.Time, m.Corrected = uint64(r.seq), timeOf(r.created), timeOf(r.corrected)
	text, err := k.open(k.at(kindMessage, conv, m.Seq), r.body)
	if err == nil {
		err = decodeMessage(text, &m)
	}
	return m, err
}

// Image implements Store.
func (s *sqlStore) Image(ctx context.Context, of Scope, digest [32]byte) (data []byte, err error) {
	err = s.with(ctx, of, false, func(k *known) error {
		name := s.hash.image(k.id, digest)
		var sealed []byte
		err := s.data.view(ctx, func(t *tx) error {
			if _, err := t.subjectToRead(ctx, k, of); err != nil {
				return err
			}
			// One that restricted conversations alone show is restricted as they are.
			return t.row(ctx, `SELECT body FROM images WHERE name = ? AND EXISTS (SELECT 1 FROM shown
				JOIN conversations c ON c.id = shown.conversation WHERE shown.name = images.name AND (c.state = 0 OR ? = 1))`,
				name, number(of.Purpose == ForSubject)).Scan(&sealed)
		})
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		if err == nil {
			data, err = k.open(k.at(kindImage, name, 0), sealed)
		}
		return err
	})
	return data, err
}
