package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/mmserve/mmserve/internal/folder"
)

// Keys sign heads and receipts, and key digests. They are one private key, from which the rest is derived.
type Keys struct {
	private ed25519.PrivateKey
	digest  []byte
}

// maxKeyFile bounds files of keys, in bytes.
const maxKeyFile = 64 << 10

// pemPrivate and pemPublic are the types of PEM blocks, as other programs have them.
const pemPrivate, pemPublic = "PRIVATE KEY", "PUBLIC KEY"

// OpenKeys reads the key in a file, and makes one where there is none: Ed25519 in PKCS #8, for its owner's eyes only.
func OpenKeys(path string) (*Keys, error) {
	k, err := ReadKeys(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	if err := create(path, pem.EncodeToMemory(&pem.Block{Type: pemPrivate, Bytes: der})); err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	return ReadKeys(path) // another process may have been faster
}

// create writes a new file whole, for its owner only. One that is there stays.
func create(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".audit-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// ReadKeys reads the key in a file. One that others may read is refused.
func ReadKeys(path string) (*Keys, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("audit key %s: others may use it (mode %04o); want 0600", path, st.Mode().Perm())
	}
	text, err := folder.ReadFile(path, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("audit key: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != pemPrivate {
		return nil, fmt.Errorf("audit key %s: want PEM with a PRIVATE KEY", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	private, ok := key.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("audit key %s: want an Ed25519 key in PKCS #8", path)
	}
	digest, err := hkdf.Key(sha256.New, private.Seed(), nil, "mmserve audit digest", sha256.Size)
	if err != nil {
		return nil, err
	}
	return &Keys{private: private, digest: digest}, nil
}

// Public is the key that signatures are checked with.
func (k *Keys) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// ID is a short name of the key.
func (k *Keys) ID() string { return KeyID(k.Public()) }

// KeyID is a short name of a key.
func KeyID(k ed25519.PublicKey) string {
	s := sha256.Sum256(k)
	return hex.EncodeToString(s[:8])
}

// Sign signs text for a purpose: a signature for one counts for no other.
func (k *Keys) Sign(purpose string, text []byte) []byte {
	return ed25519.Sign(k.private, purposed(purpose, text))
}

// CheckSignature says whether Sign gave a signature with a key.
func CheckSignature(key ed25519.PublicKey, purpose string, text, signature []byte) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, purposed(purpose, text), signature)
}

func purposed(purpose string, text []byte) []byte {
	return slices.Concat([]byte("mmserve "+purpose+"\x00"), text)
}

// Digest returns a hash that is keyed, and salted with a request's id: who has not the key cannot guess short texts by
// their digests, nor see that two requests were the same.
func (k *Keys) Digest(id string) hash.Hash {
	h := hmac.New(sha256.New, k.digest)
	fmt.Fprintf(h, "%d %s\n", len(id), id)
	return h
}

// keepPublic adds the public key to a file of PEM blocks, unless it has it.
func (k *Keys) keepPublic(path string) error {
	known, err := ReadPublic(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if known[k.ID()] != nil {
		return nil
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: pemPublic, Bytes: der})
	return errors.Join(err, f.Sync(), f.Close())
}

// ReadPublic reads the public keys in a file of PEM blocks, by their ids.
func ReadPublic(path string) (map[string]ed25519.PublicKey, error) {
	text, err := folder.ReadFile(path, maxKeyFile)
	if err != nil {
		return nil, fmt.Errorf("public keys: %w", err)
	}
	keys := map[string]ed25519.PublicKey{}
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		public, ok := key.(ed25519.PublicKey)
		if err != nil || !ok || block.Type != pemPublic {
			return nil, fmt.Errorf("public keys %s: want Ed25519 keys in PEM", path)
		}
		keys[KeyID(public)] = public
	}
	if len(bytes.TrimSpace(text)) > 0 {
		return nil, fmt.Errorf("public keys %s: want PEM blocks and nothing else", path)
	}
	return keys, nil
}

// syncDir has the names of a folder on disk.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
