package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/constrain"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// constrain compiles a constraint, whose output may start with a space of the template's if leadingSpace; nil gives nil.
// The compiler bounds the work, off the places that decode images.
func (s *Server) constrain(ctx context.Context, in *pb.Constraint, leadingSpace bool) (*constrain.Grammar, error) {
	if in == nil {
		return nil, nil
	}
	compiler, err := s.model.Compiler()
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "constraint: model %q takes none: %v", s.model.Name, err)
	}
	var g *constrain.Grammar
	var field string
	switch kind := in.GetKind().(type) {
	case *pb.Constraint_Choices:
		field = "choices.texts"
		g, err = compiler.Choice(ctx, kind.Choices.GetTexts(), leadingSpace)
	case *pb.Constraint_Regex:
		field = "regex"
		g, err = compiler.Regexp(ctx, kind.Regex, leadingSpace)
	case *pb.Constraint_JsonSchema:
		field = "json_schema"
		g, err = compiler.JSONSchema(ctx, []byte(kind.JsonSchema), leadingSpace)
	default:
		field = "json_object"
		g, err = compiler.JSONObject(ctx, leadingSpace)
	}
	return g, constraintError(ctx, field, err)
}

// constraintError is the status of an error of a constraint's compilation, or of the masks of its answer.
func constraintError(ctx context.Context, field string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, constrain.ErrBusy):
		return withDetail(codes.ResourceExhausted, "constraint: "+err.Error(), &errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)})
	case errors.Is(err, constrain.ErrWork) && field == "":
		return status.Errorf(codes.ResourceExhausted, "constraint: %v", err)
	case field == "": // not the constraint's
		return err
	}
	var list *constrain.SchemaErrors
	if !errors.As(err, &list) {
		return invalid("constraint."+field, "%v", err)
	}
	var v violations
	for _, one := range list.List {
		v.add(fmt.Sprintf("constraint.%s", field), "%v", one)
	}
	return v.err()
}

// leadingSpace reports whether the prompt leaves it to the answer to start with a space: it ends with none.
func (s *Server) leadingSpace(in fusion.Input) bool {
	text := s.model.Prompter.Tokenizer.TokenBytes(in.IDs[len(in.IDs)-1])
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
func (s *Server) trims(req *request, in fusion.Input, g *constrain.Grammar) bool {
	if g != nil {
		return g.Padded()
	}
	n := len(req.prompt.Messages)
	return n > 0 && req.prompt.Messages[n-1].Role != "assistant" && s.leadingSpace(in)
}
