package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/mmserve/mmserve/decoder"
)

// settings are a transformers' GenerationConfig as its file writes it, without what is null.
type settings struct {
	file   string
	values map[string]json.RawMessage
}

// generation reads generation_config.json; where that is missing the settings are those of config.json, and what they
// leave open those of the model that it describes the decoder of. (transformers, GenerationConfig.from_model_config)
func (m *Model) generation() (settings, error) {
	s := settings{file: "generation_config.json", values: map[string]json.RawMessage{}}
	found, err := m.readJSON(s.file, &s.values)
	if err != nil {
		return s, err
	}
	if !found {
		s.file = "config.json"
		if _, err := m.readJSON(s.file, &s.values); err != nil {
			return s, err
		}
		for _, part := range []string{"decoder", "generator", "text_config"} {
			inner := map[string]json.RawMessage{}
			if raw, ok := s.values[part]; ok && json.Unmarshal(raw, &inner) != nil {
				continue // of some models these are no configurations
			}
			for key, value := range inner {
				if old, ok := s.values[key]; !ok || string(old) == "null" {
					s.values[key] = value
				}
			}
		}
	}
	maps.DeleteFunc(s.values, func(_ string, v json.RawMessage) bool { return string(v) == "null" })
	return s, nil
}

// read decodes a setting into v, which it leaves as it is where the file does not say.
func (s settings) read(key string, v any) error {
	raw, ok := s.values[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %s: %w", s.file, key, err)
	}
	return nil
}

// within reads a number from least to most; above leaves least itself out.
func (s settings) within(key string, least, most float32, above bool, v *float32) error {
	if err := s.read(key, v); err != nil {
		return err
	}
	if _, ok := s.values[key]; ok && !(*v >= least && *v <= most && !(above && *v == least)) {
		from := "from"
		if above {
			from = "above"
		}
		return fmt.Errorf("%s: %s is %v; want %s %v up to %v", s.file, key, *v, from, least, most)
	}
	return nil
}

// notApplied are the settings that change what transformers answers and that mmserve does not have, with the number
// that makes them do nothing; "" where any value does something. How long an answer gets is the request's alone.
var notApplied = map[string]string{
	"num_beams": "1", "num_beam_groups": "1", "diversity_penalty": "0", "penalty_alpha": "0", "guidance_scale": "1",
	"no_repeat_ngram_size": "0", "encoder_no_repeat_ngram_size": "0", "encoder_repetition_penalty": "1",
	"epsilon_cutoff": "0", "eta_cutoff": "0", "exponential_decay_length_penalty": "", "top_h": "",
	"force_words_ids": "", "forced_bos_token_id": "", "forced_eos_token_id": "", "begin_suppress_tokens": "",
	"min_length": "0", "stop_strings": "", "watermarking_config": "",
}

// defaults is how the files want tokens picked where a request does not say. It is greedy unless they say do_sample;
// what they then leave open is as transformers has it: temperature 1, the 50 likeliest tokens, all of their
// probability. ignored names settings that would change answers and are not applied.
func (m *Model) defaults(eos []int32) (s decoder.Sampling, ignored []string, err error) {
	g, err := m.generation()
	if err != nil {
		return s, nil, err
	}
	var sample bool
	var badWords [][]int32
	var biases []sequenceBias
	err = firstError(
		func() error { return g.within("repetition_penalty", 0, 10, true, &s.RepetitionPenalty) },
		func() error { return g.read("suppress_tokens", &s.Suppress) },
		func() error { return g.read("bad_words_ids", &badWords) },
		func() error { return g.read("sequence_bias", &biases) },
		func() error { return g.read("min_new_tokens", &s.MinTokens) },
		func() error { return g.read("do_sample", &sample) },
	)
	if err != nil {
		return s, nil, err
	}
	for _, word := range badWords {
		switch {
		case len(word) != 1:
			ignored = append(ignored, "bad_words_ids (of more than one token)")
		case !slices.Contains(eos, word[0]):
			s.Suppress = append(s.Suppress, word[0])
		}
	}
	for _, b := range biases {
		if len(b.ids) != 1 {
			ignored = append(ignored, "sequence_bias (of more than one token)")
			continue
		}
		if s.LogitBias == nil {
			s.LogitBias = map[int32]float32{}
		}
		s.LogitBias[b.ids[0]] = b.bias
	}
	if s.MinTokens < 0 {
		return s, nil, fmt.Errorf("%s: min_new_tokens is %d; want 0 or more", g.file, s.MinTokens)
	}
	if s.MinTokens > 0 {
		s.Stop = eos
	}
	for key, neutral := range notApplied {
		if raw, ok := g.values[key]; ok && !doesNothing(raw, neutral) {
			ignored = append(ignored, key)
		}
	}
	slices.Sort(ignored)
	ignored = slices.Compact(ignored)
	if !sample {
		return s, ignored, nil
	}
	s.Temperature, s.TopK, s.TopP = 1, 50, 1
	err = firstError(
		func() error { return g.within("temperature", 0, 100, false, &s.Temperature) },
		func() error { return g.read("top_k", &s.TopK) },
		func() error { return g.within("top_p", 0, 1, false, &s.TopP) },
		func() error { return g.within("min_p", 0, 1, false, &s.MinP) },
		func() error { return g.within("typical_p", 0, 1, true, &s.TypicalP) },
	)
	if err == nil && s.TopK < 0 {
		err = fmt.Errorf("%s: top_k is %d; want 0 or more", g.file, s.TopK)
	}
	return s, ignored, err
}

func firstError(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// doesNothing tells whether a setting has its neutral number, or is empty or off.
func doesNothing(raw json.RawMessage, neutral string) bool {
	switch string(raw) {
	case "[]", "{}", "false", `""`:
		return true
	}
	got, err := strconv.ParseFloat(string(raw), 64)
	want, wantErr := strconv.ParseFloat(neutral, 64)
	return err == nil && wantErr == nil && got == want
}

// sequenceBias is written [[id, …], bias].
type sequenceBias struct {
	ids  []int32
	bias float32
}

func (b *sequenceBias) UnmarshalJSON(raw []byte) error {
	return json.Unmarshal(raw, &[]any{&b.ids, &b.bias})
}
