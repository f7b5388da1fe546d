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
	"maps"
	"slices"
	"strings"
	"time"
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
	// ToolCalls is a JSON list of what an assistant calls, as OpenAI's API has it; nil for nothing. ToolCallID is the
	// call that a message of the role "tool" answers, ToolName what was called; "" where they are not said.
	ToolCalls            []byte
	ToolCallID, ToolName string
}

// Options are what a template needs to know of the model's tokenizer and processor.
type Options struct {
	// BOS, EOS and so on are the texts of the special tokens, which the template
	// knows as bos_token and so on. One that is empty is undefined there.
	BOS, EOS, Unk, Pad, Sep, Cls, Mask string
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
	body    []*node
	globals map[string]any
	guards  guards
	options Options
	// vocabulary is what errors may quote.
	vocabulary vocabulary
	// joined has the roles whose messages the template wants as one string; of the
	// others it wants a list of parts.
	joined map[string]bool
	// tools tells that it shows tools.
	tools bool
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
	ctx, cancel := context.WithTimeoutCause(context.Background(), maxWall,
		exceeded(fmt.Sprintf("the budget of %v is exceeded", maxWall)))
	defer cancel()
	for _, role := range []string{"user", "assistant", "system"} {
		if err := t.probe(ctx, role); err != nil {
			if role == "user" || errors.As(err, new(exceeded)) {
				return nil, fmt.Errorf("chat template: does not show a message of %q: %w", role, err)
			}
			// It refuses this role whatever its form, or leaves it out.
			t.joined[role] = t.joined["user"]
		}
	}
	if err := t.probeTools(ctx); err != nil {
		return nil, fmt.Errorf("chat template: does not show tools: %w", err)
	}
	return t, nil
}

func (t *Template) compile(source string) (err error) {
	defer recoverTo(&err)
	t.globals = globals(t.options.Now)
	for name, text := range map[string]string{
		"bos_token": t.options.BOS, "eos_token": t.options.EOS,
		"unk_token": t.options.Unk, "pad_token": t.options.Pad, "sep_token": t.options.Sep,
		"cls_token": t.options.Cls, "mask_token": t.options.Mask,
	} {
		if text != "" {
			t.globals[name] = text
		}
	}
	if t.body, err = parseTemplate(source); err != nil {
		return err
	}
	t.vocabulary, err = newVocabulary(source)
	return err
}

// probe sets how the template wants the messages of role.
func (t *Template) probe(ctx context.Context, role string) error {
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
		if p, err = t.RenderContext(ctx, conversation); err != nil {
			if errors.As(err, new(exceeded)) {
				return err
			}
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

// Render is RenderContext without a caller that may leave.
func (t *Template) Render(messages []Message) (Prompt, error) {
	return t.RenderContext(context.Background(), messages)
}

// RenderContext returns the prompt for messages, up to where the assistant is to speak. It
// returns an error that wraps ErrMessages if the fault is in the messages, or if what the
// template does with them is beyond its budgets of bytes, steps, time or depth. It ends soon
// after ctx does, with its error.
func (t *Template) RenderContext(ctx context.Context, messages []Message) (Prompt, error) {
	return t.render(ctx, messages, nil, true)
}

func (t *Template) render(ctx context.Context, messages []Message, tools []byte,
	generationPrompt bool) (p Prompt, err error) {
	defer recoverTo(&err)
	c, err := newConversation(messages, tools)
	if err != nil {
		return Prompt{}, err
	}
	r := &interp{}
	if r.mark, err = t.guards.mark(c.texts()); err != nil {
		return Prompt{}, err
	}
	input := 0
	for text := range c.texts() {
		input += len(text)
	}
	r.budget = newBudget(ctx, input)
	images := 0
	contents := make([]any, len(messages))
	for i, message := range messages {
		for _, part := range message.Parts {
			if part.Image {
				images++
			}
		}
		contents[i] = c.message(t, r.mark, i)
	}
	if images > 0 && t.options.Placeholder == "" {
		return Prompt{}, fmt.Errorf("%w: it has %d images, and the model takes none", ErrMessages, images)
	}
	r.globals = maps.Clone(t.globals)
	r.globals["messages"] = &list{contents, 'l'}
	r.globals["add_generation_prompt"] = generationPrompt
	r.globals["tools"], r.globals["documents"] = r.mark.value(c.tools), nil
	text, err := r.render(t.body)
	if err != nil {
		var beyond exceeded
		switch {
		case r.raised != nil:
			return Prompt{}, fmt.Errorf("%w: %s", ErrMessages, t.vocabulary.reason(r.plain(*r.raised), messages))
		case errors.As(err, &beyond):
			return Prompt{}, fmt.Errorf("%w: %w", ErrMessages, err)
		}
		return Prompt{}, fmt.Errorf("chat template: %w", t.vocabulary.quiet(err))
	}
	p = r.prompt(text)
	if t.options.Placeholder != "" {
		if n := strings.Count(p.Text, t.options.Placeholder); n != images {
			return Prompt{}, fmt.Errorf("%w: it has %d images, for which the template shows %d", ErrMessages, images, n)
		}
	}
	return p, nil
}

// content returns the content of a message in the form that the template wants.
func (t *Template) content(m mark, message Message) any {
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
		return b.String()
	}
	parts := make([]any, len(message.Parts))
	for i, part := range message.Parts {
		if part.Image {
			parts[i] = dictOf("type", "image")
		} else {
			parts[i] = dictOf("type", "text", "text", m.protect(part.Text))
		}
	}
	return &list{parts, 'l'}
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
