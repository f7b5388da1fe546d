package openai

import (
	"bytes"
	"encoding/json"
	"strconv"
	"unicode/utf8"
)

// Chunks writes the chunks of a streamed completion. What its methods give is valid until the next call. The
// log-probabilities that they take are nil, or are written as JSON.
type Chunks struct {
	head  []byte // of every chunk, up to its choices
	chat  bool   // choices have a delta, not a text
	usage bool   // chunks without usage say so
	buf   []byte
}

// NewChunks writes those of one chat completion. With usage, each chunk has the field, and Last gives it.
func NewChunks(id, model, fingerprint string, created int64, usage bool) *Chunks {
	return newChunks(id, ChunkObject, model, fingerprint, created, usage)
}

// NewTextChunks writes those of one completion of a prompt.
func NewTextChunks(id, model, fingerprint string, created int64, usage bool) *Chunks {
	return newChunks(id, TextObject, model, fingerprint, created, usage)
}

func newChunks(id, object, model, fingerprint string, created int64, usage bool) *Chunks {
	head := Marshal(struct {
		ID                string `json:"id"`
		Object            string `json:"object"`
		Created           int64  `json:"created"`
		Model             string `json:"model"`
		SystemFingerprint string `json:"system_fingerprint,omitempty"`
	}{id, object, created, model, fingerprint})
	return &Chunks{head: append(head[:len(head)-1], `,"choices":[`...), chat: object == ChunkObject, usage: usage}
}

// Role begins the answer of an index, in a chat.
func (c *Chunks) Role(index int) []byte {
	c.begin(index)
	c.buf = append(c.buf, `"delta":{"role":"assistant","content":""}`...)
	return c.end(nil, "", nil)
}

// Text is more of an answer, in a chat after more of what the model thinks before it; either may be empty.
func (c *Chunks) Text(index int, reasoning, text string, logprobs any) []byte {
	c.begin(index)
	if c.chat {
		c.buf = append(c.buf, `"delta":{`...)
		if reasoning != "" {
			c.buf = append(c.buf, `"reasoning_content":`...)
			c.text(reasoning)
		}
		if text != "" || reasoning == "" {
			if reasoning != "" {
				c.buf = append(c.buf, ',')
			}
			c.buf = append(c.buf, `"content":`...)
			c.text(text)
		}
		c.buf = append(c.buf, '}')
	} else {
		c.buf = append(c.buf, `"text":`...)
		c.text(text)
	}
	return c.end(logprobs, "", nil)
}

// Finish ends an answer; stop is its NewStopReason.
func (c *Chunks) Finish(index int, reason string, stop, logprobs any) []byte {
	c.begin(index)
	if c.chat {
		c.buf = append(c.buf, `"delta":{}`...)
	} else {
		c.buf = append(c.buf, `"text":""`...)
	}
	return c.end(logprobs, reason, stop)
}

// Last is the last chunk, of no answer: the usage, if that is not nil, and what else is asked for.
func (c *Chunks) Last(u *Usage, e Extras) []byte {
	c.buf = append(append(c.buf[:0], c.head...), ']')
	if u != nil {
		c.buf = append(c.buf, `,"usage":`...)
		c.value(u)
	}
	if e.Timings != nil {
		c.buf = append(c.buf, `,"timings":`...)
		c.value(e.Timings)
	}
	if e.ChoiceScores != nil {
		c.buf = append(c.buf, `,"choice_scores":`...)
		c.value(e.ChoiceScores)
	}
	c.buf = append(c.buf, '}')
	return c.buf
}

func (c *Chunks) begin(index int) {
	c.buf = append(append(c.buf[:0], c.head...), `{"index":`...)
	c.buf = append(strconv.AppendInt(c.buf, int64(index), 10), ',')
}

func (c *Chunks) end(logprobs any, reason string, stop any) []byte {
	c.buf = append(c.buf, `,"logprobs":`...)
	if logprobs == nil {
		c.buf = append(c.buf, "null"...)
	} else {
		c.value(logprobs)
	}
	c.buf = append(c.buf, `,"finish_reason":`...)
	if reason == "" {
		c.buf = append(c.buf, "null"...)
	} else {
		c.value(reason)
		c.buf = append(c.buf, `,"stop_reason":`...)
		c.value(stop)
	}
	c.buf = append(c.buf, "}]"...)
	if c.usage {
		c.buf = append(c.buf, `,"usage":null`...)
	}
	c.buf = append(c.buf, '}')
	return c.buf
}

func (c *Chunks) value(v any) {
	c.buf = append(c.buf, Marshal(v)...)
}

// text appends a string. Most have nothing to escape.
func (c *Chunks) text(s string) {
	for i := range len(s) {
		if b := s[i]; b < ' ' || b == '"' || b == '\\' || b >= utf8.RuneSelf {
			c.value(s)
			return
		}
	}
	c.buf = append(append(append(c.buf, '"'), s...), '"')
}

// Marshal is v as JSON, on one line. Unlike encoding/json's it leaves <, > and & as they are: nobody reads it as HTML.
// v is made of plain values.
func Marshal(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // a value that is none of JSON's is this program's mistake
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
