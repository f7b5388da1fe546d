package hub

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
)

// Token is what the hub knows a user by. Whatever writes it writes where it is from.
type Token struct {
	value string
	// From names where the token was found: a variable or a file. It is empty where there is none.
	From string
}

// String does not tell the token.
func (t Token) String() string {
	if t.From == "" {
		return "no token"
	}
	return "the token of " + t.From
}

// GoString is String.
func (t Token) GoString() string { return t.String() }

// LogValue is String.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// NewToken checks a token that was found somewhere. An error does not quote it.
func NewToken(value, from string) (Token, error) {
	value = strings.TrimSpace(value)
	if value == "" {
		return Token{}, nil
	}
	for i := range len(value) {
		if value[i] <= ' ' || value[i] > '~' {
			return Token{}, fmt.Errorf("%s: want one token, without spaces", from)
		}
	}
	return Token{value, from}, nil
}

const maxTokenBytes = 64 << 10

// Environment is what the variables of the hub's own clients say.
type Environment struct {
	Endpoint, Home, Cache string
	Offline               bool
	Token                 Token
}

// ReadEnvironment takes the variables that the hub's own clients know, by the same precedence. A variable that is empty
// counts as none. lookup is os.Getenv, home the user's folder.
func ReadEnvironment(lookup func(string) string, home string) (e Environment, err error) {
	first := func(names ...string) string {
		for _, n := range names {
			if v := lookup(n); v != "" {
				return expand(v, lookup, home)
			}
		}
		return ""
	}
	e.Endpoint = lookup("HF_ENDPOINT")
	if e.Home = first("HF_HOME"); e.Home == "" {
		base := first("XDG_CACHE_HOME")
		if base == "" && home != "" {
			base = filepath.Join(home, ".cache")
		}
		if base != "" {
			e.Home = filepath.Join(base, "huggingface")
		}
	}
	if e.Cache = first("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"); e.Cache == "" && e.Home != "" {
		e.Cache = filepath.Join(e.Home, "hub")
	}
	offline := lookup("HF_HUB_OFFLINE")
	if offline == "" {
		offline = lookup("TRANSFORMERS_OFFLINE")
	}
	e.Offline = isTrue(offline)
	if isTrue(lookup("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
		return e, nil
	}
	path := first("HF_TOKEN_PATH")
	if path == "" && e.Home != "" {
		path = filepath.Join(e.Home, "token")
	}
	e.Token, err = findToken(lookup, path)
	return e, err
}

// findToken takes a variable before the file.
func findToken(lookup func(string) string, path string) (Token, error) {
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if t, err := NewToken(lookup(name), name); err != nil || t.From != "" {
			return t, err
		}
	}
	if path == "" {
		return Token{}, nil
	}
	b, err := folder.ReadFile(path, maxTokenBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return Token{}, nil
	}
	if err != nil {
		return Token{}, fmt.Errorf("the hub's token: %w", err)
	}
	return NewToken(string(bytes.TrimSpace(b)), path)
}

// expand replaces a leading ~ and variables, as the hub's own clients do in paths.
func expand(path string, lookup func(string) string, home string) string {
	if path == "~" || strings.HasPrefix(path, "~/") {
		path = home + path[1:]
	}
	return os.Expand(path, func(name string) string {
		if v := lookup(name); v != "" {
			return v
		}
		return "$" + name
	})
}

// isTrue reads a switch among the variables.
func isTrue(v string) bool {
	switch strings.ToUpper(v) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}
