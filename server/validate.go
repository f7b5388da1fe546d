package server

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/chat"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/vision"
)

// Limits that are part of the contract (mmserve.proto), the same on every server.
const (
	maxTemperature   = 2
	maxRequestID     = 128 // bytes
	maxStopBytes     = 256 // of one stop string
	maxPenalty       = 2   // presence and frequency, either sign
	maxRepetition    = 10
	maxBias          = 100 // either sign
	maxBiases        = 300
	maxAnswers       = 16
	maxStopIDs       = 16
	maxTopLogprobs   = 20
	maxMessages      = 2048
	maxParts         = 2048 // of all messages
	maxChoices       = 8192
	maxScored        = 64   // choices, and of these
	maxScoredTokens  = 1024 // together
	defaultMaxTokens = 256
)

// request is a GenerateRequest that was checked, in the words of the packages that work on it.
type request struct {
	prompt    fusion.Prompt
	images    []imagePart // in the order of the prompt
	maxTokens int         // 0: as many as defaultMaxTokens and the context allow
	sampling  decoder.Sampling
	stop      []string
	eos       []int32 // ids that end the answer
	ends      []int32 // these and the model's end-of-answer tokens if they are ignored: ids that have no text
	priority  batching.Priority
	tenant    string
	deadline  time.Time // zero if there is none
	n         int       // answers

	promptLogprobs, noDrafts bool
	scored                   []string // choices of which scores are wanted
	// constraint is not compiled yet; nil if there is none.
	constraint *pb.Constraint
}

// image is an encoded image and the path of the field it came in.
type imagePart struct {
	field  string
	data   []byte
	detail vision.Detail
}

// validate checks everything that can be known without work: no slot is taken and no image looked into. All
// violations are reported together, up to maxViolations.
func (s *Server) validate(in *pb.GenerateRequest) (*request, error) {
	if in.GetModel() != "" && in.GetModel() != s.model.Name {
		return nil, status.Errorf(codes.NotFound, "model: the name of %d bytes is not served here; this server has %s", len(in.GetModel()), quoted(s.models.Names()))
	}
	var v violations
	r := &request{sampling: s.model.Defaults}
	if !validID(in.GetRequestId()) {
		v.add("request_id", "%d bytes; want at most %d printable ASCII characters without spaces", len(in.GetRequestId()), maxRequestID)
	}
	s.validateInput(&v, r, in)
	if in.MaxTokens != nil {
		if n := in.GetMaxTokens(); n == 0 || int64(n) >= int64(s.model.MaxLen) {
			v.add("max_tokens", "%d; want 1 to %d: prompt and answer share a context of %d tokens", n, s.model.MaxLen-1, s.model.MaxLen)
		}
		r.maxTokens = int(in.GetMaxTokens())
	}
	s.validateSampling(&v, r, in.GetSampling())
	s.validateStop(&v, r, in.GetStop())
	s.validateEnd(&v, r, in)
	validateConstraint(&v, r, in)
	s.validateAnswers(&v, r, in)
	var ok bool
	if r.priority, ok = priorities[in.GetPriority()]; !ok {
		v.add("priority", "%d; want PRIORITY_INTERACTIVE, PRIORITY_DEFAULT or PRIORITY_BATCH", in.GetPriority())
	}
	if r.tenant = in.GetTenant(); !validID(r.tenant) {
		v.add("tenant", "%d bytes; want at most %d printable ASCII characters without spaces", len(r.tenant), maxRequestID)
	}
	if err := v.err(); err != nil {
		return nil, err
	}
	switch {
	case r.constraint != nil && s.model.Compiler == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "constraint: model %q takes none", s.model.Name)
	case r.prompt.Messages != nil && s.model.Prompter.Template == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "chat: model %q has no chat template; send a prompt", s.model.Name)
	case len(r.images) > 0 && s.model.Prompter.Preprocessor == nil:
		return nil, status.Errorf(codes.FailedPrecondition, "%s: model %q takes no images", r.images[0].field, s.model.Name)
	}
	return r, nil
}

var priorities = map[pb.Priority]batching.Priority{
	pb.Priority_PRIORITY_UNSPECIFIED: batching.PriorityDefault,
	pb.Priority_PRIORITY_INTERACTIVE: batching.PriorityInteractive,
	pb.Priority_PRIORITY_DEFAULT:     batching.PriorityDefault,
	pb.Priority_PRIORITY_BATCH:       batching.PriorityBatch,
}

// validateEnd settles which ids end the answer, and when.
func (s *Server) validateEnd(v *violations, r *request, in *pb.GenerateRequest) {
	if !in.GetIgnoreEos() {
		r.eos = s.model.EOS
	}
	if n := len(in.GetStopTokenIds()); n > maxStopIDs {
		v.add("stop_token_ids", "%d ids; at most %d are allowed", n, maxStopIDs)
		return
	}
	r.ends = s.model.EOS
	for i, id := range in.GetStopTokenIds() {
		if int64(id) >= int64(s.model.Vocab) {
			v.add(fmt.Sprintf("stop_token_ids[%d]", i), "%d; want ids below %d", id, s.model.Vocab)
			continue
		}
		r.eos, r.ends = append(slices.Clip(r.eos), int32(id)), append(slices.Clip(r.ends), int32(id))
	}
	if n := in.GetMinTokens(); n > 0 {
		if int64(n) >= int64(s.model.MaxLen) || in.MaxTokens != nil && n > in.GetMaxTokens() {
			v.add("min_tokens", "%d; want at most max_tokens and %d", n, s.model.MaxLen-1)
		}
		r.sampling.MinTokens, r.sampling.Stop = int(n), r.ends
	}
}

// validateAnswers settles how many answers are given and what is told of their tokens.
func (s *Server) validateAnswers(v *violations, r *request, in *pb.GenerateRequest) {
	switch places := s.engine.Places(); {
	case in.GetN() > maxAnswers:
		v.add("n", "%d; want at most %d", in.GetN(), maxAnswers)
	case int(in.GetN()) > places:
		v.add("n", "%d; want at most %d: this server has no more places for answers", in.GetN(), places)
	}
	r.n = int(max(in.GetN(), 1))
	switch top := in.GetTopLogprobs(); {
	case top > maxTopLogprobs:
		v.add("top_logprobs", "%d; want at most %d", top, maxTopLogprobs)
	case top > 0 && !in.GetLogprobs() && !in.GetPromptLogprobs():
		v.add("top_logprobs", "%d; want 0 without logprobs or prompt_logprobs", top)
	}
	r.sampling.Logprobs, r.sampling.TopLogprobs = in.GetLogprobs(), int(in.GetTopLogprobs())
	r.promptLogprobs = in.GetPromptLogprobs()
	r.noDrafts = s.options.NoDrafts
	if in.Speculative != nil {
		r.noDrafts = !in.GetSpeculative()
	}
}

func validateConstraint(v *violations, r *request, in *pb.GenerateRequest) {
	if in.Constraint == nil {
		return
	}
	r.constraint = in.GetConstraint()
	switch kind := r.constraint.GetKind().(type) {
	case nil:
		v.add("constraint", "empty; want choices, regex, json_schema or json_object")
	case *pb.Constraint_Choices:
		if len(kind.Choices.GetTexts()) == 0 {
			v.add("constraint.choices.texts", "none; want at least one")
		}
		if n := len(kind.Choices.GetTexts()); n > maxChoices {
			v.add("constraint.choices.texts", "%d texts; at most %d are allowed", n, maxChoices)
		}
		validateScores(v, r, kind.Choices)
	}
	if in.GetIgnoreEos() {
		v.add("ignore_eos", "true; want false with a constraint, which says where the answer ends")
	}
	if n := len(in.GetStopTokenIds()); n > 0 {
		v.add("stop_token_ids", "%d ids; want none with a constraint, which says where the answer ends", n)
	}
}

func validateScores(v *violations, r *request, in *pb.Choices) {
	if !in.GetScores() {
		return
	}
	texts := in.GetTexts()
	if n := len(texts); n > maxScored {
		v.add("constraint.choices.texts", "%d texts; at most %d are allowed with scores", n, maxScored)
		return
	}
	for i, text := range texts {
		if first := slices.Index(texts, text); first < i {
			v.add(fmt.Sprintf("constraint.choices.texts[%d]", i), "the same text as texts[%d]; want each once with scores", first)
		}
	}
	r.scored = texts
}

func validID(id string) bool {
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return len(id) <= maxRequestID
}

func (s *Server) validateInput(v *violations, r *request, in *pb.GenerateRequest) {
	text, parts := 0, 0
	switch input := in.GetInput().(type) {
	case *pb.GenerateRequest_Chat:
		if len(input.Chat.GetMessages()) == 0 {
			v.add("chat.messages", "none; want at least one")
		}
		if n := len(input.Chat.GetMessages()); n > maxMessages {
			v.add("chat.messages", "%d messages; at most %d are allowed", n, maxMessages)
			return
		}
		r.prompt.Messages = make([]chat.Message, 0, len(input.Chat.GetMessages()))
		for i, m := range input.Chat.GetMessages() {
			field := fmt.Sprintf("chat.messages[%d]", i)
			role, ok := roles[m.GetRole()]
			if !ok {
				v.add(field+".role", "%v; want ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT", m.GetRole())
			}
			if parts += len(m.GetParts()); parts > maxParts {
				v.add("chat.messages", "%d parts up to message %d; at most %d are allowed", parts, i, maxParts)
				return
			}
			list, n := validateParts(v, r, field+".parts", m.GetParts())
			r.prompt.Messages = append(r.prompt.Messages, chat.Message{Role: role, Parts: list})
			text += n
		}
		validateLast(v, r, input.Chat)
	case *pb.GenerateRequest_Prompt:
		if n := len(input.Prompt.GetParts()); n > maxParts {
			v.add("prompt.parts", "%d parts; at most %d are allowed", n, maxParts)
			return
		}
		r.prompt.Raw, text = validateParts(v, r, "prompt.parts", input.Prompt.GetParts())
	default:
		v.add("input", "none; want chat or prompt")
	}
	if text > s.options.MaxTextBytes {
		v.add("input", "%d bytes of text; this server takes at most %d in a request", text, s.options.MaxTextBytes)
	}
	if n, most := len(r.images), s.maxImages(); n > most && s.model.Prompter.Preprocessor != nil {
		v.add("input", "%d images; at most %d are taken in a request", n, most)
	}
}

// validateLast refuses an assistant's message at the end that is not to be continued: a new turn would follow it, which
// callers who fill in the beginning of an answer do not mean.
func validateLast(v *violations, r *request, in *pb.Chat) {
	last := len(in.GetMessages()) - 1
	if last < 0 {
		return
	}
	role := in.GetMessages()[last].GetRole()
	switch r.prompt.Continue = in.GetContinueFinalMessage(); {
	case r.prompt.Continue && role != pb.Role_ROLE_ASSISTANT:
		v.add("chat.continue_final_message", "true; want false, or a last message of ROLE_ASSISTANT")
	case !r.prompt.Continue && role == pb.Role_ROLE_ASSISTANT:
		v.add(fmt.Sprintf("chat.messages[%d].role", last), "ROLE_ASSISTANT in the last message; want another role, or continue_final_message to go on with it")
	}
}

var roles = map[pb.Role]string{
	pb.Role_ROLE_SYSTEM:    "system",
	pb.Role_ROLE_USER:      "user",
	pb.Role_ROLE_ASSISTANT: "assistant",
}

var details = map[pb.Detail]vision.Detail{
	pb.Detail_DETAIL_UNSPECIFIED: vision.DetailAuto,
	pb.Detail_DETAIL_AUTO:        vision.DetailAuto,
	pb.Detail_DETAIL_LOW:         vision.DetailLow,
	pb.Detail_DETAIL_HIGH:        vision.DetailHigh,
}

// validateParts also appends the images among the parts to r, and counts the bytes of text.
func validateParts(v *violations, r *request, field string, in []*pb.Part) (parts []chat.Part, text int) {
	if len(in) == 0 {
		v.add(field, "none; want at least one")
	}
	parts = make([]chat.Part, 0, len(in))
	for i, p := range in {
		switch content := p.GetContent().(type) {
		case *pb.Part_Text:
			text += len(content.Text)
			parts = append(parts, chat.Part{Text: content.Text})
		case *pb.Part_Image:
			at := fmt.Sprintf("%s[%d].image", field, i)
			if len(content.Image.GetData()) == 0 {
				v.add(at+".data", "empty; want the bytes of an image file")
			}
			detail, ok := details[content.Image.GetDetail()]
			if !ok {
				v.add(at+".detail", "%d; want DETAIL_AUTO, DETAIL_LOW or DETAIL_HIGH", content.Image.GetDetail())
			}
			parts = append(parts, chat.Part{Image: true})
			r.images = append(r.images, imagePart{field: at + ".data", data: content.Image.GetData(), detail: detail})
		default:
			v.add(fmt.Sprintf("%s[%d]", field, i), "empty; want text or image")
		}
	}
	return parts, text
}

func (s *Server) validateSampling(v *violations, r *request, in *pb.Sampling) {
	// The comparisons are written so that NaN fails them.
	if in != nil && in.Temperature != nil {
		if t := in.GetTemperature(); !(t >= 0 && t <= maxTemperature) {
			v.add("sampling.temperature", "%v; want 0 to %v", t, maxTemperature)
		}
		r.sampling.Temperature = in.GetTemperature()
	}
	if in != nil && in.TopK != nil {
		r.sampling.TopK = int(min(int64(in.GetTopK()), int64(s.model.Vocab)))
	}
	if in != nil && in.TopP != nil {
		if p := in.GetTopP(); !(p > 0 && p <= 1) {
			v.add("sampling.top_p", "%v; want more than 0 and at most 1", p)
		}
		r.sampling.TopP = in.GetTopP()
	}
	within := func(field string, value *float32, least, most float32, above bool, set *float32) {
		if value == nil {
			return
		}
		if x := *value; !(x >= least && x <= most) || above && x == least {
			from := "from"
			if above {
				from = "above"
			}
			v.add("sampling."+field, "%v; want %s %v up to %v", x, from, least, most)
		}
		*set = *value
	}
	if in != nil {
		within("min_p", in.MinP, 0, 1, false, &r.sampling.MinP)
		within("typical_p", in.TypicalP, 0, 1, true, &r.sampling.TypicalP)
		within("repetition_penalty", in.RepetitionPenalty, 0, maxRepetition, true, &r.sampling.RepetitionPenalty)
		within("presence_penalty", in.PresencePenalty, -maxPenalty, maxPenalty, false, &r.sampling.PresencePenalty)
		within("frequency_penalty", in.FrequencyPenalty, -maxPenalty, maxPenalty, false, &r.sampling.FrequencyPenalty)
		s.validateBias(v, r, in.GetLogitBias())
	}
	if in != nil && in.Seed != nil {
		r.sampling.Seed = in.GetSeed()
	} else {
		r.sampling.Seed = randomSeed()
	}
}

func (s *Server) validateBias(v *violations, r *request, bias map[uint32]float32) {
	if len(bias) > maxBiases {
		v.add("sampling.logit_bias", "%d ids; at most %d are allowed", len(bias), maxBiases)
		return
	}
	if len(bias) > 0 { // the model's own stay as they are
		r.sampling.LogitBias = maps.Clone(r.sampling.LogitBias)
	}
	for id, b := range bias {
		if int64(id) >= int64(s.model.Vocab) || !(b >= -maxBias && b <= maxBias) {
			v.add(fmt.Sprintf("sampling.logit_bias[%d]", id), "%v; want ids below %d and %d to %d", b, s.model.Vocab, -maxBias, maxBias)
			continue
		}
		if r.sampling.LogitBias == nil {
			r.sampling.LogitBias = map[int32]float32{}
		}
		r.sampling.LogitBias[int32(id)] = b
	}
}

// randomSeed stays below 2⁵³, so that a seed read back from JSON is the seed that was used.
func randomSeed() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:]) >> 11
}

func (s *Server) validateStop(v *violations, r *request, stop []string) {
	if len(stop) > s.options.MaxStop {
		v.add("stop", "%d stop strings; at most %d are allowed", len(stop), s.options.MaxStop)
		return
	}
	for i, t := range stop {
		if len(t) == 0 || len(t) > maxStopBytes {
			v.add(fmt.Sprintf("stop[%d]", i), "%d bytes; want 1 to %d", len(t), maxStopBytes)
		}
	}
	r.stop = stop
}

// maxImages is the smaller of the server's and the model's limit.
func (s *Server) maxImages() int {
	if s.model.MaxImages > 0 {
		return min(s.options.MaxImages, s.model.MaxImages)
	}
	return s.options.MaxImages
}
