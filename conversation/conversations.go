package conversation

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
)

// row is a row of conversations.
type conversationRow struct {
	id                                            []byte
	created, updated, last, bytes, class, keepFor int64
	state                                         State
	hold                                          bool
	expires                                       sql.NullInt64
	info                                          []byte
}

const conversationColumns = `id, created, updated, last, bytes, class, keep_for, state, hold <> 0, expires, info`

func (c *conversationRow) scan(scan func(...any) error) error {
	return scan(&c.id, &c.created, &c.updated, &c.last, &c.bytes, &c.class, &c.keepFor, &c.state, &c.hold, &c.expires,
		&c.info)
}

// conversation reads one of the subject's, which change is as for subject.
func (t *tx) conversation(ctx context.Context, k *known, id []byte, change bool) (c conversationRow, err error) {
	query := `SELECT ` + conversationColumns + ` FROM conversations WHERE id = ? AND subject = ?`
	if change {
		query += t.lock
	}
	err = c.scan(t.row(ctx, query, id, k.id).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	return c, err
}

// toRead is conversation for a call that reads content.
func (t *tx) conversationToRead(ctx context.Context, k *known, of Scope, id []byte) (c conversationRow, err error) {
	if _, err := t.subjectToRead(ctx, k, of); err != nil {
		return c, err
	}
	c, err = t.conversation(ctx, k, id, false)
	if err == nil && c.state == Restricted && of.Purpose != ForSubject {
		err = ErrRestricted
	}
	return c, err
}

// value is what a caller gets of a row.
func (c *conversationRow) value(k *known) (*Conversation, error) {
	out := &Conversation{
		ID: idText(c.id), Created: timeOf(c.created), Updated: timeOf(c.updated), Messages: uint64(c.last), Bytes: c.bytes,
		State: c.state, Hold: c.hold,
		Retention: Retention{Class(c.class), time.Duration(c.keepFor) * time.Microsecond}, Expires: timeOf(c.expires.Int64),
	}
	text, err := k.open(k.at(kindInfo, c.id, 0), c.info)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &out.Info); err != nil {
		return nil, fmt.Errorf("%w: it says nothing of a conversation", ErrCorrupt)
	}
	return out, nil
}

// expires is when a conversation's time is over that was last used at a time.
func (r Retention) expires(used int64) sql.NullInt64 {
	return sql.NullInt64{Int64: used + r.For.Microseconds(), Valid: r.For > 0}
}

// MaxKeep bounds Retention.For.
const MaxKeep = 100 * 366 * 24 * time.Hour

func (r Retention) check() error {
	if r.For < 0 || r.For > MaxKeep || r.For > 0 && r.For < time.Microsecond || (r.Class == KeepForever) != (r.For == 0) ||
		r.Class < KeepForever || r.Class > KeepDays {
		return fmt.Errorf("%w: a class of retention without the time for it, up to %v", ErrInvalid, MaxKeep)
	}
	return nil
}

// Create implements Store.
func (s *sqlStore) Create(ctx context.Context, of Scope, n New) (out *Conversation, err error) {
	n.Info.ForkedFrom, n.Info.ForkedAt = "", 0
	id := randomID()
	err = s.with(ctx, of, true, func(k *known) error {
		return s.data.update(ctx, func(t *tx, _ bool) error {
			if _, err := s.insert(ctx, t, k, id, n); err != nil {
				return err
			}
			c, err := t.conversation(ctx, k, id, false)
			if err != nil {
				return err
			}
			out, err = c.value(k)
			return err
		})
	})
	return out, err
}

// insert makes an empty conversation unless it has been made, and says whether it did.
func (s *sqlStore) insert(ctx context.Context, t *tx, k *known, id []byte, n New) (bool, error) {
	if err := n.Retention.check(); err != nil {
		return false, err
	}
	info, err := n.Info.encode()
	if err != nil {
		return false, err
	}
	r, err := t.subjectToUse(ctx, k)
	if err != nil {
		return false, err
	}
	if r.conversations >= s.o.Limits.Conversations {
		return false, &LimitError{"conversations of a subject", s.o.Limits.Conversations}
	}
	now := micros(s.o.Now())
	created := now
	if !n.Created.IsZero() {
		created = micros(n.Created)
	}
	made, err := t.exec(ctx, `INSERT INTO conversations
		(id, subject, tenant, created, updated, last, bytes, state, hold, class, keep_for, expires, info)
		SELECT ?, id, tenant, ?, ?, 0, 0, 0, 0, ?, ?, ?, ? FROM subjects WHERE id = ? ON CONFLICT DO NOTHING`,
		id, created, now, int64(n.Retention.Class), n.Retention.For.Microseconds(), n.Retention.expires(now),
		k.seal(k.at(kindInfo, id, 0), info), k.id)
	if err != nil || made == 0 {
		return false, err
	}
	_, err = t.exec(ctx, `UPDATE subjects SET conversations = conversations + 1 WHERE id = ?`, k.id)
	return true, err
}

// List implements Store.
func (s *sqlStore) List(ctx context.Context, of Scope, from string, limit int) (list []Conversation, next string,
	err error) {
	before, beforeID, err := parseListed(from)
	if err != nil {
		return nil, "", err
	}
	limit = page(limit)
	err = s.with(ctx, of, false, func(k *known) error {
		var rows []conversationRow
		err := s.data.view(ctx, func(t *tx) error {
			rows = nil
			if _, err := t.subjectToRead(ctx, k, of); err != nil {
				return err
			}
			return t.each(ctx, func(r *sql.Rows) error {
				var c conversationRow
				err := c.scan(r.Scan)
				rows = append(rows, c)
				return err
			}, `SELECT `+conversationColumns+` FROM conversations
				WHERE subject = ? AND (updated, id) < (?, ?) AND (state = 0 OR ? = 1) ORDER BY updated DESC, id DESC LIMIT ?`,
				k.id, before, beforeID, number(of.Purpose == ForSubject), limit)
		})
		if err != nil {
			return err
		}
		list, next = nil, ""
		for i := range rows {
			c, err := rows[i].value(k)
			if err != nil {
				return err
			}
			list = append(list, *c)
		}
		if len(rows) == limit {
			last := rows[limit-1]
			next = fmt.Sprintf("%d-%x", last.updated, last.id)
		}
		return nil
	})
	if errors.Is(err, ErrNotFound) { // a subject without conversations need not be there
		err = nil
	}
	return list, next, err
}

// parseListed reads where a list ended.
func parseListed(from string) (before int64, id []byte, err error) {
	if from == "" {
		return 1<<63 - 1, make([]byte, idBytes), nil
	}
	number, digits, _ := strings.Cut(from, "-")
	before, err = strconv.ParseInt(number, 10, 64)
	if err == nil {
		id, err = hex.DecodeString(digits)
	}
	if err != nil || len(id) != idBytes {
		return 0, nil, fmt.Errorf("%w: no place where a list ended", ErrInvalid)
	}
	return before, id, nil
}

// Update implements Store.
func (s *sqlStore) Update(ctx context.Context, of Scope, text string, c Change) (out *Conversation, err error) {
	id, err := parseID(text)
	if err != nil {
		return nil, err
	}
	err = s.with(ctx, of, false, func(k *known) error {
		return s.data.update(ctx, func(t *tx, _ bool) error {
			if _, err := t.subject(ctx, k, true); err != nil {
				return err
			}
			row, err := t.conversation(ctx, k, id, true)
			if err != nil {
				return err
			}
			if err := row.change(k, c); err != nil {
				return err
			}
			_, err = t.exec(ctx, `UPDATE conversations
				SET state = ?, hold = ?, class = ?, keep_for = ?, expires = ?, info = ? WHERE id = ?`,
				int64(row.state), number(row.hold), row.class, row.keepFor, row.expires, row.info, id)
			if err != nil {
				return err
			}
			out, err = row.value(k)
			return err
		})
	})
	return out, err
}

// change makes a row what it is after a change.
func (c *conversationRow) change(k *known, to Change) error {
	was, err := c.value(k)
	if err != nil {
		return err
	}
	if c.state = or(to.State, c.state); c.state != Active && c.state != Restricted {
		return fmt.Errorf("%w: a conversation is active or restricted", ErrInvalid)
	}
	c.hold = or(to.Hold, c.hold)
	if to.Retention != nil {
		if err := to.Retention.check(); err != nil {
			return err
		}
		c.class, c.keepFor = int64(to.Retention.Class), to.Retention.For.Microseconds()
		c.expires = to.Retention.expires(c.updated)
	}
	was.Info.Title = or(to.Title, was.Info.Title)
	if to.Metadata != nil {
		was.Info.Metadata = maps.Clone(to.Metadata)
	}
	text, err := was.Info.encode()
	if err != nil {
		return err
	}
	c.info = k.seal(k.at(kindInfo, c.id, 0), text)
	return nil
}

// Delete implements Store.
func (s *sqlStore) Delete(ctx context.Context, of Scope, text string) error {
	_, err := s.deleteIf(ctx, of, text, func(*conversationRow) bool { return true })
	return err
}

// deleteIf deletes a conversation unless a hold protects it, if due says so, and says whether it did.
func (s *sqlStore) deleteIf(ctx context.Context, of Scope, text string,
	due func(*conversationRow) bool) (did bool, err error) {
	id, err := parseID(text)
	if err != nil {
		return false, err
	}
	err = s.with(ctx, of, false, func(k *known) error {
		return s.data.update(ctx, func(t *tx, again bool) error {
			r, err := t.subject(ctx, k, true)
			if err != nil {
				return err
			}
			c, err := t.conversation(ctx, k, id, true)
			if errors.Is(err, ErrNotFound) && again && did {
				return nil // the answer to the commit was lost
			}
			if err != nil {
				return err
			}
			if did = due(&c); !did {
				return nil
			}
			if r.hold || c.hold {
				return ErrHeld
			}
			return t.delete(ctx, k, &c)
		})
	})
	return did && err == nil, err
}

func (t *tx) delete(ctx context.Context, k *known, c *conversationRow) error {
	for _, query := range []string{
		`DELETE FROM shown WHERE conversation = ?`,
		`DELETE FROM appends WHERE conversation = ?`,
		`DELETE FROM messages WHERE conversation = ?`,
		`DELETE FROM conversations WHERE id = ?`,
	} {
		if _, err := t.exec(ctx, query, c.id); err != nil {
			return err
		}
	}
	freed, err := t.dropImages(ctx, k)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, `UPDATE subjects SET conversations = conversations - 1, bytes = bytes - ? WHERE id = ?`,
		freed+c.bytes, k.id)
	return err
}

// dropImages deletes the subject's images that no message shows, and counts their bytes.
func (t *tx) dropImages(ctx context.Context, k *known) (freed int64, err error) {
	err = t.each(ctx, func(r *sql.Rows) error {
		var size int64
		err := r.Scan(&size)
		freed += size
		return err
	}, `DELETE FROM images WHERE subject = ? AND NOT EXISTS (SELECT 1 FROM shown WHERE shown.name = images.name)
		RETURNING size`, k.id)
	return freed, err
}

// Due implements Store.
func (s *sqlStore) Due(ctx context.Context, now time.Time, limit int) (list []Due, err error) {
	type row struct {
		name            nameRow
		id              []byte
		expires, cl, kp int64
	}
	var rows []row
	err = s.data.view(ctx, func(t *tx) error {
		rows = nil
		return t.each(ctx, func(r *sql.Rows) error {
			var w row
			err := r.Scan(&w.name.id, &w.name.owner, &w.name.profile, &w.id, &w.expires, &w.cl, &w.kp)
			rows = append(rows, w)
			return err
		}, `SELECT s.id, s.owner, s.profile, c.id, c.expires, c.class, c.keep_for
			FROM conversations c JOIN subjects s ON s.id = c.subject
			WHERE c.expires IS NOT NULL AND c.expires <= ? AND c.hold = 0 AND s.hold = 0 AND s.state < ?
			ORDER BY c.expires LIMIT ?`, micros(now), int64(erasing), page(limit))
	})
	if err != nil {
		return nil, err
	}
	for _, w := range rows {
		of, err := s.nameOf(ctx, w.name)
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		list = append(list, Due{
			Scope: of, ID: idText(w.id), Expires: timeOf(w.expires),
			Retention: Retention{Class(w.cl), time.Duration(w.kp) * time.Microsecond},
		})
	}
	return list, nil
}

// Expire implements Store.
func (s *sqlStore) Expire(ctx context.Context, of Scope, id string, now time.Time) (bool, error) {
	did, err := s.deleteIf(ctx, of, id, func(c *conversationRow) bool {
		return c.expires.Valid && c.expires.Int64 <= micros(now)
	})
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrHeld) {
		return false, nil
	}
	return did, err
}

// Retain implements Store.
func (s *sqlStore) Retain(ctx context.Context, tenant string, r Retention) (count int64, err error) {
	if err := r.check(); err != nil {
		return 0, err
	}
	keep := r.For.Microseconds()
	err = s.data.update(ctx, func(t *tx, _ bool) (err error) {
		count, err = t.exec(ctx, `UPDATE conversations
			SET keep_for = ?, expires = CASE WHEN CAST(? AS BIGINT) = 0 THEN NULL ELSE updated + ? END WHERE tenant = ? AND class = ?`,
			keep, keep, keep, s.hash.tenant(tenant), int64(r.Class))
		return err
	})
	return count, err
}
