package openai

import (
	"encoding/json"
	"strings"
)

// Response is the answer to a ResponseRequest.
type Response struct {
	ID                string           `json:"id"`
	Object            string           `json:"object"` // ResponseObject
	CreatedAt         int64            `json:"created_at"`
	CompletedAt       *int64           `json:"completed_at"`
	Status            string           `json:"status"`
	Background        bool             `json:"background"`
	Error             *ResponseFault   `json:"error"`
	IncompleteDetails *Incomplete      `json:"incomplete_details"`
	Model             string           `json:"model"`
	Output            []ResponseOutput `json:"output"`
	ParallelToolCalls bool             `json:"parallel_tool_calls"`
	PreviousResponse  *string          `json:"previous_response_id"`
	Store             bool             `json:"store"` // whether it is kept
	ToolChoice        string           `json:"tool_choice"`
	Tools             []struct{}       `json:"tools"`
	Truncation        string           `json:"truncation"`
	Usage             *ResponseUsage   `json:"usage"`
	// SystemFingerprint names what answers, as in chat completions.
	SystemFingerprint string `json:"system_fingerprint,omitempty"`
	ResponseEcho
}

// ResponseObject is what a response is, ResponsePrefix begins its id and MessagePrefix that of its message.
const ResponseObject, ResponsePrefix, MessagePrefix = "response", "resp_", "msg_"

// ReasoningPrefix begins the id of the thoughts of a response.
const ReasoningPrefix = "rs_"

// Statuses of responses and their messages.
const (
	StatusInProgress = "in_progress"
	StatusCompleted  = "completed"
	StatusIncomplete = "incomplete"
	StatusFailed     = "failed"
)

// ResponseFault is why a response failed.
type ResponseFault struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Incomplete says why a response ends early.
type Incomplete struct {
	Reason string `json:"reason"`
}

// ResponseOutput is a message of the model, or what it thought before.
type ResponseOutput struct {
	ID      string         `json:"id"`
	Type    string         `json:"type"` // "message" or "reasoning"
	Status  string         `json:"status"`
	Role    string         `json:"role,omitempty"`    // "assistant", of a message
	Summary *[]struct{}    `json:"summary,omitempty"` // empty, of thoughts
	Content []ResponsePart `json:"content"`
}

// ResponsePart is text of a message, or of thoughts, which have nothing but Text.
type ResponsePart struct {
	Type        string         `json:"type"` // "output_text" or "reasoning_text"
	Annotations []struct{}     `json:"annotations"`
	Logprobs    []TokenLogprob `json:"logprobs"`
	Text        string         `json:"text"`
}

// ResponseUsage counts tokens.
type ResponseUsage struct {
	InputTokens  int `json:"input_tokens"`
	InputDetails struct {
		Cached int `json:"cached_tokens"`
		Image  int `json:"image_tokens"`
	} `json:"input_tokens_details"`
	OutputTokens  int `json:"output_tokens"`
	OutputDetails struct {
		Reasoning int `json:"reasoning_tokens"`
	} `json:"output_tokens_details"`
	TotalTokens int `json:"total_tokens"`
}

// NewResponse is a response to a request before its answer. id is the request's, created in seconds since 1970.
func NewResponse(in *ResponseRequest, id, model, fingerprint string, created int64) *Response {
	out := &Response{
		ID: ResponsePrefix + id, Object: ResponseObject, CreatedAt: created, Status: StatusInProgress, Model: model,
		SystemFingerprint: fingerprint, Output: []ResponseOutput{}, ParallelToolCalls: true, ToolChoice: "auto",
		Tools: []struct{}{}, Truncation: "disabled", ResponseEcho: in.Echo, Store: in.Store != nil && *in.Store,
	}
	if in.Previous != "" {
		out.PreviousResponse, out.Truncation = &in.Previous, "auto"
	}
	return out
}

// message is the response's message with a text.
func (r *Response) message(text string, l []TokenLogprob, status string) ResponseOutput {
	return ResponseOutput{
		ID: MessagePrefix + strings.TrimPrefix(r.ID, ResponsePrefix), Type: "message", Status: status, Role: "assistant",
		Content: []ResponsePart{newResponsePart(text, l)},
	}
}

func newResponsePart(text string, l []TokenLogprob) ResponsePart {
	if l == nil {
		l = []TokenLogprob{}
	}
	return ResponsePart{Type: "output_text", Annotations: []struct{}{}, Logprobs: l, Text: text}
}

// MarshalJSON leaves out what thoughts have none of.
func (p ResponsePart) MarshalJSON() ([]byte, error) {
	if p.Type == reasoningText {
		return json.Marshal(map[string]string{"type": p.Type, "text": p.Text})
	}
	type plain ResponsePart
	return json.Marshal(plain(p))
}

const reasoningText = "reasoning_text"

// thoughts is what the model thought, as an item of the response.
func (r *Response) thoughts(text, status string) ResponseOutput {
	return ResponseOutput{
		ID: ReasoningPrefix + strings.TrimPrefix(r.ID, ResponsePrefix), Type: "reasoning", Status: status,
		Summary: &[]struct{}{}, Content: []ResponsePart{{Type: reasoningText, Text: text}},
	}
}

// ModelText is what a model gave: its answer, and what it thought before, "" for nothing.
type ModelText struct{ Reasoning, Text string }

// Finish ends the response with its text, for a finish reason, at a time in seconds since 1970.
func (r *Response) Finish(text ModelText, l []TokenLogprob, reason string, u Usage, now int64) {
	r.Status = StatusCompleted
	switch reason {
	case FinishLength:
		r.Status, r.IncompleteDetails = StatusIncomplete, &Incomplete{Reason: "max_output_tokens"}
	case FinishContentFilter:
		r.Status, r.IncompleteDetails = StatusIncomplete, &Incomplete{Reason: "content_filter"}
	default:
		r.CompletedAt = &now
	}
	r.Output = r.output(text, l, r.Status)
	r.Usage = &ResponseUsage{InputTokens: u.PromptTokens, OutputTokens: u.CompletionTokens, TotalTokens: u.TotalTokens}
	if d := u.PromptDetails; d != nil {
		r.Usage.InputDetails.Cached, r.Usage.InputDetails.Image = d.Cached, d.Image
	}
	if d := u.CompletionDetails; d != nil {
		r.Usage.OutputDetails.Reasoning = d.Reasoning
	}
}

// output are the items of a response.
func (r *Response) output(text ModelText, l []TokenLogprob, status string) (list []ResponseOutput) {
	if text.Reasoning != "" {
		list = append(list, r.thoughts(text.Reasoning, StatusCompleted))
	}
	return append(list, r.message(text.Text, l, status))
}

// ResponseEvents writes the events of a streamed response.
type ResponseEvents struct {
	Response *Response
	thoughts strings.Builder
	text     strings.Builder
	logprobs []TokenLogprob
	sequence int
	// item is the type of the one under way.
	item string
}

// Event is one of a stream: Data is the JSON of type Name.
type Event struct {
	Name string
	Data []byte
}

// responseEvent has the fields of all events, in their order.
type responseEvent struct {
	Type     string    `json:"type"`
	Sequence int       `json:"sequence_number"`
	Response *Response `json:"response,omitempty"`
	*itemEvent
}

// itemEvent are the fields of those about an item.
type itemEvent struct {
	OutputIndex  int             `json:"output_index"`
	Item         *ResponseOutput `json:"item,omitempty"`
	ItemID       string          `json:"item_id,omitempty"`
	ContentIndex *int            `json:"content_index,omitempty"`
	Part         *ResponsePart   `json:"part,omitempty"`
	Delta        *string         `json:"delta,omitempty"`
	Text         *string         `json:"text,omitempty"`
	Logprobs     *[]TokenLogprob `json:"logprobs,omitempty"`
}

func (e *ResponseEvents) event(name string, r *Response, about *itemEvent) Event {
	data, err := json.Marshal(responseEvent{Type: name, Sequence: e.sequence, Response: r, itemEvent: about})
	if err != nil {
		panic(err) // structs of plain values, and JSON that was parsed
	}
	e.sequence++
	return Event{Name: name, Data: data}
}

// content is about the text of an item.
func (e *ResponseEvents) content(item ResponseOutput) *itemEvent {
	zero := 0
	return &itemEvent{OutputIndex: e.index(item), ItemID: item.ID, ContentIndex: &zero}
}

// index is the place of an item: thoughts come before the message.
func (e *ResponseEvents) index(item ResponseOutput) int {
	if item.Role != "" && e.thoughts.Len() > 0 {
		return 1
	}
	return 0
}

// Begin are the events before any text.
func (e *ResponseEvents) Begin() []Event {
	return []Event{
		e.event("response.created", e.Response, nil),
		e.event("response.in_progress", e.Response, nil),
	}
}

// open are the events that begin an item, which has no text yet.
func (e *ResponseEvents) open(item ResponseOutput) []Event {
	if e.item == item.Type {
		return nil
	}
	e.item = item.Type
	part, added := item.Content[0], e.content(item)
	item.Status, item.Content, added.Part = StatusInProgress, []ResponsePart{}, &part
	return []Event{
		e.event("response.output_item.added", nil, &itemEvent{OutputIndex: e.index(item), Item: &item}),
		e.event("response.content_part.added", nil, added),
	}
}

// Text is more of what the model thinks, and of its answer; either may be empty. Log-probabilities of thoughts are told
// nowhere.
func (e *ResponseEvents) Text(more ModelText, l []TokenLogprob) (list []Event) {
	r := e.Response
	e.thoughts.WriteString(more.Reasoning)
	e.text.WriteString(more.Text)
	if more.Reasoning != "" {
		item := r.thoughts("", "")
		list = e.open(item)
		about := e.content(item)
		about.Delta = &more.Reasoning
		list = append(list, e.event("response.reasoning_text.delta", nil, about))
		if more.Text == "" {
			return list
		}
	}
	if more.Text == "" && e.item == r.thoughts("", "").Type {
		return nil
	}
	e.logprobs = append(e.logprobs, l...)
	if l == nil {
		l = []TokenLogprob{}
	}
	list = append(list, e.message()...)
	about := e.content(r.message("", nil, ""))
	about.Delta, about.Logprobs = &more.Text, &l
	return append(list, e.event("response.output_text.delta", nil, about))
}

// message are the events that begin the message, unless it has begun, and end the thoughts before.
func (e *ResponseEvents) message() []Event {
	return append(e.endThoughts(), e.open(e.Response.message("", nil, ""))...)
}

// endThoughts are the events that end the thoughts, if they are under way.
func (e *ResponseEvents) endThoughts() []Event {
	item := e.Response.thoughts(e.thoughts.String(), StatusCompleted)
	if e.item != item.Type {
		return nil
	}
	part := &item.Content[0]
	text, whole := e.content(item), e.content(item)
	text.Text, whole.Part = &part.Text, part
	return []Event{
		e.event("response.reasoning_text.done", nil, text),
		e.event("response.content_part.done", nil, whole),
		e.event("response.output_item.done", nil, &itemEvent{OutputIndex: e.index(item), Item: &item}),
	}
}

// Finish are the last events; l are the log-probabilities that no Text had.
func (e *ResponseEvents) Finish(l []TokenLogprob, reason string, u Usage, now int64) []Event {
	r := e.Response
	list := e.message()
	e.logprobs = append(e.logprobs, l...)
	r.Finish(ModelText{e.thoughts.String(), e.text.String()}, e.logprobs, reason, u, now)
	item := &r.Output[len(r.Output)-1]
	part := &item.Content[0]
	text, whole := e.content(*item), e.content(*item)
	text.Text, text.Logprobs = &part.Text, &part.Logprobs
	whole.Part = part
	return append(list,
		e.event("response.output_text.done", nil, text),
		e.event("response.content_part.done", nil, whole),
		e.event("response.output_item.done", nil, &itemEvent{OutputIndex: e.index(*item), Item: item}),
		e.event("response."+r.Status, r, nil),
	)
}

// Fail is the last event of a response that breaks.
func (e *ResponseEvents) Fail(code, message string) Event {
	r := e.Response
	r.Status, r.Error = StatusFailed, &ResponseFault{Code: code, Message: message}
	if e.text.Len()+e.thoughts.Len() > 0 {
		r.Output = r.output(ModelText{e.thoughts.String(), e.text.String()}, e.logprobs, StatusIncomplete)
	}
	return e.event("response.failed", r, nil)
}
