package conversation

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

// sealFormat is the first byte of every sealed record, and of its additional data. Another algorithm or layout is
// another number.
const sealFormat = 1

// kind says what a record is, in its additional data.
type kind byte

const (
	kindProfile kind = iota + 1
	kindInfo
	kindMessage
	kindImage
)

// place is where a record lies: it opens nowhere else. at is its conversation's id, or an image's name.
type place struct {
	kind  kind
	owner []byte
	at    []byte
	seq   uint64
}

// bytes are the additional data: the parts of variable length come with their lengths.
func (p place) bytes() []byte {
	b := append(make([]byte, 0, 96), "mmserve conversation"...)
	b = append(b, sealFormat, byte(p.kind))
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(p.owner))), p.owner...)
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(p.at))), p.at...)
	return binary.BigEndian.AppendUint64(b, p.seq)
}

// sealer seals and opens the records of a subject.
type sealer struct{ aead cipher.AEAD }

// seal encrypts a record for its place: format, nonce, ciphertext, tag. Nonces are random, 96 bits: a key may seal 2³²
// records, which Limits are far below.
func (s sealer) seal(p place, plaintext []byte) []byte {
	out := make([]byte, 1, 1+len(plaintext)+s.aead.Overhead())
	out[0] = sealFormat
	return s.aead.Seal(out, nil, plaintext, p.bytes())
}

func (s sealer) open(p place, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || sealed[0] != sealFormat {
		return nil, fmt.Errorf("%w: its format is not known", ErrCorrupt)
	}
	plaintext, err := s.aead.Open(nil, nil, sealed[1:], p.bytes())
	if err != nil {
		return nil, ErrCorrupt
	}
	return plaintext, nil
}

// hasher makes the keyed hashes that stand for names. Its key is one for the whole store, as old as it.
type hasher struct{ key []byte }

func (h hasher) sum(label string, parts ...[]byte) []byte {
	m := hmac.New(sha256.New, h.key)
	m.Write(append([]byte(label), 0))
	for _, p := range parts {
		m.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p))))
		m.Write(p)
	}
	return m.Sum(nil)
}

// tenant and owner stand for a tenant and its subject.
func (h hasher) tenant(name string) []byte { return h.sum("tenant", []byte(name))[:16] }

func (h hasher) owner(s Scope) []byte { return h.sum("owner", []byte(s.Tenant), []byte(s.Subject)) }

// image and key stand for an image and an append of a subject.
func (h hasher) image(subject []byte, digest [32]byte) []byte {
	return h.sum("image", subject, digest[:])
}

func (h hasher) appendKey(subject []byte, key string) []byte {
	return h.sum("append", subject, []byte(key))
}

// idBytes are in a random id.
const idBytes = 16

// randomID draws one. rand.Read does not fail.
func randomID() []byte {
	id := make([]byte, idBytes)
	_, _ = rand.Read(id)
	return id
}

const idPrefix = "conv_"

func idText(id []byte) string { return idPrefix + hex.EncodeToString(id) }

// parseID reads a conversation's id. One that cannot be is of none.
func parseID(text string) ([]byte, error) {
	digits, ok := strings.CutPrefix(text, idPrefix)
	if !ok || len(digits) != 2*idBytes || strings.ToLower(digits) != digits {
		return nil, ErrNotFound
	}
	id, err := hex.DecodeString(digits)
	if err != nil {
		return nil, ErrNotFound
	}
	return id, nil
}
