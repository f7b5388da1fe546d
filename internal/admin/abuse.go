package admin

import (
	"encoding/json"
	"net/http"
)

// Abuse lists and ends quarantines. Its methods are called concurrently; their errors may be a *Refusal.
type Abuse interface {
	// Quarantines is what GET /abuse answers, as JSON.
	Quarantines() any
	// Lift ends the quarantine with a reference.
	Lift(reference string) error
}

// handleAbuse adds /abuse.
func handleAbuse(mux *http.ServeMux, a Abuse) {
	list := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.Quarantines()) // who left does not need it
	}
	mux.HandleFunc("GET /abuse", func(w http.ResponseWriter, _ *http.Request) { list(w) })
	mux.HandleFunc("DELETE /abuse/{reference}", changes(func(w http.ResponseWriter, r *http.Request) {
		if refused(w, a.Lift(r.PathValue("reference"))) {
			return
		}
		list(w)
	}))
}
