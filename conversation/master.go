package conversation

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// KeyID names a master key in what it wrapped, up to 64 bytes.
type KeyID string

// Master wraps the keys of subjects. Its methods may be called concurrently.
type Master interface {
	// Current names the key that Wrap uses.
	Current() KeyID
	// Wrap encrypts a key for the place that bound names.
	Wrap(ctx context.Context, key, bound []byte) (KeyID, []byte, error)
	// Unwrap gives what Wrap was given. It fails with ErrMaster where the key id is not known, with ErrCorrupt where
	// wrapped is not of that key and place.
	Unwrap(ctx context.Context, id KeyID, wrapped, bound []byte) ([]byte, error)
}

// Ring is master keys in memory: the first wraps, all unwrap. It never changes.
type Ring struct {
	current KeyID
	keys    map[KeyID]cipher.AEAD
}

// MasterKeyBytes is the size of a master key, for AES-256.
const MasterKeyBytes = 32

// maxMasterKeys bounds a ring: each rotation adds one, which may go after the next Rewrap.
const maxMasterKeys = 64

// NewRing returns a ring of keys of MasterKeyBytes, the newest first.
func NewRing(keys ...[]byte) (*Ring, error) {
	if len(keys) == 0 || len(keys) > maxMasterKeys {
		return nil, fmt.Errorf("%d master keys; want 1 to %d", len(keys), maxMasterKeys)
	}
	r := &Ring{keys: map[KeyID]cipher.AEAD{}}
	for i, key := range keys {
		if len(key) != MasterKeyBytes {
			return nil, fmt.Errorf("master key %d has %d bytes; want %d", i+1, len(key), MasterKeyBytes)
		}
		id := masterID(key)
		if r.keys[id] != nil {
			return nil, fmt.Errorf("master key %d is there twice", i+1)
		}
		aead, err := newAEAD(key)
		if err != nil {
			return nil, err
		}
		r.keys[id] = aead
		if i == 0 {
			r.current = id
		}
	}
	return r, nil
}

// ParseRing reads a ring from text: a key in base64 a line, the newest first; empty lines and those that begin with #
// count for nothing. Its errors do not repeat the text.
func ParseRing(text []byte) (*Ring, error) {
	var keys [][]byte
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != MasterKeyBytes {
			return nil, fmt.Errorf("line %d is no master key: want %d random bytes in base64, as `openssl rand -base64 %[2]d` "+
				"gives", n, MasterKeyBytes)
		}
		keys = append(keys, key)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return NewRing(keys...)
}

// masterID is the beginning of a hash of the key: keys are random, so it tells nothing of them.
func masterID(key []byte) KeyID {
	h := sha256.Sum256(append([]byte("mmserve master key\x00"), key...))
	return KeyID(fmt.Sprintf("%x", h[:8]))
}

// Current implements Master.
func (r *Ring) Current() KeyID { return r.current }

// Wrap implements Master.
func (r *Ring) Wrap(_ context.Context, key, bound []byte) (KeyID, []byte, error) {
	return r.current, r.keys[r.current].Seal(nil, nil, key, bound), nil
}

// Unwrap implements Master.
func (r *Ring) Unwrap(_ context.Context, id KeyID, wrapped, bound []byte) ([]byte, error) {
	aead := r.keys[id]
	if aead == nil {
		return nil, ErrMaster
	}
	key, err := aead.Open(nil, nil, wrapped, bound)
	if err != nil {
		return nil, fmt.Errorf("a wrapped key: %w", ErrCorrupt)
	}
	return key, nil
}

// Keeper encrypts with a key that is kept elsewhere, as *secrets.Keeper of gocloud.dev does.
type Keeper interface {
	Encrypt(ctx context.Context, plaintext []byte) ([]byte, error)
	Decrypt(ctx context.Context, ciphertext []byte) ([]byte, error)
}

// Kept is a Master of keepers: the first wraps, all unwrap.
type Kept struct {
	current KeyID
	keepers map[KeyID]Keeper
}

// NamedKeeper is a keeper with a name, up to 64 bytes, that has to stay the same.
type NamedKeeper struct {
	ID     KeyID
	Keeper Keeper
}

// NewKept returns a Master of keepers, the newest first.
func NewKept(list ...NamedKeeper) (*Kept, error) {
	if len(list) == 0 || len(list) > maxMasterKeys {
		return nil, fmt.Errorf("%d keepers of master keys; want 1 to %d", len(list), maxMasterKeys)
	}
	k := &Kept{current: list[0].ID, keepers: map[KeyID]Keeper{}}
	for _, n := range list {
		if n.ID == "" || len(n.ID) > 64 || k.keepers[n.ID] != nil {
			return nil, errors.New("each keeper of a master key has a name of its own, of 1 to 64 bytes")
		}
		k.keepers[n.ID] = n.Keeper
	}
	return k, nil
}

// Current implements Master.
func (k *Kept) Current() KeyID { return k.current }

// Wrap implements Master. Keepers know no additional data: the hash of the place goes along inside.
func (k *Kept) Wrap(ctx context.Context, key, bound []byte) (KeyID, []byte, error) {
	place := sha256.Sum256(bound)
	wrapped, err := k.keepers[k.current].Encrypt(ctx, append(place[:], key...))
	if err != nil {
		return "", nil, fmt.Errorf("the keeper of the master key: %w", err)
	}
	return k.current, wrapped, nil
}

// Unwrap implements Master.
func (k *Kept) Unwrap(ctx context.Context, id KeyID, wrapped, bound []byte) ([]byte, error) {
	keeper := k.keepers[id]
	if keeper == nil {
		return nil, ErrMaster
	}
	inside, err := keeper.Decrypt(ctx, wrapped)
	if err != nil {
		return nil, fmt.Errorf("the keeper of the master key: %w", err)
	}
	place := sha256.Sum256(bound)
	if len(inside) < len(place) || subtle.ConstantTimeCompare(inside[:len(place)], place[:]) == 0 {
		return nil, fmt.Errorf("a wrapped key: %w", ErrCorrupt)
	}
	return inside[len(place):], nil
}

// newAEAD is AES-256-GCM with a random nonce before each ciphertext.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

var (
	_ Master = (*Ring)(nil)
	_ Master = (*Kept)(nil)
)
