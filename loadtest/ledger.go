package loadtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Entry is a request in a server's log.
type Entry struct {
	ID         string `json:"id"`
	Code       string `json:"code"`
	Finish     string `json:"finish"`
	Completion int    `json:"completion_tokens"`
}

// ReadLog reads the requests of a server's log in JSON. Other lines are passed over.
func ReadLog(r io.Reader) ([]Entry, error) {
	var list []Entry
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 16<<20)
	for scan.Scan() {
		if !bytes.HasPrefix(scan.Bytes(), []byte("{")) {
			continue
		}
		var l struct {
			Message string `json:"msg"`
			Entry
		}
		if err := json.Unmarshal(scan.Bytes(), &l); err == nil && l.Message == "request" && l.ID != "" {
			list = append(list, l.Entry)
		}
	}
	return list, scan.Err()
}

// OfTest are the entries of a log that are of the test of some samples: its requests have names with a common start.
func OfTest(log []Entry, samples []Sample) []Entry {
	if len(samples) == 0 {
		return nil
	}
	prefix := samples[0].ID
	for i := range samples {
		for !strings.HasPrefix(samples[i].ID, prefix) {
			prefix = prefix[:len(prefix)-1]
		}
	}
	prefix = prefix[:strings.LastIndexByte(prefix, '-')+1] // not the digits that all numbers begin with
	return slices.DeleteFunc(slices.Clone(log), func(e Entry) bool { return !strings.HasPrefix(e.ID, prefix) })
}

// maxLedger bounds the requests of a ledger.
const maxLedger = 10_000_000

// ReadLedger reads what WriteLedger wrote, as far as Reconcile needs it.
func ReadLedger(r io.Reader) ([]Sample, error) {
	var list []Sample
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 1<<20)
	for n := 1; scan.Scan(); n++ {
		var l struct {
			ID     string `json:"id"`
			Code   string `json:"code"`
			Output int    `json:"output_tokens"`
		}
		if err := json.Unmarshal(scan.Bytes(), &l); err != nil || l.ID == "" || l.Code == "" {
			return nil, fmt.Errorf("line %d: want a ledger's, a JSON object with id and code", n)
		}
		if len(list) == maxLedger {
			return nil, fmt.Errorf("more than %d lines", maxLedger)
		}
		list = append(list, Sample{ID: l.ID, Code: l.Code, Answer: Answer{Completion: l.Output}})
	}
	return list, scan.Err()
}

// Account is a sender's list of requests set against a server's log.
type Account struct {
	Sent, Logged int
	// Matched requests ended the same way for both, Unheard ones never came to the server, as their sender could tell.
	Matched, Unheard int
	// Tokens of whole answers, by the log and by what the answers themselves said.
	LoggedTokens, AnsweredTokens int
	// Problems are what does not fit: a request without an end, with two, with another end.
	Problems []string
}

// Reconcile sets samples against a log that is complete.
func Reconcile(samples []Sample, log []Entry) Account {
	a := Account{Logged: len(log)}
	entries := map[string]Entry{}
	for _, e := range log {
		if _, twice := entries[e.ID]; twice {
			a.Problems = append(a.Problems, "two log lines for "+e.ID)
		}
		entries[e.ID] = e
	}
	for i := range samples {
		s := &samples[i]
		if s.Code == codeNotSent {
			continue
		}
		a.Sent++
		e, logged := entries[s.ID]
		delete(entries, s.ID)
		switch {
		case !logged && mayBeUnheard(s.Code):
			a.Unheard++
			continue
		case !logged:
			a.Problems = append(a.Problems, fmt.Sprintf("%s ended as %s, but the log has no line of it", s.ID, s.Code))
			continue
		case !slices.Contains(serverEnds[s.Code], e.Code):
			a.Problems = append(a.Problems, fmt.Sprintf("%s ended as %s, in the log as %s", s.ID, s.Code, e.Code))
			continue
		}
		a.Matched++
		if s.ok() {
			a.LoggedTokens += e.Completion
			a.AnsweredTokens += s.Answer.Completion
			if e.Completion != s.Answer.Completion {
				a.Problems = append(a.Problems, fmt.Sprintf("%s has %d tokens, in the log %d", s.ID, s.Answer.Completion,
					e.Completion))
			}
		}
	}
	for id, e := range entries {
		a.Problems = append(a.Problems, fmt.Sprintf("the log has %s (%s), which nobody sent", id, e.Code))
	}
	slices.Sort(a.Problems)
	return a
}

// mayBeUnheard says whether a request with this end may have ended before the server knew of it.
func mayBeUnheard(code string) bool {
	switch code {
	case codeAbandoned, codeInterrupted, "UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED":
		return true
	}
	return false
}

// serverEnds are the codes a server may log for a request that ended so for its sender. Whoever leaves does not know
// how far the server was, and an end that came too late to be seen is one too.
var serverEnds = map[string][]string{
	codeOK:                {"OK"},
	codeCut:               {"OK"},
	"INVALID_ARGUMENT":    {"InvalidArgument"},
	"RESOURCE_EXHAUSTED":  {"ResourceExhausted"},
	"FAILED_PRECONDITION": {"FailedPrecondition"},
	"NOT_FOUND":           {"NotFound"},
	"INTERNAL":            {"Internal"},
	"UNAVAILABLE":         {"Unavailable", "Canceled"},
	codeAbandoned:         {"Canceled", "OK", "ResourceExhausted", "DeadlineExceeded", "Unavailable"},
	codeInterrupted:       {"Canceled", "OK", "ResourceExhausted", "DeadlineExceeded", "Unavailable"},
	"CANCELLED":           {"Canceled", "OK", "ResourceExhausted", "DeadlineExceeded", "Unavailable"},
	"DEADLINE_EXCEEDED":   {"DeadlineExceeded", "Canceled", "OK", "ResourceExhausted", "Unavailable"},
}
