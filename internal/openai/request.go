package openai

import (
	"math"
	"strconv"
)

// Request is what all requests for text may say. A nil pointer stands for the model's default.
type Request struct {
	Model string
	// Stream has the answer sent as it comes, and IncludeUsage its usage at the end.
	Stream, IncludeUsage bool
	// MaxTokens is max_completion_tokens, or else max_tokens; MaxTokensParam is which of them, "" for none.
	MaxTokens      *uint32
	MaxTokensParam string
	MinTokens      uint32
	// Sampling. TopK of 0 keeps all tokens. A negative Seed is as good as any.
	Temperature, TopP, MinP, TypicalP *float32
	TopK                              *uint32
	PresencePenalty, FrequencyPenalty *float32
	RepetitionPenalty                 *float32
	LogitBias                         map[uint32]float32
	Seed                              *uint64
	// Stop are strings, and StopTokenIDs tokens, that end the answer.
	Stop         []string
	StopTokenIDs []uint32
	// IncludeStop leaves the stop string in the answer, as vLLM's include_stop_str_in_output.
	IncludeStop bool
	IgnoreEOS   bool
	// N is the number of answers; 0 where the request does not say.
	N uint32
	// Logprobs asks for each token's log-probability, and those of the TopLogprobs likeliest.
	Logprobs    bool
	TopLogprobs uint32
	// Constraint is what the answer is held to; nil for nothing.
	Constraint *Constraint
	// Priority is vLLM's: what is below 0 goes first, what is above 0 last.
	Priority int64
	// Timings asks where the time went.
	Timings bool
	// Ignored names the fields that nothing here reads: bounded, but as the caller wrote them.
	Ignored []string
}

// inert are fields that may be there and change no answer.
var inert = []string{
	"user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
}

// request reads what all requests share.
func (o object) request() (r Request) {
	o.known(inert...)
	r.Model = o.str("model")
	r.Stream = o.boolean("stream")
	if s := o.sub("stream_options"); s != nil {
		r.IncludeUsage = s.boolean("include_usage")
		s.done()
		if !r.Stream {
			o.fault(o.path+"stream_options", CodeInvalidValue, "given without stream; want none, or stream to be true")
		}
	}
	for _, name := range []string{"max_tokens", "max_completion_tokens"} {
		if most := o.positive(name); most != nil {
			r.MaxTokens, r.MaxTokensParam = most, name
		}
	}
	if least := o.count("min_tokens"); least != nil {
		r.MinTokens = *least
	}
	o.sampling(&r)
	r.Stop = o.stop()
	r.StopTokenIDs = o.counts("stop_token_ids")
	r.IncludeStop, r.IgnoreEOS = o.boolean("include_stop_str_in_output"), o.boolean("ignore_eos")
	if n := o.positive("n"); n != nil {
		r.N = *n
	}
	if p := o.integer("priority", math.MinInt32, math.MaxInt32); p != nil {
		r.Priority = *p
	}
	r.Timings = o.boolean("timings")
	r.Constraint = o.constraint()
	return r
}

func (o object) sampling(r *Request) {
	r.Temperature, r.TopP = o.float("temperature"), o.float("top_p")
	r.MinP, r.TypicalP = o.float("min_p"), o.float("typical_p")
	r.PresencePenalty, r.FrequencyPenalty = o.float("presence_penalty"), o.float("frequency_penalty")
	r.RepetitionPenalty = o.float("repetition_penalty")
	if k := o.integer("top_k", -1, math.MaxInt32); k != nil {
		keep := uint32(max(*k, 0)) // vLLM's -1 keeps all
		r.TopK = &keep
	}
	if s := o.integer("seed", math.MinInt64, math.MaxInt64); s != nil {
		seed := uint64(*s)
		r.Seed = &seed
	}
	bias := o.sub("logit_bias")
	if bias == nil {
		return
	}
	r.LogitBias = make(map[uint32]float32, len(bias.node.list))
	for i := range bias.node.list {
		m := &bias.node.list[i]
		id, err := strconv.ParseUint(m.name, 10, 32)
		if err != nil {
			o.fault(o.path+"logit_bias", CodeInvalidValue, "a name that is no token id; want ids as names")
			return
		}
		value := o.reading.float(o.path+"logit_bias["+strconv.FormatUint(id, 10)+"]", m)
		if value == nil {
			return
		}
		r.LogitBias[uint32(id)] = *value
	}
}

// stop is a string or several.
func (o object) stop() []string {
	if n := o.get("stop"); n != nil && n.kind == kindText {
		return []string{n.text()}
	} else if n != nil && n.kind != kindList {
		o.wrongType(o.path+"stop", n, "a string or a list of strings")
		return nil
	}
	return o.strs("stop")
}
