package audit

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"time"
)

// Receipt says what was done with a person's data.
type Receipt struct {
	ID     string    `json:"id"`
	Action string    `json:"action"`
	Time   time.Time `json:"time"`
	Tenant string    `json:"tenant,omitempty"`
	// Subject is the person's pseudonym, as the audit log has it.
	Subject string `json:"subject"`
	// Counts say of how many things: conversations, messages, images, lines.
	Counts map[string]int64 `json:"counts,omitempty"`
	// Archive is the SHA-256 of an archive that was given or taken, in hexadecimal.
	Archive string `json:"archive_sha256,omitempty"`
	// Note says what the person should know beside that.
	Note string `json:"note,omitempty"`
}

// SignedReceipt is a receipt as it is given.
type SignedReceipt struct {
	// Text is JSON of a Receipt, byte by byte as it was signed.
	Text      []byte `json:"text"`
	Signature []byte `json:"signature"`
	// Key is the id of the key that signed it.
	Key string `json:"key"`
}

const receiptPurpose = "receipt"

// SignReceipt signs a receipt.
func (k *Keys) SignReceipt(r *Receipt) (*SignedReceipt, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return &SignedReceipt{Text: text, Signature: k.Sign(receiptPurpose, text), Key: k.ID()}, nil
}

// Check gives the receipt if one of the keys signed it.
func (s *SignedReceipt) Check(keys map[string]ed25519.PublicKey) (*Receipt, error) {
	if !CheckSignature(keys[s.Key], receiptPurpose, s.Text, s.Signature) {
		return nil, errors.New("the receipt is not signed with one of these keys")
	}
	r := new(Receipt)
	if err := json.Unmarshal(s.Text, r); err != nil {
		return nil, errors.New("the receipt is signed, and no receipt")
	}
	return r, nil
}
