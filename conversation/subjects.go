package conversation

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// sqlStore is a Store in an SQL database: data has what is sealed, keys what opens it.
type sqlStore struct {
	data *database
	keys *keyring
	hash hasher
	o    Options
}

// open brings both databases up to date. It takes them over, and closes them if it fails.
func open(ctx context.Context, data, keys *database, o Options) (_ Store, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("conversations: %w", err), data.close(), keys.close())
		}
	}()
	o = o.withDefaults()
	if o.Master == nil {
		return nil, errors.New("no master key")
	}
	if err := keys.migrate(ctx, "keys"); err != nil {
		return nil, err
	}
	if err := data.migrate(ctx, "data"); err != nil {
		return nil, err
	}
	s := &sqlStore{data: data, o: o, keys: &keyring{
		database: keys, master: o.Master, now: o.Now, most: o.CachedKeys, stays: o.KeyTime, known: map[string]*known{},
	}}
	if s.hash.key, err = s.keys.hashKey(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Close implements Store.
func (s *sqlStore) Close() error {
	s.keys.forgetAll()
	return errors.Join(s.data.close(), s.keys.close())
}

// Pseudonym implements Store.
func (s *sqlStore) Pseudonym(of Scope) string {
	return hex.EncodeToString(s.hash.sum("pseudonym", []byte(of.Tenant), []byte(of.Subject))[:16])
}

// erasing is the state of a subject that Erase has begun with: there is none of it any more.
const erasing State = 1 << 8

// errGone says that a subject whose key was in memory is no longer there, or not the same.
var errGone = fmt.Errorf("the subject is gone: %w", ErrNotFound)

// find gives a subject with its key, and makes it if there is none and it is to be made.
func (s *sqlStore) find(ctx context.Context, of Scope, create bool) (*known, error) {
	if err := of.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	owner := s.hash.owner(of)
	if k := s.keys.cached(owner); k != nil {
		return k, nil
	}
	for range maxFinds {
		id, state, err := s.subjectID(ctx, owner)
		if err == nil && state < erasing {
			k, err := s.keys.open(ctx, id, owner)
			if err == nil {
				s.keys.remember(k)
				return k, nil
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return nil, err
			}
		}
		switch {
		case err == nil: // erased, but for what is left of it
			if err := s.finish(ctx, id); err != nil {
				return nil, err
			}
			if !create {
				return nil, ErrNotFound
			}
		case !errors.Is(err, sql.ErrNoRows):
			return nil, err
		case !create:
			return nil, ErrNotFound
		}
		if err := s.createSubject(ctx, of, owner); err != nil {
			return nil, err
		}
	}
	return nil, errGone
}

// maxFinds bounds how often others may make and erase a subject while one call looks for it.
const maxFinds = 4

func (s *sqlStore) subjectID(ctx context.Context, owner []byte) (id []byte, state State, err error) {
	err = s.data.view(ctx, func(t *tx) error {
		return t.row(ctx, `SELECT id, state FROM subjects WHERE owner = ?`, owner).Scan(&id, &state)
	})
	return id, state, err
}

// createSubject makes a subject unless others have.
func (s *sqlStore) createSubject(ctx context.Context, of Scope, owner []byte) error {
	id := randomID()
	k, err := s.keys.create(ctx, id, owner)
	if err != nil {
		return err
	}
	name, err := json.Marshal(profile{of.Tenant, of.Subject})
	if err != nil {
		return err
	}
	sealed, made := k.seal(k.at(kindProfile, id, 0), name), int64(0)
	err = s.data.update(ctx, func(t *tx, again bool) (err error) {
		made, err = t.exec(ctx, `INSERT INTO subjects
			(id, owner, tenant, created, state, hold, objections, conversations, bytes, profile)
			VALUES (?, ?, ?, ?, 0, 0, 0, 0, 0, ?) ON CONFLICT DO NOTHING`,
			id, owner, s.hash.tenant(of.Tenant), micros(s.o.Now()), sealed)
		if err != nil || made > 0 || !again {
			return err
		}
		return t.row(ctx, `SELECT COUNT(*) FROM subjects WHERE id = ?`, id).Scan(&made)
	})
	if err == nil && made == 0 {
		return s.keys.erase(ctx, id)
	}
	return err
}

// profile is a subject's name, sealed.
type profile struct {
	Tenant  string `json:"tenant"`
	Subject string `json:"subject"`
}

// at is the place of one of the subject's records.
func (k *known) at(kind kind, at []byte, seq uint64) place { return place{kind, k.owner, at, seq} }

// with runs do with a subject, again where it went in between.
func (s *sqlStore) with(ctx context.Context, of Scope, create bool, do func(*known) error) error {
	for tries := 1; ; tries++ {
		k, err := s.find(ctx, of, create)
		if err != nil {
			return err
		}
		err = do(k)
		if !errors.Is(err, errGone) || tries == maxFinds {
			return err
		}
		s.keys.forget(k.owner)
	}
}

// row is a row of subjects.
type subjectRow struct {
	created, objections, conversations, bytes int64
	hold                                      bool
	state                                     State
}

// subject reads a subject, and with change keeps others from changing it until the transaction ends.
func (t *tx) subject(ctx context.Context, k *known, change bool) (r subjectRow, err error) {
	query := `SELECT created, objections, conversations, bytes, hold, state FROM subjects WHERE id = ?`
	if change {
		query += t.lock
	}
	var hold int64
	err = t.row(ctx, query, k.id).Scan(&r.created, &r.objections, &r.conversations, &r.bytes, &hold, &r.state)
	r.hold = hold != 0
	if errors.Is(err, sql.ErrNoRows) || err == nil && r.state >= erasing {
		return r, errGone
	}
	return r, err
}

// subjectToRead is subject for a call that reads content, subjectToUse for one that adds some.
func (t *tx) subjectToRead(ctx context.Context, k *known, of Scope) (subjectRow, error) {
	r, err := t.subject(ctx, k, false)
	if err == nil && r.state == Restricted && of.Purpose != ForSubject {
		err = ErrRestricted
	}
	return r, err
}

func (t *tx) subjectToUse(ctx context.Context, k *known) (subjectRow, error) {
	r, err := t.subject(ctx, k, true)
	if err == nil && r.state == Restricted {
		err = ErrRestricted
	}
	return r, err
}

// Subject implements Store.
func (s *sqlStore) Subject(ctx context.Context, of Scope) (out *Subject, err error) {
	err = s.with(ctx, of, false, func(k *known) error {
		return s.data.view(ctx, func(t *tx) error {
			r, err := t.subject(ctx, k, false)
			out = r.subject(of)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (r *subjectRow) subject(of Scope) *Subject {
	return &Subject{
		Scope: of, State: r.state, Hold: r.hold, Objections: Objection(r.objections), Created: timeOf(r.created),
		Conversations: r.conversations, Bytes: r.bytes,
	}
}

// SetSubject implements Store.
func (s *sqlStore) SetSubject(ctx context.Context, of Scope, c SubjectChange) (out *Subject, err error) {
	if c.State != nil && *c.State != Active && *c.State != Restricted {
		return nil, fmt.Errorf("%w: a subject is active or restricted", ErrInvalid)
	}
	err = s.with(ctx, of, true, func(k *known) error {
		return s.data.update(ctx, func(t *tx, _ bool) error {
			r, err := t.subject(ctx, k, true)
			if err != nil {
				return err
			}
			r.state, r.hold = or(c.State, r.state), or(c.Hold, r.hold)
			r.objections = int64(or(c.Objections, Objection(r.objections)))
			out = r.subject(of)
			_, err = t.exec(ctx, `UPDATE subjects SET state = ?, hold = ?, objections = ? WHERE id = ?`,
				int64(r.state), number(r.hold), r.objections, k.id)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// or is the value changed to, or the one there was.
func or[T any](changed *T, was T) T {
	if changed != nil {
		return *changed
	}
	return was
}

func number(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// Subjects implements Store.
func (s *sqlStore) Subjects(ctx context.Context, tenant, from string, limit int) (list []Subject, next string,
	err error) {
	after, err := hex.DecodeString(from)
	if err != nil || len(after) != 0 && len(after) != idBytes {
		return nil, "", fmt.Errorf("%w: no place where a list ended", ErrInvalid)
	}
	limit = page(limit)
	var rows []subjectRow
	var names []nameRow
	err = s.data.view(ctx, func(t *tx) error {
		rows, names = nil, nil
		return t.each(ctx, func(r *sql.Rows) error {
			var row subjectRow
			var n nameRow
			err := r.Scan(&n.id, &n.owner, &n.profile, &row.created, &row.objections, &row.conversations, &row.bytes, &row.hold,
				&row.state)
			rows, names = append(rows, row), append(names, n)
			return err
		}, `SELECT id, owner, profile, created, objections, conversations, bytes, hold <> 0, state FROM subjects
			WHERE tenant = ? AND id > ? AND state < ? ORDER BY id LIMIT ?`,
			s.hash.tenant(tenant), after, int64(erasing), limit)
	})
	if err != nil {
		return nil, "", err
	}
	for i := range rows {
		of, err := s.nameOf(ctx, names[i])
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, "", err
		}
		list = append(list, *rows[i].subject(of))
	}
	if len(rows) == limit {
		next = hex.EncodeToString(names[limit-1].id)
	}
	return list, next, nil
}

// nameRow is where a subject's name is.
type nameRow struct{ id, owner, profile []byte }

// nameOf opens a subject's name. ErrNotFound: its key is gone.
func (s *sqlStore) nameOf(ctx context.Context, n nameRow) (of Scope, err error) {
	k := s.keys.cached(n.owner)
	if k == nil {
		if k, err = s.keys.open(ctx, n.id, n.owner); errors.Is(err, sql.ErrNoRows) {
			return of, ErrNotFound
		} else if err != nil {
			return of, err
		}
	}
	text, err := k.open(k.at(kindProfile, n.id, 0), n.profile)
	if err != nil {
		return of, err
	}
	var p profile
	if err := json.Unmarshal(text, &p); err != nil {
		return of, fmt.Errorf("%w: it is no subject's name", ErrCorrupt)
	}
	return Scope{Tenant: p.Tenant, Subject: p.Subject, Purpose: ForOperator}, nil
}

// page is how many entries of a list are given.
func page(limit int) int {
	if limit <= 0 || limit > MaxPage {
		return MaxPage
	}
	return limit
}

// Erase implements Store.
func (s *sqlStore) Erase(ctx context.Context, of Scope) (e Erased, err error) {
	if err := of.check(); err != nil {
		return e, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	owner := s.hash.owner(of)
	id, _, err := s.subjectID(ctx, owner)
	if errors.Is(err, sql.ErrNoRows) {
		return e, ErrNotFound
	} else if err != nil {
		return e, err
	}
	err = s.data.update(ctx, func(t *tx, _ bool) error {
		var held int64
		err := t.row(ctx, `SELECT COALESCE(MAX(hold), 0) FROM
			(SELECT hold FROM subjects WHERE id = ? UNION ALL SELECT hold FROM conversations WHERE subject = ?) holds`,
			id, id).Scan(&held)
		if err != nil {
			return err
		}
		if held != 0 {
			return ErrHeld
		}
		_, err = t.exec(ctx, `UPDATE subjects SET state = ? WHERE id = ?`, int64(erasing), id)
		return err
	})
	if err != nil {
		return e, err
	}
	s.keys.forget(owner)
	if err := s.keys.erase(ctx, id); err != nil {
		return e, err
	}
	return s.purge(ctx, id)
}

// finish ends an erasure that was interrupted.
func (s *sqlStore) finish(ctx context.Context, id []byte) error {
	if err := s.keys.erase(ctx, id); err != nil {
		return err
	}
	_, err := s.purge(ctx, id)
	return err
}

// purge deletes all rows of a subject whose key is gone.
func (s *sqlStore) purge(ctx context.Context, id []byte) (e Erased, err error) {
	err = s.data.update(ctx, func(t *tx, _ bool) error {
		for _, d := range []struct {
			count *int64
			query string
		}{
			{nil, `DELETE FROM shown WHERE conversation IN (SELECT id FROM conversations WHERE subject = ?)`},
			{nil, `DELETE FROM appends WHERE conversation IN (SELECT id FROM conversations WHERE subject = ?)`},
			{&e.Messages, `DELETE FROM messages WHERE conversation IN (SELECT id FROM conversations WHERE subject = ?)`},
			{&e.Images, `DELETE FROM images WHERE subject = ?`},
			{&e.Conversations, `DELETE FROM conversations WHERE subject = ?`},
			{nil, `DELETE FROM subjects WHERE id = ?`},
		} {
			n, err := t.exec(ctx, d.query, id)
			if err != nil {
				return err
			}
			if d.count != nil {
				*d.count = n
			}
		}
		return nil
	})
	return e, err
}

// Sweep implements Store.
func (s *sqlStore) Sweep(ctx context.Context) (count int64, err error) {
	for after := []byte{}; ; {
		var ids [][]byte
		err := s.data.view(ctx, func(t *tx) error {
			ids = nil
			return t.each(ctx, func(r *sql.Rows) error {
				var id []byte
				err := r.Scan(&id)
				ids = append(ids, id)
				return err
			}, `SELECT id FROM subjects WHERE id > ? ORDER BY id LIMIT ?`, after, MaxPage)
		})
		if err != nil || len(ids) == 0 {
			return count, err
		}
		after = ids[len(ids)-1]
		for _, id := range ids {
			gone, err := s.keyGone(ctx, id)
			if err == nil && gone {
				err = s.finish(ctx, id)
				count++
			}
			if err != nil {
				return count, err
			}
		}
	}
}

// keyGone says whether a subject has no key, or Erase began with it.
func (s *sqlStore) keyGone(ctx context.Context, id []byte) (bool, error) {
	var state State
	var owner []byte
	err := s.data.view(ctx, func(t *tx) error {
		return t.row(ctx, `SELECT state, owner FROM subjects WHERE id = ?`, id).Scan(&state, &owner)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if state >= erasing {
		s.keys.forget(owner)
		return true, nil
	}
	var keys int64
	err = s.keys.view(ctx, func(t *tx) error {
		return t.row(ctx, `SELECT COUNT(*) FROM subject_keys WHERE subject = ?`, id).Scan(&keys)
	})
	return keys == 0, err
}

// Rewrap implements Store.
func (s *sqlStore) Rewrap(ctx context.Context) (int64, error) {
	n, err := s.keys.rewrapHashKey(ctx)
	if err != nil {
		return n, err
	}
	more, err := s.keys.rewrap(ctx, func(id []byte) (owner []byte, err error) {
		err = s.data.view(ctx, func(t *tx) error {
			return t.row(ctx, `SELECT owner FROM subjects WHERE id = ?`, id).Scan(&owner)
		})
		return owner, err
	})
	return n + more, err
}

var _ Store = (*sqlStore)(nil)
