package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/evaluation"
	"github.com/mmserve/mmserve/internal/audit"
	"github.com/mmserve/mmserve/loadtest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// escape sets a window's title, moves the cursor by a control of one character, and turns the direction of text.
const escape = "\x1b]0;owned\a\u009b2J\u202ehostile\x7f"

// What a server, a model or a log says cannot command the terminal, wherever a command shows it.
func TestHarmless(t *testing.T) {
	line := &audit.Line{Event: audit.Event{Decision: escape, Generation: &audit.Generation{
		Fingerprint: escape, ModelDigest: escape, Answers: []audit.Answer{{}},
	}}}
	var out bytes.Buffer
	if err := (subjectFlags{}).print(&out, &pb.Receipt{Text: []byte(escape), Key: escape}); err != nil {
		t.Fatal(err)
	}
	_ = compareReplay(&out, line, &audit.Event{Generation: &audit.Generation{Fingerprint: escape}}) // it differs
	if err := (auditVerifyCmd{}).write(&out, &audit.Report{Problems: []audit.Problem{{What: escape}}}); err != nil {
		t.Fatal(err)
	}
	s := &chatSession{view: &view{out: &out, err: &out, person: true}}
	s.note(escape)
	s.problem(errors.New(escape))
	report := &loadtest.Report{Target: escape}
	if err := report.WriteText(&harmlessWriter{w: &out}); err != nil {
		t.Fatal(err)
	}
	k := evaluation.Case{ID: "a", Truth: "b", Messages: []evaluation.Message{{Content: []evaluation.Part{{Text: escape}}}}}
	if err := (evalCmd{Wrong: 1}).report(&out, []evaluation.Case{k}, []evaluated{{text: escape}}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "hostile"); n < 8 {
		t.Errorf("%d texts are shown", n)
	}
	if strings.ContainsAny(out.String(), "\x1b\a\u009b\u202e\x7f") {
		t.Errorf("it commands the terminal: %q", out.String())
	}
}

// A receipt that is written to a file, and JSON, keep what was said to the byte.
func TestHarmlessIsFaithful(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipt")
	if err := (subjectFlags{Receipt: path}).print(&bytes.Buffer{}, &pb.Receipt{Text: []byte(escape)}); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(path)
	var signed audit.SignedReceipt
	if err = errors.Join(err, json.Unmarshal(file, &signed)); err != nil || string(signed.Text) != escape {
		t.Errorf("%q, %v", signed.Text, err)
	}
	text, err := json.MarshalIndent(map[string]string{"text": escape + "\n"}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var back map[string]string
	safe := harmlessJSON(text)
	if err := json.Unmarshal(safe, &back); err != nil || back["text"] != escape+"\n" {
		t.Errorf("%q, %v", back, err)
	}
	if strings.ContainsAny(string(safe), "\x1b\a\u009b\u202e\x7f") || bytes.Count(safe, []byte("\n")) != 2 {
		t.Errorf("it commands the terminal: %q", safe)
	}
}
