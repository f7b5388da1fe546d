package serving

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"maps"
)

// Bounds of what a request may ask for.
const (
	maxTemperature = 2
	maxPenalty     = 2 // presence and frequency, either sign
	maxRepetition  = 10
	maxBias        = 100 // either sign
)

// Sampling says how the next token is picked. What is nil is the model's own.
type Sampling struct {
	Temperature, TopP, MinP, TypicalP *float32
	TopK                              *uint32
	RepetitionPenalty                 *float32
	PresencePenalty, FrequencyPenalty *float32
	LogitBias                         map[uint32]float32
	Seed                              *uint64
}

// validateSampling notes what is out of range, and settles how r samples: as the model does where
// the request is silent.
func (l *life) validateSampling(v *Violations, r *checked, in *Sampling) {
	// The comparisons are written so that NaN fails them.
	if in.Temperature != nil {
		if t := *in.Temperature; !(t >= 0 && t <= maxTemperature) {
			v.Add("sampling.temperature", "%v; want 0 to %v", t, maxTemperature)
		}
		r.sampling.Temperature = *in.Temperature
	}
	if in.TopK != nil {
		r.sampling.TopK = int(min(int64(*in.TopK), int64(l.model.Vocab)))
	}
	if in.TopP != nil {
		if p := *in.TopP; !(p > 0 && p <= 1) {
			v.Add("sampling.top_p", "%v; want more than 0 and at most 1", p)
		}
		r.sampling.TopP = *in.TopP
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
			v.Add("sampling."+field, "%v; want %s %v up to %v", x, from, least, most)
		}
		*set = *value
	}
	within("min_p", in.MinP, 0, 1, false, &r.sampling.MinP)
	within("typical_p", in.TypicalP, 0, 1, true, &r.sampling.TypicalP)
	within("repetition_penalty", in.RepetitionPenalty, 0, maxRepetition, true, &r.sampling.RepetitionPenalty)
	within("presence_penalty", in.PresencePenalty, -maxPenalty, maxPenalty, false, &r.sampling.PresencePenalty)
	within("frequency_penalty", in.FrequencyPenalty, -maxPenalty, maxPenalty, false, &r.sampling.FrequencyPenalty)
	l.validateBias(v, r, in.LogitBias)
	if in.Seed != nil {
		r.sampling.Seed = *in.Seed
	} else {
		r.sampling.Seed = randomSeed()
	}
}

func (l *life) validateBias(v *Violations, r *checked, bias map[uint32]float32) {
	if len(bias) > MaxBiases {
		v.Add("sampling.logit_bias", "%d ids; at most %d are allowed", len(bias), MaxBiases)
		return
	}
	if len(bias) > 0 { // the model's own stay as they are
		r.sampling.LogitBias = maps.Clone(r.sampling.LogitBias)
	}
	for id, b := range bias {
		if int64(id) >= int64(l.model.Vocab) || !(b >= -maxBias && b <= maxBias) {
			v.Add(fmt.Sprintf("sampling.logit_bias[%d]", id), "%v; want ids below %d and %d to %d", b, l.model.Vocab, -maxBias, maxBias)
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
