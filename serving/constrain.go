package serving

import (
	"context"
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/constrain"
)

// constrain compiles a constraint, whose output may start with a space of the template's if leadingSpace; nil gives
// nil. The compiler bounds the work, off the places that decode images.
func (l *life) constrain(ctx context.Context, in *Constraint, leadingSpace bool) (*constrain.Grammar, error) {
	if in == nil {
		return nil, nil
	}
	compiler, err := l.model.Compiler()
	if err != nil {
		return nil, failed(FailedPrecondition, "constraint: model %q takes none: %v", l.model.Name, err)
	}
	var g *constrain.Grammar
	var field string
	switch in.Kind {
	case Choices:
		field = "choices.texts"
		g, err = compiler.Choice(ctx, in.Choices, leadingSpace)
	case Regex:
		field = "regex"
		g, err = compiler.Regexp(ctx, in.Text, leadingSpace)
	case JSONSchema:
		field = "json_schema"
		g, err = compiler.JSONSchema(ctx, []byte(in.Text), leadingSpace)
	default:
		field = "json_object"
		g, err = compiler.JSONObject(ctx, leadingSpace)
	}
	return g, constraintError(ctx, field, err)
}

// constraintError is an error of a constraint's compilation, or of the masks of its answer, as its caller sees it.
func constraintError(ctx context.Context, field string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, constrain.ErrBusy):
		return Overloaded("constraint: " + err.Error())
	case errors.Is(err, constrain.ErrWork) && field == "":
		return failed(Exhausted, "constraint: %v", err)
	case field == "": // not the constraint's
		return err
	}
	var list *constrain.SchemaErrors
	if !errors.As(err, &list) {
		return InvalidField("constraint."+field, "%v", err)
	}
	var v Violations
	for _, one := range list.List {
		v.Add(fmt.Sprintf("constraint.%s", field), "%v", one)
	}
	return v.Err()
}

// leadingSpace reports whether the prompt leaves it to the answer to start with a space: it ends with none.
func (l *life) leadingSpace(in fusion.Input) bool {
	text := l.model.Prompter.Tokenizer.TokenBytes(in.IDs[len(in.IDs)-1])
	if len(text) == 0 {
		return true
	}
	switch text[len(text)-1] {
	case ' ', '\n', '\t', '\r':
		return false
	}
	return true
}

// trims reports whether a space at the start of an answer belongs to the template, not to the text that was asked for.
// What continues a raw prompt, or an assistant's message, is given as it is.
func (l *life) trims(req *checked, in fusion.Input, g *constrain.Grammar) bool {
	if g != nil {
		return g.Padded()
	}
	n := len(req.prompt.Messages)
	return n > 0 && req.prompt.Messages[n-1].Role != "assistant" && l.leadingSpace(in)
}
