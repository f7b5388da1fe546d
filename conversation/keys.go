package conversation

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"
)

// keyring has the keys of subjects: wrapped in a database of their own, and some unwrapped in memory for a while.
type keyring struct {
	*database
	master Master
	now    func() time.Time
	most   int
	stays  time.Duration

	mu    sync.Mutex
	known map[string]*known // by owner
}

// known is a subject whose key is unwrapped.
type known struct {
	id, owner []byte
	sealer
	until time.Time
}

// What wrapped keys are bound to.
var hashKeyPlace = []byte("mmserve hash key")

func subjectKeyPlace(id, owner []byte) []byte {
	return append(append([]byte("mmserve subject key"), id...), owner...)
}

// hashKey gives the key of keyed hashes, which the first store that opens the database draws.
func (k *keyring) hashKey(ctx context.Context) ([]byte, error) {
	w, err := k.wrappedHashKey(ctx)
	if errors.Is(err, sql.ErrNoRows) {
		if err := k.createHashKey(ctx); err != nil {
			return nil, err
		}
		w, err = k.wrappedHashKey(ctx)
	}
	if err != nil {
		return nil, err
	}
	key, err := k.master.Unwrap(ctx, w.with, w.wrapped, hashKeyPlace)
	if err != nil {
		return nil, fmt.Errorf("the store's keys do not open: %w", err)
	}
	return key, nil
}

func (k *keyring) wrappedHashKey(ctx context.Context) (w wrappedKey, err error) {
	err = k.view(ctx, func(t *tx) error {
		return t.row(ctx, `SELECT master, hash_key FROM store WHERE id = 1`).Scan(&w.with, &w.wrapped)
	})
	return w, err
}

func (k *keyring) createHashKey(ctx context.Context) error {
	key := make([]byte, MasterKeyBytes)
	_, _ = rand.Read(key) // does not fail
	with, wrapped, err := k.master.Wrap(ctx, key, hashKeyPlace)
	if err != nil {
		return err
	}
	return k.update(ctx, func(t *tx, _ bool) error {
		_, err := t.exec(ctx, `INSERT INTO store (id, master, hash_key, created) VALUES (1, ?, ?, ?) ON CONFLICT DO NOTHING`,
			string(with), wrapped, micros(k.now()))
		return err
	})
}

// cached is a subject whose key is in memory; nil if it is not.
func (k *keyring) cached(owner []byte) *known {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.known[string(owner)]
	if s != nil && k.now().After(s.until) {
		k.drop(s)
		return nil
	}
	return s
}

// forget has the next call for a subject look for its key again.
func (k *keyring) forget(owner []byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if s := k.known[string(owner)]; s != nil {
		k.drop(s)
	}
}

func (k *keyring) forgetAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.known)
}

// drop takes s out; k.mu is held. Calls that have it go on: what it seals is sealed as before.
func (k *keyring) drop(s *known) {
	delete(k.known, string(s.owner))
}

// remember keeps a subject's key, in place of any other where there are enough.
func (k *keyring) remember(s *known) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, other := range k.known {
		if len(k.known) < k.most {
			break
		}
		k.drop(other)
	}
	s.until = k.now().Add(k.stays)
	k.known[string(s.owner)] = s
}

// open unwraps a subject's key. sql.ErrNoRows: there is none.
func (k *keyring) open(ctx context.Context, id, owner []byte) (*known, error) {
	var with KeyID
	var wrapped []byte
	err := k.view(ctx, func(t *tx) error {
		return t.row(ctx, `SELECT master, wrapped FROM subject_keys WHERE subject = ?`, id).Scan(&with, &wrapped)
	})
	if err != nil {
		return nil, err
	}
	key, err := k.master.Unwrap(ctx, with, wrapped, subjectKeyPlace(id, owner))
	if err != nil {
		return nil, err
	}
	return newKnown(id, owner, key)
}

// newKnown takes the key over.
func newKnown(id, owner, key []byte) (*known, error) {
	defer clear(key)
	aead, err := newAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("a subject's key: %w", ErrCorrupt)
	}
	return &known{id: id, owner: owner, sealer: sealer{aead}}, nil
}

// create draws a subject's key and keeps it, wrapped.
func (k *keyring) create(ctx context.Context, id, owner []byte) (*known, error) {
	key := make([]byte, MasterKeyBytes)
	_, _ = rand.Read(key) // does not fail
	with, wrapped, err := k.master.Wrap(ctx, key, subjectKeyPlace(id, owner))
	if err != nil {
		return nil, err
	}
	err = k.update(ctx, func(t *tx, _ bool) error {
		_, err := t.exec(ctx, `INSERT INTO subject_keys (subject, master, wrapped, created) VALUES (?, ?, ?, ?)
			ON CONFLICT DO NOTHING`, id, string(with), wrapped, micros(k.now()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return newKnown(id, owner, key)
}

// erase lets go of a subject's key for good.
func (k *keyring) erase(ctx context.Context, id []byte) error {
	return k.update(ctx, func(t *tx, _ bool) error {
		_, err := t.exec(ctx, `DELETE FROM subject_keys WHERE subject = ?`, id)
		return err
	})
}

// wrappedKey is a row of subject_keys, or of store where id is nil.
type wrappedKey struct {
	id      []byte
	with    KeyID
	wrapped []byte
}

// rewrapPage is how many keys are wrapped anew in one transaction, so that others get their turn.
const rewrapPage = 100

// rewrap wraps anew the keys of subjects that the current master key does not wrap. ownerOf tells a subject's owner; of
// one that there is none of, the key is left.
func (k *keyring) rewrap(ctx context.Context, ownerOf func(id []byte) ([]byte, error)) (count int64, err error) {
	current := string(k.master.Current())
	for after := []byte{}; ; {
		var page []wrappedKey
		err := k.view(ctx, func(t *tx) error {
			page = nil
			return t.each(ctx, func(r *sql.Rows) error {
				var w wrappedKey
				defer func() { page = append(page, w) }()
				return r.Scan(&w.id, &w.with, &w.wrapped)
			}, `SELECT subject, master, wrapped FROM subject_keys WHERE master <> ? AND subject > ? ORDER BY subject LIMIT ?`,
				current, after, rewrapPage)
		})
		if err != nil || len(page) == 0 {
			return count, err
		}
		after = page[len(page)-1].id
		n, err := k.rewrapKeys(ctx, page, ownerOf)
		if count += n; err != nil {
			return count, err
		}
	}
}

func (k *keyring) rewrapKeys(ctx context.Context, page []wrappedKey,
	ownerOf func([]byte) ([]byte, error)) (count int64, err error) {
	for _, w := range page {
		owner, err := ownerOf(w.id)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		} else if err != nil {
			return count, err
		}
		n, err := k.rewrapOne(ctx, w, subjectKeyPlace(w.id, owner))
		if count += n; err != nil {
			return count, err
		}
	}
	return count, nil
}

// rewrapOne wraps a key anew, unless it was erased or wrapped anew in between.
func (k *keyring) rewrapOne(ctx context.Context, w wrappedKey, bound []byte) (count int64, err error) {
	key, err := k.master.Unwrap(ctx, w.with, w.wrapped, bound)
	if err != nil {
		return 0, err
	}
	defer clear(key)
	with, wrapped, err := k.master.Wrap(ctx, key, bound)
	if err != nil {
		return 0, err
	}
	err = k.update(ctx, func(t *tx, _ bool) (err error) {
		if w.id == nil {
			count, err = t.exec(ctx, `UPDATE store SET master = ?, hash_key = ? WHERE hash_key = ?`, string(with), wrapped, w.wrapped)
		} else {
			count, err = t.exec(ctx, `UPDATE subject_keys SET master = ?, wrapped = ? WHERE subject = ? AND wrapped = ?`,
				string(with), wrapped, w.id, w.wrapped)
		}
		return err
	})
	return count, err
}

// rewrapHashKey does the same for the key of keyed hashes.
func (k *keyring) rewrapHashKey(ctx context.Context) (int64, error) {
	w, err := k.wrappedHashKey(ctx)
	if err != nil || w.with == k.master.Current() {
		return 0, err
	}
	return k.rewrapOne(ctx, w, hashKeyPlace)
}

func micros(t time.Time) int64 { return t.UnixMicro() }

// microsOrZero is micros, and 0 for no time.
func microsOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return micros(t)
}

// timeOf is micros back; 0 is no time.
func timeOf(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
