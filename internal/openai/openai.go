// Package openai reads and writes the messages of OpenAI's HTTP API, what vLLM adds to them, and Ollama's chats, as
// plain Go values: a server and a client of batch files share it. It knows no transport and no model.
//
// Parse functions take a whole body and give the first fault they find, which names its parameter and quotes nothing
// of what the caller wrote. Write functions give JSON.
package openai

import (
	"fmt"
	"strings"
)

// Error is the error object of a response, and why a body was refused.
type Error struct {
	// Message says what was given and what is allowed.
	Message string `json:"message"`
	// Type is the error's class: InvalidRequest, for one.
	Type string `json:"type"`
	// Param names the field, as messages[0].content; nil where there is none.
	Param *string `json:"param"`
	// Code is one that programs look at; nil where there is none.
	Code *string `json:"code"`
}

func (e *Error) Error() string { return e.Message }

// Field is the field that the error names; "" where it names none.
func (e *Error) Field() string {
	if e.Param == nil {
		return ""
	}
	return *e.Param
}

// Types of errors.
const (
	InvalidRequest = "invalid_request_error"
	RateLimit      = "rate_limit_error"
	ServerError    = "server_error"
)

// Codes of errors.
const (
	CodeInvalidJSON  = "invalid_json"
	CodeInvalidType  = "invalid_type"
	CodeInvalidValue = "invalid_value"
	CodeMissing      = "missing_required_parameter"
	CodeUnsupported  = "unsupported_parameter"
)

// NewError is an error of a type. Empty param and code stand for none.
func NewError(kind, param, code, format string, args ...any) *Error {
	e := &Error{Message: fmt.Sprintf(format, args...), Type: kind}
	if param != "" {
		e.Param = &param
		e.Message = param + ": " + strings.TrimPrefix(e.Message, param+": ")
	}
	if code != "" {
		e.Code = &code
	}
	return e
}

// Unsupported is the error of a parameter that this API does not have.
func Unsupported(param, format string, args ...any) *Error {
	return NewError(InvalidRequest, param, CodeUnsupported, format, args...)
}
