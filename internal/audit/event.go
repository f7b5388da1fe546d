package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Kinds of events.
const (
	// KindRequest is a request for the models that has ended, KindBegin one that has begun, where the log is required.
	KindRequest, KindBegin = "request", "begin"
	// KindCredential is a caller that was refused for its credential.
	KindCredential = "credential"
	// KindAdmin is what an operator asked for: before it is done, with the decision "allowed", and after.
	KindAdmin = "admin"
	// KindSubject is what was done with a person's data, KindRetention what was deleted because its time was over.
	KindSubject, KindRetention = "subject", "retention"
	// KindAbuse is a key or tenant that was quarantined or released.
	KindAbuse = "abuse"
	// The log's own: the first line of a file, a start, a stop, an end that was cut off, a file that was removed.
	kindFile, kindStart, kindStop, kindRepair, kindExpire = "file", "start", "stop", "repair", "expire"
)

// Event is a line of the log: who, what, when and how it was decided, never content. Strings are names that the server
// has checked or made itself.
type Event struct {
	// Time is set by the log where it is zero.
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	// Action is what was asked for: an operation, a method, a command.
	Action string `json:"action,omitempty"`
	// Decision is how it ended: a code of gRPC ("OK", "INVALID_ARGUMENT"), or "allowed" of what is about to be done.
	Decision string `json:"decision,omitempty"`
	// ID names the request. Tenant and Credential say who asked, Peer from which host: of refused callers and operators.
	ID         string `json:"id,omitempty"`
	Tenant     string `json:"tenant,omitempty"`
	Credential string `json:"credential,omitempty"`
	Peer       string `json:"peer,omitempty"`
	// Subject is the person whose data it is about, as the tenant calls them. Object is what it was done to: a model, the
	// digest of a file, a conversation.
	Subject string `json:"subject,omitempty"`
	Object  string `json:"object,omitempty"`
	// Count is how many things it was done to; of refused callers, how many this line stands for.
	Count int `json:"count,omitempty"`
	// Policies are what stages of a content policy decided.
	Policies   []Decision  `json:"policies,omitempty"`
	Generation *Generation `json:"generation,omitempty"`
	// Details are numbers of an event's kind.
	Details map[string]int64 `json:"details,omitempty"`
	// Lost is the number of events before this one that could not be written.
	Lost uint64 `json:"lost,omitempty"`

	file *fileHeader
}

// Decision is what a stage of a content policy decided: never the content that it found.
type Decision struct {
	Stage    string `json:"stage"`
	Category string `json:"category"`
	Action   string `json:"action"`
	Count    int    `json:"count,omitempty"`
}

// Generation is what is needed to get the same answer again, with the request at hand.
type Generation struct {
	Model       string `json:"model,omitempty"`
	ModelDigest string `json:"model_digest,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	// Seed is that of the first answer.
	Seed     uint64   `json:"seed"`
	Sampling Sampling `json:"sampling"`
	// Request and Input are keyed digests (Keys.Digest): of what was asked for, and of what the model was given.
	Request string `json:"request,omitempty"`
	Input   string `json:"input,omitempty"`
	// PromptTokens counts the positions of the prompt, ImageTokens those of images among them.
	PromptTokens int      `json:"prompt_tokens,omitempty"`
	ImageTokens  int      `json:"image_tokens,omitempty"`
	Answers      []Answer `json:"answers,omitempty"`
}

// Sampling is how tokens were picked.
type Sampling struct {
	Temperature       float32 `json:"temperature"`
	TopK              int     `json:"top_k,omitempty"`
	TopP              float32 `json:"top_p,omitempty"`
	MinP              float32 `json:"min_p,omitempty"`
	TypicalP          float32 `json:"typical_p,omitempty"`
	RepetitionPenalty float32 `json:"repetition_penalty,omitempty"`
	PresencePenalty   float32 `json:"presence_penalty,omitempty"`
	FrequencyPenalty  float32 `json:"frequency_penalty,omitempty"`
	// Biases counts the tokens whose logits are moved.
	Biases int `json:"biases,omitempty"`
}

// Answer is one of a request's answers. Digest is a keyed digest of its text; empty unless it was given whole.
type Answer struct {
	Finish string `json:"finish,omitempty"`
	Tokens int    `json:"tokens"`
	Digest string `json:"digest,omitempty"`
}

// fileHeader is in the first line of a file.
type fileHeader struct {
	Version int `json:"version"`
	// Prev is the hash of the line before, in hexadecimal: zeros for the first of all.
	Prev string `json:"prev"`
	// Key is the public key that signs heads, in base64, and Program what writes.
	Key     []byte `json:"key"`
	Program string `json:"program,omitempty"`
}

// version is that of the format.
const version = 1

// sum is the hash of a line over that of the line before.
type sum [sha256.Size]byte

func (s sum) String() string { return hex.EncodeToString(s[:]) }

func parseSum(text string) (s sum, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, fmt.Errorf("%d bytes; want %d hexadecimal digits", len(text), 2*len(s))
	}
	return sum(b), nil
}

// next is the hash of a line with that body, after the line with hash s.
func (s sum) next(body []byte) (n sum) {
	h := sha256.New()
	h.Write(s[:])
	h.Write(body)
	h.Sum(n[:0])
	return n
}

// A line is its body, then its hash: {"seq":1,…,"hash":"…"} and a newline. The body is all before the hash, byte by
// byte, so that the hash is of what stands in the file.
const (
	linePrefix = `{"seq":`
	hashPrefix = `,"hash":"`
	lineEnd    = "\"}\n"
	hashBytes  = len(hashPrefix) + 2*sha256.Size + len(lineEnd)
)

// maxLine bounds a line that is read, in bytes. Events are far smaller.
const maxLine = 64 << 10

// marshal gives the line of an event, and its hash.
func (e *Event) marshal(seq uint64, prev sum) (line []byte, s sum, err error) {
	var b bytes.Buffer
	b.WriteString(linePrefix)
	b.WriteString(strconv.FormatUint(seq, 10))
	b.WriteByte(',')
	at := b.Len()
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if e.file != nil {
		err = enc.Encode(struct {
			*Event
			File *fileHeader `json:"file"`
		}{e, e.file})
	} else {
		err = enc.Encode(e)
	}
	if err != nil {
		return nil, s, err
	}
	body := b.Bytes()[:b.Len()-len("}\n")]
	copy(body[at:], body[at+1:]) // the object's own brace
	body = body[:len(body)-1]
	if len(body)+hashBytes > maxLine {
		return nil, s, fmt.Errorf("audit: a line of %d bytes; want at most %d", len(body)+hashBytes, maxLine)
	}
	s = prev.next(body)
	line = append(body, hashPrefix...)
	line = hex.AppendEncode(line, s[:])
	return append(line, lineEnd...), s, nil
}

// split takes a line, with its newline, apart. ok says that it has a line's form.
func split(line []byte) (body []byte, seq uint64, s sum, ok bool) {
	n := len(line) - hashBytes
	if n < len(linePrefix)+2 || string(line[:len(linePrefix)]) != linePrefix ||
		string(line[n:n+len(hashPrefix)]) != hashPrefix || string(line[len(line)-len(lineEnd):]) != lineEnd {
		return nil, 0, s, false
	}
	digits := line[n+len(hashPrefix) : len(line)-len(lineEnd)]
	if _, err := hex.Decode(s[:], digits); err != nil || !bytes.Equal(hex.AppendEncode(nil, s[:]), digits) {
		return nil, 0, s, false
	}
	body = line[:n]
	number, _, _ := bytes.Cut(body[len(linePrefix):], []byte(","))
	seq, err := strconv.ParseUint(string(number), 10, 64)
	return body, seq, s, err == nil
}

// Line is an event as it stands in the log.
type Line struct {
	Seq uint64 `json:"seq"`
	Event
	File *fileHeader `json:"file,omitempty"`
	Hash string      `json:"hash"`
}

// ParseLine reads a line. It does not hold it against the log.
func ParseLine(text []byte) (*Line, error) {
	if len(text) > maxLine {
		return nil, fmt.Errorf("a line of %d bytes; want at most %d", len(text), maxLine)
	}
	l := new(Line)
	if err := json.Unmarshal(text, l); err != nil {
		return nil, fmt.Errorf("not a line of an audit log: %w", err)
	}
	return l, nil
}
