package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/mmserve/mmserve/cmd/mmserve/internal/markdown"
)

// patience is how long something may take before a person is told that it goes on.
const patience = time.Second

// waiting tells a person at a terminal what takes long, and for how long it has; end takes the line away. Elsewhere
// log lines have to do.
func waiting(what string) (end func()) {
	if !isTerminal(os.Stderr) || os.Getenv("TERM") == "dumb" {
		return func() {}
	}
	columns, _, err := term.GetSize(int(os.Stderr.Fd()))
	if err != nil || columns < 2 {
		columns = 80
	}
	return showWaiting(os.Stderr, what, columns, time.Now())
}

func showWaiting(w io.Writer, what string, columns int, began time.Time) (end func()) {
	shown := false
	stop := every(patience/2, func() {
		if took := time.Since(began); took >= patience {
			shown = true
			row := fmt.Sprintf("%s … %v", markdown.Clean(what), took.Round(time.Second))
			fmt.Fprint(w, "\r\x1b[K", markdown.Wrap(row, columns-1)[0])
		}
	})
	return func() {
		stop()
		if shown {
			fmt.Fprint(w, "\r\x1b[K")
		}
	}
}
