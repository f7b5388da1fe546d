package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/transcript"
	"github.com/mmserve/mmserve/internal/folder"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// chatSetting is what /set can change.
type chatSetting struct {
	name, help string
	set        func(s *chatSession, value string) error // "" for the default
	show       func(s *chatSession) string              // "" for the default
}

// settings are all of them, as /set lists them.
var chatSettings = []chatSetting{
	whole("max_tokens", "most tokens of an answer", 1, math.MaxUint32,
		func(in *pb.GenerateRequest) **uint32 { return &in.MaxTokens }),
	number("temperature", "0 always takes the likeliest token", 0, 2,
		func(p *pb.Sampling) **float32 { return &p.Temperature }),
	number("top_p", "keep the likeliest tokens that reach this together", 1e-6, 1,
		func(p *pb.Sampling) **float32 { return &p.TopP }),
	whole("top_k", "keep this many of the likeliest tokens; 0 for all", 0, math.MaxInt32,
		func(in *pb.GenerateRequest) **uint32 { return &setSampling(in).TopK }),
	number("min_p", "keep tokens at least this likely, compared with the likeliest", 0, 1,
		func(p *pb.Sampling) **float32 { return &p.MinP }),
	whole("seed", "the same seed gives the same answer", 0, math.MaxUint64,
		func(in *pb.GenerateRequest) **uint64 { return &setSampling(in).Seed }),
	number("repetition_penalty", "above 1: fewer repetitions", 1e-6, 10,
		func(p *pb.Sampling) **float32 { return &p.RepetitionPenalty }),
	number("presence_penalty", "above 0: fewer tokens that were there", -2, 2,
		func(p *pb.Sampling) **float32 { return &p.PresencePenalty }),
	number("frequency_penalty", "above 0: fewer tokens that were there often", -2, 2,
		func(p *pb.Sampling) **float32 { return &p.FrequencyPenalty }),
	{"stop", "a text that ends the answer", func(s *chatSession, v string) error {
		if s.request.Stop = nil; v != "" {
			s.request.Stop = []string{v}
		}
		return nil
	}, func(s *chatSession) string { return strings.Join(s.request.Stop, ",") }},
	oneOf("detail", "how many tokens an image may cost", []string{"auto", "low", "high"},
		func(s *chatSession, v string) { s.detail = details[v] },
		func(s *chatSession) string {
			return map[pb.Detail]string{pb.Detail_DETAIL_LOW: "low", pb.Detail_DETAIL_HIGH: "high"}[s.detail]
		}),
	{"model", "which of the server's models answers", func(s *chatSession, v string) error {
		s.request.Model = v
		return nil
	}, func(s *chatSession) string { return s.request.Model }},
	oneOf("markdown", "render answers on the terminal", []string{"on", "off"},
		func(s *chatSession, v string) { s.view.source = v == "off" },
		func(s *chatSession) string { return onOff(!s.view.source) }),
	oneOf("counts", "tell what each answer took", []string{"on", "off"},
		func(s *chatSession, v string) { s.hidden = v == "off" }, func(s *chatSession) string { return onOff(!s.hidden) }),
}

func onOff(on bool) string { return map[bool]string{true: "on", false: "off"}[on] }

// number is a setting of a request's sampling.
func number(name, help string, least, most float32, field func(*pb.Sampling) **float32) chatSetting {
	return chatSetting{name, fmt.Sprintf("%s; %v to %v", help, least, most), func(s *chatSession, v string) error {
		p := field(setSampling(s.request))
		if *p = nil; v == "" {
			return nil
		}
		f, err := strconv.ParseFloat(v, 32)
		value := float32(f)
		if err != nil || !(value >= least && value <= most) { // NaN fails it
			return fmt.Errorf("want a number from %v to %v", least, most)
		}
		*p = &value
		return nil
	}, func(s *chatSession) string { return shown(*field(setSampling(s.request))) }}
}

// whole is a setting that is a whole number.
func whole[T uint32 | uint64](name, help string, least, most uint64, field func(*pb.GenerateRequest) **T) chatSetting {
	return chatSetting{name, help, func(s *chatSession, v string) error {
		p := field(s.request)
		if v == "" {
			*p = nil
			return nil
		}
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil || n < least || n > most {
			return fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		value := T(n)
		*p = &value
		return nil
	}, func(s *chatSession) string { return shown(*field(s.request)) }}
}

// oneOf is a setting with some values, the first of which is the default.
func oneOf(
	name, help string, values []string, set func(*chatSession, string), show func(*chatSession) string,
) chatSetting {
	return chatSetting{name, help + "; " + strings.Join(values, ", "), func(s *chatSession, v string) error {
		if v == "" {
			v = values[0]
		}
		if !slices.Contains(values, v) {
			return fmt.Errorf("want %s", strings.Join(values, " or "))
		}
		set(s, v)
		return nil
	}, func(s *chatSession) string { return show(s) }}
}

// shown is the text of a value, "" if there is none.
func shown[T any](p *T) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(*p)
}

// setSampling is the request's sampling, made if there is none.
func setSampling(in *pb.GenerateRequest) *pb.Sampling {
	if in.Sampling == nil {
		in.Sampling = new(pb.Sampling)
	}
	return in.Sampling
}

// change does what /set NAME VALUE says. A value that is refused changes nothing.
func (s *chatSession) change(arg string) error {
	name, value, _ := strings.Cut(arg, " ")
	value = strings.TrimSpace(value)
	names := make([]string, len(chatSettings))
	for i, o := range chatSettings {
		if names[i] = o.name; o.name != name {
			continue
		}
		was := o.show(s)
		if value == "" {
			return fmt.Errorf("/set %s: want a value, or default. It is %s", name, orDefault(was))
		}
		if value == "default" {
			value = ""
		}
		if err := o.set(s, value); err != nil {
			_ = o.set(s, was)
			return fmt.Errorf("/set %s %s: %w", name, printable(value), err)
		}
		s.note(fmt.Sprintf("%s is %s", name, orDefault(o.show(s))))
		return nil
	}
	if near := transcript.Nearest(name, names); near != "" {
		return fmt.Errorf("/set %s: there is no such setting. Did you mean %s?", printable(name), near)
	}
	return fmt.Errorf("/set %s: there is no such setting. There are %s", printable(name), strings.Join(names, ", "))
}

func orDefault(value string) string {
	if value == "" {
		return "the default"
	}
	return value
}

// constraintFlags say what an answer has to be.
type constraintFlags struct {
	schema  string
	choices []string
}

// maxSchema bounds the file of a schema.
const maxSchema = 1 << 20

// constraint is nil if there is none.
func (f constraintFlags) constraint() (*pb.Constraint, error) {
	if f.schema != "" && len(f.choices) > 0 {
		return nil, usageError{errors.New("--schema and --choices: want one of them")}
	}
	if len(f.choices) > 0 {
		return transcript.ChoicesConstraint(f.choices), nil
	}
	if f.schema == "" {
		return nil, nil
	}
	data, err := folder.ReadFile(f.schema, maxSchema)
	if err != nil {
		return nil, fmt.Errorf("schema %s: %w", printable(f.schema), reason(err))
	}
	return transcript.SchemaConstraint(string(data)), nil
}
