package conversation

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// Correct implements Store.
func (s *sqlStore) Correct(ctx context.Context, of Scope, text string, m Message) error {
	id, err := parseID(text)
	if err != nil {
		return err
	}
	if m.Seq == 0 || m.Seq >= 1<<63 {
		return ErrNotFound
	}
	return s.with(ctx, of, false, func(k *known) error {
		e, err := s.encode(ctx, k, m)
		if err != nil {
			return err
		}
		return s.data.update(ctx, func(t *tx, _ bool) error {
			r, err := t.subject(ctx, k, true)
			if err != nil {
				return err
			}
			c, err := t.conversation(ctx, k, id, true)
			if err != nil {
				return err
			}
			if of.Purpose != ForSubject && (r.state == Restricted || c.state == Restricted) {
				return ErrRestricted
			}
			if r.hold || c.hold {
				return ErrHeld
			}
			total, err := s.replace(ctx, t, k, id, numbered{e, m.Seq})
			if err == nil && r.bytes+total > s.o.Limits.SubjectBytes {
				err = &LimitError{"bytes of a subject", s.o.Limits.SubjectBytes}
			}
			return err
		})
	})
}

// replace puts a message in another's place, and says how many more bytes the subject has then.
func (s *sqlStore) replace(ctx context.Context, t *tx, k *known, id []byte, m numbered) (more int64, err error) {
	seq := int64(m.seq)
	var was int64
	err = t.row(ctx, `SELECT size FROM messages WHERE conversation = ? AND seq = ?`, id, seq).Scan(&was)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, ErrNotFound
	} else if err != nil {
		return 0, err
	}
	grown, err := s.showInstead(ctx, t, k, id, m)
	if err != nil {
		return 0, err
	}
	size := int64(len(m.body)) - was
	more = size + grown
	for _, step := range []struct {
		query string
		args  []any
	}{
		{`UPDATE messages SET corrected = ?, size = ?, body = ? WHERE conversation = ? AND seq = ?`,
			[]any{micros(s.o.Now()), len(m.body), k.seal(k.at(kindMessage, id, m.seq), m.body), id, seq}},
		{`UPDATE conversations SET bytes = bytes + ? WHERE id = ?`, []any{size, id}},
		{`UPDATE subjects SET bytes = bytes + ? WHERE id = ?`, []any{more, k.id}},
	} {
		if _, err := t.exec(ctx, step.query, step.args...); err != nil {
			return 0, err
		}
	}
	return more, nil
}

// showInstead has a message show other images than before, and says how many more bytes of images there are.
func (s *sqlStore) showInstead(ctx context.Context, t *tx, k *known, id []byte, m numbered) (more int64, err error) {
	if _, err := t.exec(ctx, `DELETE FROM shown WHERE conversation = ? AND seq = ?`, id, int64(m.seq)); err != nil {
		return 0, err
	}
	grown, err := s.show(ctx, t, k, id, m)
	if err != nil {
		return 0, err
	}
	freed, err := t.dropImages(ctx, k)
	return grown - freed, err
}

// Fork implements Store.
func (s *sqlStore) Fork(ctx context.Context, of Scope, text string, upTo uint64, n New) (out *Conversation, err error) {
	from, err := parseID(text)
	if err != nil {
		return nil, err
	}
	f := forking{from: from, to: randomID(), upTo: upTo, n: n}
	err = s.with(ctx, of, false, func(k *known) error {
		return s.data.update(ctx, func(t *tx, _ bool) (err error) {
			out, err = s.fork(ctx, t, k, f)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// forking is a conversation on its way to another.
type forking struct {
	from, to []byte
	upTo     uint64
	n        New
}

func (s *sqlStore) fork(ctx context.Context, t *tx, k *known, f forking) (*Conversation, error) {
	r, err := t.subjectToUse(ctx, k)
	if err != nil {
		return nil, err
	}
	c, err := t.conversation(ctx, k, f.from, true)
	if err != nil {
		return nil, err
	}
	if c.state == Restricted {
		return nil, ErrRestricted
	}
	if f.upTo == 0 {
		f.upTo = uint64(c.last)
	}
	if f.upTo > uint64(c.last) {
		return nil, fmt.Errorf("%w: it has %d messages, not %d", ErrInvalid, c.last, f.upTo)
	}
	f.n.Info.ForkedFrom, f.n.Info.ForkedAt = idText(f.from), f.upTo
	made, err := s.insert(ctx, t, k, f.to, f.n)
	if err != nil {
		return nil, err
	}
	if made {
		size := int64(0) // before the copies, which keep others from writing
		err := t.row(ctx, `SELECT CAST(COALESCE(SUM(size), 0) AS BIGINT) FROM messages WHERE conversation = ? AND seq <= ?`,
			f.from, int64(f.upTo)).Scan(&size)
		if err != nil {
			return nil, err
		}
		if r.bytes+size > s.o.Limits.SubjectBytes {
			return nil, &LimitError{"bytes of a subject", s.o.Limits.SubjectBytes}
		}
		if err := t.copyMessages(ctx, k, f, size); err != nil {
			return nil, err
		}
	}
	if c, err = t.conversation(ctx, k, f.to, false); err != nil {
		return nil, err
	}
	return c.value(k)
}

// copyMessages copies messages of that size, sealed anew for their place. Images are shown by both.
func (t *tx) copyMessages(ctx context.Context, k *known, f forking, size int64) error {
	for after := uint64(0); after < f.upTo; {
		rows, err := t.messages(ctx, f.from, after, int(min(f.upTo-after, MaxPage)))
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			return fmt.Errorf("%w: messages are missing", ErrCorrupt)
		}
		for _, r := range rows {
			after = uint64(r.seq)
			text, err := k.open(k.at(kindMessage, f.from, after), r.body)
			if err != nil {
				return err
			}
			_, err = t.exec(ctx, `INSERT INTO messages (conversation, seq, created, corrected, size, body)
				VALUES (?, ?, ?, ?, ?, ?)`,
				f.to, r.seq, r.created, r.corrected, len(text), k.seal(k.at(kindMessage, f.to, after), text))
			if err != nil {
				return err
			}
		}
	}
	_, err := t.exec(ctx, `INSERT INTO shown (name, conversation, seq)
		SELECT name, CAST(? AS `+t.bytes+`), seq FROM shown WHERE conversation = ? AND seq <= ?`, f.to, f.from, int64(f.upTo))
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, `UPDATE conversations SET last = ?, bytes = ? WHERE id = ?`, int64(f.upTo), size, f.to)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, `UPDATE subjects SET bytes = bytes + ? WHERE id = ?`, size, k.id)
	return err
}
