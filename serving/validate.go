package serving

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/vision"
)

// Limits that are part of the contract (mmserve.proto), the same on every server, and that edges count by before
// they make a Request.
const (
	// MaxIDBytes bounds request_id and tenant.
	MaxIDBytes = 128
	// MaxMessages of a conversation, and MaxParts of all its messages.
	MaxMessages, MaxParts = 2048, 2048
	// MaxPromptIDs are the most token ids in one prompt.
	MaxPromptIDs = 262144
	// MaxStopIDs, MaxBiases and MaxChoices bound their lists.
	MaxStopIDs, MaxBiases, MaxChoices = 16, 300, 8192
)

// Limits that are part of the contract, too.
const (
	maxStopBytes     = 256 // of one stop string
	maxAnswers       = 16
	maxTopLogprobs   = 20
	maxScored        = 64   // choices, and of these
	maxScoredTokens  = 1024 // together
	defaultMaxTokens = 256
)

// checked is a Request that was checked, in the words of the packages that work on it.
type checked struct {
	prompt    fusion.Prompt
	images    []imagePart // in the order of the prompt
	maxTokens int         // 0: as many as defaultMaxTokens and the context allow
	sampling  decoder.Sampling
	stop      []string
	eos       []int32 // ids that end the answer
	ends      []int32 // these and the model's end-of-answer tokens if they are ignored: ids that have no text
	priority  batching.Priority
	tenant    string
	peer      string    // the caller's address
	caller    string    // who it counts as without a tenant
	deadline  time.Time // zero if there is none
	text      int       // bytes of text in the prompt
	n         int       // answers

	promptLogprobs, noDrafts bool
	tokenIDs, includeStop    bool
	thinks                   bool     // the answer begins amid thoughts
	scored                   []string // choices of which scores are wanted
	scoreTokens              int      // that their scores take to generate, at most
	// constraint is not compiled yet; nil if there is none.
	constraint *Constraint
}

// imagePart is an encoded image and the path of the field it came in. Before it has data it may have a digest or a URL.
type imagePart struct {
	field  string
	data   []byte
	digest *media.Digest
	url    string
	detail vision.Detail
	// smaller makes the image cost less than the model's own preprocessor does; nil: that one.
	smaller vision.Preprocessor
}

// validate checks everything that can be known without work: no slot is taken and no image looked into. All
// violations are reported together, up to maxViolations.
func (l *life) validate(in *Request) (*checked, error) {
	if in.Model != "" && in.Model != l.model.Name {
		return nil, NotServed("model", in.Model, l.models.namesOf(l.identity))
	}
	v := slices.Clip(in.Unread)
	r := &checked{
		sampling: l.model.Defaults, priority: in.Priority, tenant: in.Tenant, peer: in.Peer,
		caller:   l.callerOf(in.Peer),
		tokenIDs: in.TokenIDs, includeStop: in.IncludeStop,
	}
	validateName(&v, "request_id", in.ID)
	l.validateInput(&v, r, in)
	if in.MaxTokens != nil {
		if n := *in.MaxTokens; n == 0 || int64(n) >= int64(l.model.MaxLen) {
			v.Add("max_tokens", "%d; want 1 to %d: prompt and answer share a context of %d tokens", n, l.model.MaxLen-1, l.model.MaxLen)
		}
		r.maxTokens = int(*in.MaxTokens)
	}
	l.validateSampling(&v, r, &in.Sampling)
	l.validateStop(&v, r, in.Stop)
	l.validateEnd(&v, r, in)
	validateConstraint(&v, r, in)
	l.used.allows(&v, in.Priority)
	l.validateAnswers(&v, r, in)
	validateName(&v, "tenant", in.Tenant)
	validateName(&v, "subject", in.Subject)
	if err := v.Err(); err != nil {
		return nil, err
	}
	return r, l.able(r)
}

// validateName checks what a caller calls the request, or itself.
func validateName(v *Violations, field, name string) {
	if !validID(name) {
		v.Add(field, idText, len(name), MaxIDBytes)
	}
}

// able says what of a request the model does not do.
func (l *life) able(r *checked) error {
	switch {
	case r.constraint != nil && l.model.Compiler == nil:
		return failed(FailedPrecondition, "constraint: model %q takes none", l.model.Name)
	case r.prompt.Messages != nil && l.model.Prompter.Template == nil:
		return failed(FailedPrecondition, "chat: model %q has no chat template; send a prompt", l.model.Name)
	case len(r.prompt.Tools) > 0 && !l.model.Prompter.Template.Tools():
		return invalidFor(ErrNoTools, "chat.tools", "given; want none: the chat template of model %q shows no tools", l.model.Name)
	case len(r.images) > 0 && l.model.Prompter.Preprocessor == nil:
		return failed(FailedPrecondition, "%s: model %q takes no images", r.images[0].field, l.model.Name)
	}
	return nil
}

// NotServed is the error of a field with a name that is none of those that are served.
func NotServed(field, name string, served []string) error {
	return failed(NotFound, "%s: the name of %d bytes is not served here; this server has %s", field, len(name), quoted(served))
}

// quoted lists names for a message.
func quoted(names []string) string {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = strconv.Quote(name)
	}
	return strings.Join(list, ", ")
}

// validateEnd settles which ids end the answer, and when.
func (l *life) validateEnd(v *Violations, r *checked, in *Request) {
	if !in.IgnoreEOS {
		r.eos = l.model.EOS
	}
	if n := len(in.StopTokenIDs); n > MaxStopIDs {
		v.Add("stop_token_ids", "%d ids; at most %d are allowed", n, MaxStopIDs)
		return
	}
	r.ends = l.model.EOS
	for i, id := range in.StopTokenIDs {
		if int64(id) >= int64(l.model.Vocab) {
			v.Add(fmt.Sprintf("stop_token_ids[%d]", i), "%d; want ids below %d", id, l.model.Vocab)
			continue
		}
		r.eos, r.ends = append(slices.Clip(r.eos), int32(id)), append(slices.Clip(r.ends), int32(id))
	}
	if n := in.MinTokens; n > 0 {
		most := int64(l.model.MaxLen - 1)
		if in.MaxTokens != nil {
			most = min(most, int64(*in.MaxTokens))
		}
		if int64(n) > most {
			v.Add("min_tokens", "%d; want at most %d, which is the most that the answer may have", n, most)
		}
		r.sampling.MinTokens, r.sampling.Stop = int(n), r.ends
	}
}

// validateAnswers settles how many answers are given and what is told of their tokens.
func (l *life) validateAnswers(v *Violations, r *checked, in *Request) {
	switch places := l.engine.Places(); {
	case in.N > maxAnswers:
		v.Add("n", "%d; want at most %d", in.N, maxAnswers)
	case int(in.N) > places:
		v.Add("n", "%d; want at most %d: this server has no more places for answers", in.N, places)
	}
	r.n = int(max(in.N, 1))
	switch top := in.TopLogprobs; {
	case top > maxTopLogprobs:
		v.Add("top_logprobs", "%d; want at most %d", top, maxTopLogprobs)
	case top > 0 && !in.Logprobs && !in.PromptLogprobs:
		v.Add("top_logprobs", "%d; want 0 without logprobs or prompt_logprobs", top)
	}
	r.sampling.Logprobs, r.sampling.TopLogprobs = in.Logprobs, int(in.TopLogprobs)
	r.promptLogprobs = in.PromptLogprobs
	r.noDrafts = l.options.NoDrafts
	if in.Speculative != nil {
		r.noDrafts = !*in.Speculative
	}
}

func validateConstraint(v *Violations, r *checked, in *Request) {
	if in.Constraint == nil {
		return
	}
	r.constraint = in.Constraint
	switch in.Constraint.Kind {
	case NoConstraint:
		v.Add("constraint", "empty; want choices, regex, json_schema or json_object")
	case Choices:
		if len(in.Constraint.Choices) == 0 {
			v.Add("constraint.choices.texts", "none; want at least one")
		}
		if n := len(in.Constraint.Choices); n > MaxChoices {
			v.Add("constraint.choices.texts", "%d texts; at most %d are allowed", n, MaxChoices)
		}
		validateScores(v, r, in.Constraint)
	}
	if in.IgnoreEOS {
		v.Add("ignore_eos", "true; want false with a constraint, which says where the answer ends")
	}
	if n := len(in.StopTokenIDs); n > 0 {
		v.Add("stop_token_ids", "%d ids; want none with a constraint, which says where the answer ends", n)
	}
}

func validateScores(v *Violations, r *checked, in *Constraint) {
	if !in.Scores {
		return
	}
	texts := in.Choices
	if n := len(texts); n > maxScored {
		v.Add("constraint.choices.texts", "%d texts; at most %d are allowed with scores", n, maxScored)
		return
	}
	for i, text := range texts {
		if first := slices.Index(texts, text); first < i {
			v.Add(fmt.Sprintf("constraint.choices.texts[%d]", i), "the same text as texts[%d]; want each once with scores", first)
		}
	}
	r.scored = texts
	for _, text := range texts { // with and without a space before it
		r.scoreTokens += 2 * (2 + len(text)/bytesPerToken)
	}
}

// ValidID says whether request_id and tenant may be id.
func ValidID(id string) bool { return validID(id) }

// idText is what is wrong with an id that is none.
const idText = "%d bytes; want at most %d printable ASCII characters without spaces"

func validID(id string) bool {
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(id) <= MaxIDBytes
}

func (l *life) validateInput(v *Violations, r *checked, in *Request) {
	text := 0
	switch {
	case in.Chat != nil:
		text = l.validateChat(v, r, in.Chat)
	case in.Prompt == nil:
		v.Add("input", "none; want chat or prompt")
	case len(in.Prompt.Parts) > MaxParts:
		v.Add("prompt.parts", "%d parts; at most %d are allowed", len(in.Prompt.Parts), MaxParts)
	default:
		r.prompt.Raw, text = l.validateParts(v, r, "prompt.parts", in.Prompt.Parts)
		l.validateTokens(v, r, in.Prompt.Parts)
	}
	r.text = text
	for _, ids := range r.prompt.Tokens {
		r.text += bytesPerToken * len(ids)
	}
	if text > l.options.MaxTextBytes {
		v.Add("input", "%d bytes of text; this server takes at most %d in a request", text, l.options.MaxTextBytes)
	}
	if n, most := len(r.images), l.maxImages(); n > most && l.model.Prompter.Preprocessor != nil {
		v.Add("input", "%d images; at most %d are taken in a request", n, most)
	}
}

// validateTokens takes the tokens among a prompt's parts.
func (l *life) validateTokens(v *Violations, r *checked, in []Part) {
	total := 0
	for i, p := range in {
		if p.IDs == nil {
			continue
		}
		field := fmt.Sprintf("prompt.parts[%d].token_ids.ids", i)
		if total += len(p.IDs); total > MaxPromptIDs {
			v.Add(field, "%d ids up to here; at most %d are allowed", total, MaxPromptIDs)
			return
		}
		if r.prompt.Tokens == nil {
			r.prompt.Tokens = map[int][]int32{}
		}
		r.prompt.Tokens[i] = l.validateIDs(v, field, p.IDs)
	}
}

// validateIDs refuses ids that the model has no embedding for, and those of an image's positions: they would stand for
// an image that is not there.
func (l *life) validateIDs(v *Violations, field string, in []uint32) []int32 {
	if len(in) == 0 {
		v.Add(field, "none; want at least one")
	}
	image := int64(-1)
	if p := l.model.Prompter; p.Preprocessor != nil {
		image = int64(p.Layout.ImageTokenID)
	}
	ids := make([]int32, len(in))
	for i, id := range in {
		switch {
		case int64(id) >= int64(l.model.Vocab):
			v.Add(fmt.Sprintf("%s[%d]", field, i), "%d; want ids below %d", id, l.model.Vocab)
			return nil
		case int64(id) == image:
			v.Add(fmt.Sprintf("%s[%d]", field, i), "%d, which stands for an image; want images as parts of their own", id)
			return nil
		}
		ids[i] = int32(id)
	}
	return ids
}

// validateChat counts the bytes of text.
func (l *life) validateChat(v *Violations, r *checked, in *Chat) (text int) {
	if len(in.Messages) == 0 {
		v.Add("chat.messages", "none; want at least one")
	}
	if n := len(in.Messages); n > MaxMessages {
		v.Add("chat.messages", "%d messages; at most %d are allowed", n, MaxMessages)
		return 0
	}
	parts := 0
	r.prompt.Messages = make([]chat.Message, 0, len(in.Messages))
	for i, m := range in.Messages {
		if parts += len(m.Parts); parts > MaxParts {
			v.Add("chat.messages", "%d parts up to message %d; at most %d are allowed", parts, i, MaxParts)
			return text
		}
		list, n := l.validateParts(v, r, in.field(i)+".parts", m.Parts)
		r.prompt.Messages = append(r.prompt.Messages, chat.Message{
			Role: m.Role, Parts: list, ToolCalls: m.ToolCalls, ToolCallID: m.ToolCallID, ToolName: m.ToolName,
		})
		text += n + len(m.ToolCalls) + len(m.ToolCallID) + len(m.ToolName)
	}
	if r.prompt.Tools = in.Tools; in.Continue && len(in.Tools) > 0 {
		v.Add("chat.tools", "given; want none with continue_final_message")
	}
	text += len(in.Tools)
	validateLast(v, r, in)
	return text
}

// field names a message as the request has it.
func (c *Chat) field(i int) string {
	switch {
	case i < c.unkept:
	case i < c.unkept+c.history:
		return fmt.Sprintf("conversation.messages[%d]", i-c.unkept)
	default:
		i -= c.history
	}
	return fmt.Sprintf("chat.messages[%d]", i)
}

// validateLast refuses an assistant's message at the end that is not to be continued: a new turn would follow it, which
// callers who fill in the beginning of an answer do not mean.
func validateLast(v *Violations, r *checked, in *Chat) {
	last := len(in.Messages) - 1
	if last < 0 {
		return
	}
	role := in.Messages[last].Role
	switch r.prompt.Continue = in.Continue; {
	case in.Continue && role != assistant:
		v.Add("chat.continue_final_message", "true; want false, or a last message of the assistant's")
	case !in.Continue && role == assistant:
		v.Add(in.field(last)+".role",
			"the assistant's in the last message; want another role, or continue_final_message to go on with it")
	}
}

// assistant is the role of the model's own messages.
const assistant = "assistant"

// validateParts also appends the images among the parts to r, and counts the bytes of text.
func (l *life) validateParts(v *Violations, r *checked, field string, in []Part) (parts []chat.Part, text int) {
	if len(in) == 0 {
		v.Add(field, "none; want at least one")
	}
	parts = make([]chat.Part, 0, len(in))
	for i, p := range in {
		if p.IDs != nil && r.prompt.Messages != nil {
			v.Add(fmt.Sprintf("%s[%d].token_ids", field, i), "%d ids; want text or an image: a chat is written by the model's template", len(p.IDs))
		}
		if p.Image == nil {
			text += len(p.Text)
			parts = append(parts, chat.Part{Text: p.Text})
			continue
		}
		parts = append(parts, chat.Part{Image: true})
		r.images = append(r.images, l.validateImage(v, fmt.Sprintf("%s[%d].image", field, i), p.Image))
	}
	return parts, text
}

// validateImage settles where the bytes of an image come from.
func (l *life) validateImage(v *Violations, field string, in *Image) imagePart {
	part := imagePart{field: field + ".data", data: in.Data, detail: in.Detail}
	given := 0
	for _, n := range []int{len(in.Data), len(in.Digest), len(in.URL)} {
		given += min(n, 1)
	}
	switch {
	case given == 0:
		v.Add(part.field, "empty; want the bytes of an image file, or a digest or a URL beside it")
	case given > 1:
		v.Add(field, "%d of data, digest and url; want one", given)
	case in.Digest != "":
		part.field = field + ".digest"
		d, err := media.ParseDigest(in.Digest)
		switch {
		case l.options.Media == nil:
			v.Add(part.field, "%v", mediaOff())
		case err != nil:
			v.Add(part.field, "%v", err)
		}
		part.digest = &d
	case in.URL != "":
		part.field, part.url = field+".url", in.URL
		if l.options.Fetcher == nil || l.options.Media == nil {
			v.Add(part.field, "%v", urlsOff())
		}
	}
	return part
}

func (l *life) validateStop(v *Violations, r *checked, stop []string) {
	if len(stop) > l.options.MaxStop {
		v.Add("stop", "%d stop strings; at most %d are allowed", len(stop), l.options.MaxStop)
		return
	}
	for i, t := range stop {
		if len(t) == 0 || len(t) > maxStopBytes {
			v.Add(fmt.Sprintf("stop[%d]", i), "%d bytes; want 1 to %d", len(t), maxStopBytes)
		}
	}
	r.stop = stop
}

// maxImages is the smaller of the server's and the model's limit.
func (l *life) maxImages() int {
	if l.model.MaxImages > 0 {
		return min(l.options.MaxImages, l.model.MaxImages)
	}
	return l.options.MaxImages
}
