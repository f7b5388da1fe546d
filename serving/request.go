package serving

import (
	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/vision"
)

// Request is what a caller asks for, before it is checked. Fields that are nil take the model's or the contract's
// default; violations name them as the contract does (mmserve.proto).
type Request struct {
	// ID names the request in logs and traces; one is made where it is empty. Model is the default where it is empty.
	ID, Model string
	// Tenant shares capacity with other tenants. Without one the request counts for Peer, the caller's address.
	Tenant, Peer string

	// Turn says how Chat goes on with what the server keeps; nil: the request stands for itself.
	Turn *Turn
	// Subject is the person of the tenant whose request it is; empty for nobody in particular.
	Subject string

	// Chat or Prompt is set.
	Chat   *Chat
	Prompt *Prompt

	MaxTokens *uint32
	MinTokens uint32
	Sampling  Sampling
	// Stop are strings, and StopTokenIDs tokens, that end the answer and are left out of it.
	Stop         []string
	StopTokenIDs []uint32
	// IncludeStop leaves the stop string that ended an answer in it.
	IncludeStop bool
	IgnoreEOS   bool
	Constraint  *Constraint
	// N is the number of answers; 0 is 1.
	N                        uint32
	Logprobs, PromptLogprobs bool
	TopLogprobs              uint32
	// TokenIDs tells the ids of the prompt's and the answers' tokens.
	TokenIDs bool
	// Speculative says whether tokens may be guessed; nil: as the server does.
	Speculative *bool
	Priority    batching.Priority

	// Streams says that the answer is sent as it comes. Where it is one message instead, MaxAnswerBytes bounds
	// that; 0 does not.
	Streams        bool
	MaxAnswerBytes int
	// Unread is what an edge could not read of the request, to be reported with what is found here.
	Unread Violations
	// Prepared, unless nil, is called once the images are decoded: nothing large is left of the request then.
	Prepared func()
}

// Chat is a conversation, for the model's chat template.
type Chat struct {
	Messages []Message
	// Tools is a JSON list of what the model may call, as OpenAI's API has it; nil for none.
	Tools []byte
	// Continue has the answer go on with the last message, which is an assistant's.
	Continue bool

	// Of the messages, unkept at the beginning are the request's, and history after these a conversation's.
	unkept, history int
}

// Turn says how a request goes on with a conversation that the server keeps.
type Turn struct {
	// Conversation is its id, or Previous the ID of a request whose turn was kept: the history is what there was up to its
	// answer. With neither, the conversation is a new one.
	Conversation, Previous string
	// Keep has the request's messages and the answer kept, under the request's ID.
	Keep bool
	// Unkept counts messages at the beginning that are instructions for this request alone.
	Unkept int
}

// Message is one turn: of "system", "user", "assistant" or "tool".
type Message struct {
	Role  string
	Parts []Part
	// ToolCalls is a JSON list of what an assistant called. ToolCallID says which call a tool's message answers, and
	// ToolName what was called.
	ToolCalls            []byte
	ToolCallID, ToolName string
}

// Prompt is what stands before the answer as it is, without a template.
type Prompt struct{ Parts []Part }

// Part is an image, tokens of a Prompt where IDs is not nil, or else a text.
type Part struct {
	Text  string
	Image *Image
	IDs   []uint32
}

// Image is an image file. One of Data, Digest and URL says where it is.
type Image struct {
	Data   []byte
	Detail vision.Detail
	// Digest is that of a file that the tenant uploaded before, URL where one is to be fetched.
	Digest, URL string
}

// ConstraintKind says what an answer is held to.
type ConstraintKind int

const (
	// NoConstraint is refused: a constraint has a kind.
	NoConstraint ConstraintKind = iota
	// Choices has the answer be one of texts.
	Choices
	// Regex has it match a regular expression.
	Regex
	// JSONSchema has it be JSON that a schema allows.
	JSONSchema
	// JSONObject has it be any JSON object.
	JSONObject
)

// Constraint is what an answer is held to.
type Constraint struct {
	Kind ConstraintKind
	// Choices are the texts, and Scores asks for the probability of each.
	Choices []string
	Scores  bool
	// Text is the expression or the schema.
	Text string
}
