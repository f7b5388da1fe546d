package caption

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// Row is a record of the output: one question about one image, answered or failed.
type Row struct {
	// ID names the image: its path, archive/member or URL.
	ID string `json:"id"`
	// FileName is the image's path from the output's folder, as Hugging Face's imagefolder wants it.
	FileName string `json:"file_name"`
	// PathB64 is the path where it is not UTF-8.
	PathB64 []byte `json:"path_b64,omitempty"`
	// Index counts the listed images from 0.
	Index int64 `json:"index"`
	// SHA256 is that of the image's bytes, in hex.
	SHA256 string `json:"sha256,omitempty"`
	// DuplicateOf is the ID of the row that this one's answer was copied from.
	DuplicateOf string `json:"duplicate_of,omitempty"`
	// Width and Height are in pixels, after orientation.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	// Format is jpeg, png, gif, bmp, tiff or webp.
	Format string `json:"format,omitempty"`
	// Question is the name of the question.
	Question string `json:"question"`
	// Prompt is the item's own prompt, where it has one.
	Prompt string `json:"prompt,omitempty"`
	// Text is the answer without the space around it.
	Text string `json:"text"`
	// Data is the answer as JSON, where a schema asked for it.
	Data json.RawMessage `json:"data,omitempty"`
	// Choice is the answer among choices, ChoiceScore its probability, where the server tells.
	Choice      string   `json:"choice,omitempty"`
	ChoiceScore *float64 `json:"choice_score,omitempty"`
	// FinishReason is stop, length for an answer that max_tokens cut, or content_filter for one that the server's
	// policy cut.
	FinishReason     string `json:"finish_reason,omitempty"`
	PromptTokens     uint32 `json:"prompt_tokens,omitempty"`
	ImageTokens      uint32 `json:"image_tokens,omitempty"`
	CompletionTokens uint32 `json:"completion_tokens,omitempty"`
	// Seed is what the sampler started from.
	Seed        *uint64 `json:"seed,omitempty"`
	Model       string  `json:"model,omitempty"`
	ModelDigest string  `json:"model_digest,omitempty"`
	// Seconds is from the request to the whole answer, tries included; Attempts counts them.
	Seconds  float64 `json:"seconds,omitempty"`
	Attempts int     `json:"attempts,omitempty"`
	// ErrorCode and Error say why there is no answer.
	ErrorCode string `json:"error_code,omitempty"`
	Error     string `json:"error,omitempty"`
	// Key is SHA-256 over image, question and configuration, in hex; Version tells an unchanged file without reading
	// it.
	Key     string `json:"key,omitempty"`
	Version string `json:"version,omitempty"`
	// Part and PartEnd are the archive that holds the image, and the archive's length with it.
	Part    string `json:"part,omitempty"`
	PartEnd int64  `json:"part_end,omitempty"`
}

// Codes of rows that failed before a server was asked. Others are gRPC's names.
const (
	codeInvalid    = "INVALID_ARGUMENT"
	codeNotFound   = "NOT_FOUND"
	codePermission = "PERMISSION_DENIED"
	codeRead       = "READ_FAILED"
	codeChanged    = "CHANGED"
	codeWrite      = "WRITE_FAILED"
)

// OK tells whether the row has an answer.
func (r *Row) OK() bool { return r.ErrorCode == "" }

// final tells whether asking again would fail again.
func (r *Row) final() bool {
	switch r.ErrorCode {
	case codeInvalid, "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED":
		return true
	}
	return r.OK()
}

// path is the item's path, byte for byte.
func (r *Row) path() string {
	if r.PathB64 != nil {
		return string(r.PathB64)
	}
	return r.ID
}

// setPath names the row after an item.
func (r *Row) setPath(it Item) {
	r.ID, r.Index = it.ID(), it.Index
	if !utf8.ValidString(it.Path) {
		r.PathB64 = []byte(it.Path)
	}
}

// line is the row as a line of JSON.
func (r *Row) line() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// parseRow reads a line that line wrote.
func parseRow(line []byte) (*Row, error) {
	r := &Row{}
	if err := json.Unmarshal(line, r); err != nil {
		return nil, err
	}
	if r.ID == "" || r.Question == "" {
		return nil, fmt.Errorf("want a row with id and question")
	}
	return r, nil
}

// identity is what one row of the output may have at most: an image by its path, a question by its name, and the
// item's own prompt.
func (r *Row) identity() hash16 { return identity(r.path(), r.Question, r.Prompt) }

func identity(path, question, prompt string) hash16 {
	return half(hashOf("row", path, question, prompt))
}

// keyHash is the index's entry for the row's key.
func keyHash(key string) hash16 { return half(hashOf("key", key)) }

func half(h [sha256.Size]byte) hash16 { return hash16(h[:16]) }

// hashOf is SHA-256 over texts, each with its length before it, so that no two lists are alike.
func hashOf(texts ...string) [sha256.Size]byte {
	h := sha256.New()
	var n [8]byte
	for _, t := range texts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(t)))
		h.Write(n[:])
		h.Write([]byte(t))
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// shortHash tells texts apart that are shown alike.
func shortHash(s string) string {
	h := hashOf("path", s)
	return hex.EncodeToString(h[:6])
}

// pathShard is which of n shards a path belongs to.
func pathShard(path string, n int) int {
	h := hashOf("shard", path)
	return int(binary.LittleEndian.Uint64(h[:8]) % uint64(n))
}
