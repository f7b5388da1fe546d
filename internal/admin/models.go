package admin

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
)

// Models changes and lists what is served. Its methods are called concurrently; their errors may be a *Refusal.
type Models interface {
	// List is what GET /models answers, as JSON.
	List() any
	// Load opens the model in dir under a name, or swaps the one that has the name. It is through when the new one
	// answers.
	Load(ctx context.Context, name, dir string) error
	// Unload takes a model out and waits for its end, or until ctx ends.
	Unload(ctx context.Context, name string) error
}

// Refusal is an error with the HTTP status that says whose fault it is. Others are 500.
type Refusal struct {
	Status int
	Err    error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap gives the reason.
func (r *Refusal) Unwrap() error { return r.Err }

// maxBody is the most that a change takes, in bytes.
const maxBody = 16 << 10

// handleModels adds /models.
func handleModels(mux *http.ServeMux, m Models) {
	list := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(m.List()) // who left does not need it
	}
	mux.HandleFunc("GET /models", func(w http.ResponseWriter, _ *http.Request) { list(w) })
	mux.HandleFunc("POST /models", changes(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Name, Dir *string }
		if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
			http.Error(w, "want Content-Type: application/json", http.StatusUnsupportedMediaType)
			return
		}
		d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
		d.DisallowUnknownFields()
		if err := d.Decode(&in); err != nil || d.More() || in.Name == nil || in.Dir == nil {
			http.Error(w, `want {"name": "NAME", "dir": "DIR"}`, http.StatusBadRequest)
			return
		}
		if refused(w, m.Load(r.Context(), *in.Name, *in.Dir)) {
			return
		}
		list(w)
	}))
	mux.HandleFunc("DELETE /models/{name}", changes(func(w http.ResponseWriter, r *http.Request) {
		if refused(w, m.Unload(r.Context(), r.PathValue("name"))) {
			return
		}
		list(w)
	}))
}

// refused answers an error, if there is one.
func refused(w http.ResponseWriter, err error) bool {
	var r *Refusal
	switch {
	case err == nil:
		return false
	case errors.As(err, &r):
		http.Error(w, err.Error(), r.Status)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	return true
}

// changes keeps browsers out of what changes something: they send an Origin with every such request, and no page of
// theirs has business here. That holds for a name that was made to resolve to this listener, too.
func changes(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
			http.Error(w, "browsers change nothing here", http.StatusForbidden)
			return
		}
		handle(w, r)
	}
}
