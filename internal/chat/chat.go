// Package chat turns the messages of a conversation into the prompt text of a model,
// by the model's own Jinja chat template.
//
// What a user typed never becomes a special token or the place of an image: it is
// marked with guards that a tokenizer must not read across. Render and Raw put them,
// and Prompt describes them.
package chat

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/mitsuhiko/minijinja/minijinja-go/v2"
	"github.com/mitsuhiko/minijinja/minijinja-go/v2/syntax"
	"github.com/mitsuhiko/minijinja/minijinja-go/v2/value"
)

// Bounds on what a template may be and do. The longest known template has 30 kB, and
// renders a message in about a hundred units of fuel.
const (
	maxSource = 1 << 20   // bytes of a template
	maxPrompt = 64 << 20  // bytes of a prompt
	maxFuel   = 2_000_000 // expressions and statements evaluated for one prompt
)

// ErrMessages is the error of a conversation that cannot be rendered for a reason its
// author can mend: the template's own raise_exception ("roles must alternate"), or
// parts that the template has no place for.
var ErrMessages = errors.New("conversation not accepted by the chat template")

// Part is one part of a message: a text, or the place of an image.
type Part struct {
	Image bool
	Text  string // of a part that is not an image
}

// Message is one turn of a conversation.
type Message struct {
	// Role is "system", "user" or "assistant", or another that the template knows. It
	// is given to the template as it is: it must not be a text that a user typed.
	Role  string
	Parts []Part
}

// Options are what a template needs to know of the model's tokenizer and processor.
type Options struct {
	// BOS, EOS, Unk and Pad are the texts of the special tokens, which the template
	// knows as bos_token and so on. One that is empty is undefined there.
	BOS, EOS, Unk, Pad string
	// Placeholder stands for an image in the prompt: what the template writes for an
	// image part, or what is put in its place if the template takes only strings.
	// It is guarded. Empty if the model takes no images.
	Placeholder string
	// Guarded are the strings that a user's text must not be able to form: the
	// contents of added tokens. A string of a single character cannot be guarded.
	Guarded []string
	// Now is the clock of strftime_now; nil means time.Now.
	Now func() time.Time
}

// Prompt is the text of a prompt.
type Prompt struct {
	Text string
	// Guard is the rune that marks guarded places in Text, or 0 if there are none.
	// It is no part of the prompt: a tokenizer removes it, after it made sure that no
	// added token is read across a place where it was.
	Guard rune
}

// Template is a chat template, ready to render. Its methods may be called concurrently.
type Template struct {
	template *minijinja.Template
	guards   guards
	options  Options
	// joined has the roles whose messages the template wants as one string; of the
	// others it wants a list of parts.
	joined map[string]bool
}

// Parse reads a Jinja chat template. It refuses one that needs what is not supported,
// and one that does not show a user's text or, with a Placeholder, image.
//
// Templates take a message's content either as a list of parts or as a string, some
// both, and some differently for the system message. Parse finds out for each role by
// rendering a probe: if the texts of a list appear as they are, with one placeholder
// between them, it is a list, otherwise a string.
func Parse(source string, o Options) (*Template, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("chat template: has %d bytes; at most %d are allowed", len(source), maxSource)
	}
	if strings.ContainsFunc(source, isGuard) {
		return nil, errors.New("chat template: holds a noncharacter of U+FDD0..U+FDEF, which are used as marks")
	}
	guards, err := newGuards(append([]string{o.Placeholder}, o.Guarded...))
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	t := &Template{guards: guards, options: o, joined: make(map[string]bool)}
	if err := t.compile(source); err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	for _, role := range []string{"user", "assistant", "system"} {
		if err := t.probe(role); err != nil {
			if role == "user" {
				return nil, fmt.Errorf("chat template: does not show a user's message: %w", err)
			}
			// It refuses this role whatever its form, or leaves it out.
			t.joined[role] = t.joined["user"]
		}
	}
	return t, nil
}

func (t *Template) compile(source string) (err error) {
	defer recoverTo(&err)
	env := minijinja.NewEnvironment()
	env.SetWhitespace(syntax.WhitespaceConfig{TrimBlocks: true, LstripBlocks: true})
	env.SetAutoEscapeFunc(func(string) minijinja.AutoEscape { return minijinja.AutoEscapeNone })
	fuel := uint64(maxFuel)
	env.SetFuel(&fuel)
	install(env)
	env.AddFunction("strftime_now", func(_ *minijinja.State, args []val, _ kwargs) (val, error) {
		s, err := strftime(t.options.Now(), arguments{args: args}.str(0))
		return value.FromString(s), err
	})

	empty, err := env.TemplateFromString("")
	if err != nil {
		return err
	}
	known, err := empty.EvalToState(nil)
	if err != nil {
		return err
	}
	rewritten, err := rewrite(source, func(kind, name string) error {
		ok := true
		switch kind {
		case "filter":
			_, ok = known.GetFilter(name)
		case "test":
			_, ok = known.GetTest(name)
		case "method":
			ok = !slices.Contains(missingMethods, name)
		}
		if !ok {
			return fmt.Errorf("%s %q is not supported", kind, name)
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.template, err = env.TemplateFromString(rewritten)
	return err
}

// probe sets how the template wants the messages of role.
func (t *Template) probe(role string) error {
	// The texts hold a line end, so that a list that is printed as such shows them escaped.
	const head, tail = "probe\nhead", "probe\ntail"
	ask := Message{Role: "user", Parts: []Part{{Text: "x"}}}
	message := Message{Role: role, Parts: []Part{{Text: head}, {Text: tail}}}
	if role == "user" && t.options.Placeholder != "" {
		message.Parts = slices.Insert(message.Parts, 1, Part{Image: true})
	}
	conversation := map[string][]Message{
		"user":      {message},
		"assistant": {ask, message, ask},
		"system":    {message, ask},
	}[role]
	var err error
	for _, asString := range []bool{false, true} {
		t.joined[role] = asString
		var p Prompt
		if p, err = t.Render(conversation); err != nil {
			continue
		}
		text := mark{guard: p.Guard}.plain(p.Text)
		if i := strings.Index(text, head); i >= 0 && strings.Contains(text[i:], tail) {
			return nil
		}
		err = errors.New("its text is not in the prompt")
	}
	return err
}

// Render returns the prompt for messages, up to where the assistant is to speak. It
// returns an error that wraps ErrMessages if the fault is in the messages.
func (t *Template) Render(messages []Message) (p Prompt, err error) {
	return t.render(messages, true)
}

func (t *Template) render(messages []Message, generationPrompt bool) (p Prompt, err error) {
	defer recoverTo(&err)
	r := &rendering{}
	if r.mark, err = t.guards.mark(texts(messages)); err != nil {
		return Prompt{}, err
	}
	images := 0
	contents := make([]val, len(messages))
	for i, message := range messages {
		for _, part := range message.Parts {
			if part.Image {
				images++
			}
		}
		contents[i] = value.FromMap(map[string]val{
			"role":    value.FromString(message.Role),
			"content": t.content(r.mark, message),
		})
	}
	if images > 0 && t.options.Placeholder == "" {
		return Prompt{}, fmt.Errorf("%w: it has %d images, and the model takes none", ErrMessages, images)
	}
	variables := map[string]val{
		"messages":              value.FromSlice(contents),
		"add_generation_prompt": value.FromBool(generationPrompt),
		"tools":                 value.None(),
		"documents":             value.None(),
	}
	for name, text := range map[string]string{
		"bos_token": t.options.BOS, "eos_token": t.options.EOS,
		"unk_token": t.options.Unk, "pad_token": t.options.Pad,
	} {
		if text != "" {
			variables[name] = value.FromString(text)
		}
	}
	var out limitedBuilder
	ctx := context.WithValue(context.Background(), renderingKey{}, r)
	if err := t.template.RenderToWriteCtx(ctx, variables, &out); err != nil {
		if r.raised != nil {
			return Prompt{}, fmt.Errorf("%w: %s", ErrMessages, r.reason(messages))
		}
		return Prompt{}, fmt.Errorf("chat template: %w", err)
	}
	p = r.prompt(out.b.String())
	if t.options.Placeholder != "" {
		if n := strings.Count(p.Text, t.options.Placeholder); n != images {
			return Prompt{}, fmt.Errorf("%w: it has %d images, for which the template shows %d", ErrMessages, images, n)
		}
	}
	return p, nil
}

// content returns the content of a message in the form that the template wants.
func (t *Template) content(m mark, message Message) val {
	joined, ok := t.joined[message.Role]
	if !ok {
		joined = t.joined["user"]
	}
	if joined {
		var b strings.Builder
		for _, part := range message.Parts {
			if part.Image {
				b.WriteString(t.options.Placeholder)
			} else {
				b.WriteString(m.protect(part.Text))
			}
		}
		return value.FromString(b.String())
	}
	parts := make([]val, len(message.Parts))
	for i, part := range message.Parts {
		fields := map[string]val{"type": value.FromString("image")}
		if !part.Image {
			fields["type"] = value.FromString("text")
			fields["text"] = value.FromString(m.protect(part.Text))
		}
		parts[i] = value.FromMap(fields)
	}
	return value.FromSlice(parts)
}

// Raw returns the prompt of a plain completion, without a template: the parts one
// after the other, with placeholder for each image.
func Raw(parts []Part, placeholder string, guarded []string) (Prompt, error) {
	g, err := newGuards(append([]string{placeholder}, guarded...))
	if err != nil {
		return Prompt{}, err
	}
	m, err := g.mark(texts([]Message{{Parts: parts}}))
	if err != nil {
		return Prompt{}, err
	}
	var b strings.Builder
	for _, part := range parts {
		switch {
		case !part.Image:
			b.WriteString(m.protect(part.Text))
		case placeholder == "":
			return Prompt{}, fmt.Errorf("%w: it has an image, and the model takes none", ErrMessages)
		default:
			b.WriteString(placeholder)
		}
	}
	return m.prompt(b.String()), nil
}

func (m mark) prompt(text string) Prompt {
	if !strings.ContainsRune(text, m.guard) {
		return Prompt{Text: text}
	}
	return Prompt{Text: text, Guard: m.guard}
}

// texts yields what is not the template's own in messages.
func texts(messages []Message) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, message := range messages {
			if !yield(message.Role) {
				return
			}
			for _, part := range message.Parts {
				if !yield(part.Text) {
					return
				}
			}
		}
	}
}

// reason is the message of raise_exception, unless it quotes the conversation: errors
// hold no user's text.
func (r *rendering) reason(messages []Message) string {
	reason := r.plain(*r.raised)
	for _, message := range messages {
		for _, part := range message.Parts {
			if text := strings.TrimSpace(part.Text); len(text) > 3 && strings.Contains(reason, text) {
				return "its reason quotes the conversation and is left out"
			}
		}
	}
	return reason
}

// limitedBuilder is a strings.Builder of at most maxPrompt bytes.
type limitedBuilder struct{ b strings.Builder }

func (l *limitedBuilder) Write(p []byte) (int, error) { return l.WriteString(string(p)) }

func (l *limitedBuilder) WriteString(s string) (int, error) {
	if l.b.Len()+len(s) > maxPrompt {
		return 0, fmt.Errorf("the prompt is longer than %d bytes", maxPrompt)
	}
	return l.b.WriteString(s)
}

// recoverTo makes an error of a panic in the template engine, which runs what a
// model's publisher wrote.
func recoverTo(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("chat template: the engine failed: %v", p)
	}
}
