package auth

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/mmserve/mmserve/internal/reload"
)

const (
	// KeyPrefix begins every API key, for those who search files for secrets.
	KeyPrefix = "mms_"
	// keyBytes is how much of a key is random.
	keyBytes = 32
	// hashPrefix is how a line of a file writes the hash of its key.
	hashPrefix = "sha256:"
	// maxLines is the most lines of a file.
	maxLines = 100_000
)

// Entry is a line of a file of keys: a credential and whom it stands for. It is JSON.
type Entry struct {
	ID string `json:"id"`
	// Key is "sha256:" and the hash of an API key in hex. SHA-256 suffices: keys are 256 random bits, which nobody
	// guesses.
	Key string `json:"key,omitempty"`
	// Certificate is a name in a client certificate: a URI, a DNS name, or "CN=" and the common name.
	Certificate string     `json:"certificate,omitempty"`
	Tenant      string     `json:"tenant,omitempty"`
	Role        Role       `json:"role"`
	Expires     *time.Time `json:"expires,omitempty"`
	Models      []string   `json:"models,omitempty"`
}

// NewKey makes an API key, which is in e as its hash only.
func NewKey(e *Entry) (key string) {
	raw := make([]byte, keyBytes)
	_, _ = rand.Read(raw) // it never fails
	key = KeyPrefix + base64.RawURLEncoding.EncodeToString(raw)
	e.Key = hashPrefix + hex.EncodeToString(hash(key))
	return key
}

func hash(key string) []byte {
	sum := sha256.Sum256([]byte(key))
	return sum[:]
}

// Check says what is wrong with an entry. It quotes nothing of it.
func (e *Entry) Check() error {
	if e.Role == 0 {
		return errors.New("role: want admin, user or read-only")
	}
	if err := e.identity().checkNames(); err != nil {
		return err
	}
	if (e.Key == "") == (e.Certificate == "") {
		return errors.New("want either key or certificate")
	}
	if e.Models != nil && len(e.Models) == 0 {
		return errors.New("models: an empty list allows none; leave it out to allow all")
	}
	return nil
}

// sum is the hash of the entry's key.
func (e *Entry) sum() ([]byte, error) {
	text, ok := strings.CutPrefix(e.Key, hashPrefix)
	sum, err := hex.DecodeString(text)
	if !ok || err != nil || len(sum) != sha256.Size {
		return nil, errors.New(`key: want "sha256:" and 64 hexadecimal digits, as mmserve keys new prints them, ` +
			"and never the key itself")
	}
	return sum, nil
}

func (e *Entry) identity() *Identity {
	return &Identity{ID: e.ID, Tenant: e.Tenant, Role: e.Role, Models: e.Models}
}

func (e *Entry) expired(now time.Time) bool { return e.Expires != nil && !now.Before(*e.Expires) }

// Keys are the entries of a file.
type Keys struct {
	entries  []Entry
	byPrefix map[[8]byte][]*hashed
	byName   map[string]*Entry
}

// hashed is an entry with the hash of its key.
type hashed struct {
	sum   []byte
	entry *Entry
}

// ParseKeys reads a file of JSON lines. Empty lines and those that begin with # are skipped. A file without a byte is
// refused: somebody is about to write it. Errors name the line and the field, and quote nothing.
func ParseKeys(file []byte) (*Keys, error) {
	if len(file) == 0 {
		return nil, errors.New("it is empty: a file without keys has a comment at least, such as # none")
	}
	k := &Keys{byPrefix: map[[8]byte][]*hashed{}, byName: map[string]*Entry{}}
	ids := map[string]bool{}
	n := 0
	for line := range bytes.Lines(file) {
		if n++; n > maxLines {
			return nil, fmt.Errorf("it has more than %d lines", maxLines)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
			continue
		}
		e, err := parseEntry(line)
		if err == nil && ids[e.ID] {
			err = errors.New("id: an earlier line has it")
		}
		if err == nil {
			ids[e.ID] = true
			err = k.add(e)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	return k, nil
}

// OpenKeys reads a file of keys, and has it read again when it changes.
func OpenKeys(path string, log *slog.Logger) (*reload.Files[*Keys], error) {
	return reload.Open("API keys", log, func(contents [][]byte) (*Keys, error) {
		k, err := ParseKeys(contents[0])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return k, nil
	}, path)
}

// parseEntry reads a line. What encoding/json says of it may quote it, and is not passed on.
func parseEntry(line []byte) (*Entry, error) {
	e := new(Entry)
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(e); err != nil {
		return nil, errors.New("want a JSON object with id, key or certificate, tenant, role (admin, user or read-only), " +
			"and perhaps expires (RFC 3339) and models (a list)")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("want one JSON object")
	}
	return e, e.Check()
}

func (k *Keys) add(e *Entry) error {
	k.entries = append(k.entries, *e)
	if e.Certificate != "" {
		if k.byName[e.Certificate] != nil {
			return errors.New("certificate: an earlier line has it")
		}
		k.byName[e.Certificate] = e
		return nil
	}
	sum, err := e.sum()
	if err != nil {
		return err
	}
	prefix := [8]byte(sum)
	for _, other := range k.byPrefix[prefix] {
		if bytes.Equal(other.sum, sum) {
			return errors.New("key: an earlier line has it")
		}
	}
	k.byPrefix[prefix] = append(k.byPrefix[prefix], &hashed{sum, e})
	return nil
}

// Len is the number of entries, and of those that have expired.
func (k *Keys) Len(now time.Time) (all, expired int) {
	for i := range k.entries {
		if k.entries[i].expired(now) {
			expired++
		}
	}
	return len(k.entries), expired
}

// find gives the identity of an API key, nil if there is none. Entries are looked up by the beginning of their hash,
// which a caller cannot choose, and compared in constant time.
func (k *Keys) find(key string, now time.Time) *Identity {
	sum := hash(key)
	var found *Entry
	for _, h := range k.byPrefix[[8]byte(sum)] {
		if subtle.ConstantTimeCompare(h.sum, sum) == 1 {
			found = h.entry
		}
	}
	if found == nil || found.expired(now) {
		return nil
	}
	return found.identity()
}

// certificate gives the identity of a verified client certificate, nil if there is none. A URI goes before a DNS
// name, and that before the common name.
func (k *Keys) certificate(c *x509.Certificate, now time.Time) *Identity {
	for _, name := range certificateNames(c) {
		if e := k.byName[name]; e != nil {
			if e.expired(now) {
				return nil
			}
			return e.identity()
		}
	}
	return nil
}

// certificateNames are the names of a certificate as Entry.Certificate has them.
func certificateNames(c *x509.Certificate) (list []string) {
	for _, u := range c.URIs {
		list = append(list, u.String())
	}
	list = append(list, c.DNSNames...)
	if c.Subject.CommonName != "" {
		list = append(list, "CN="+c.Subject.CommonName)
	}
	return list
}
