package main

// The exit statuses of all commands, as docs/chat.md lists them.
const (
	exitFailed      = 1   // what was asked for was not done, or not all of it
	exitUsage       = 2   // the command line is wrong: nothing was begun
	exitGivenUp     = 3   // a run ended early and can be gone on with
	exitNoReference = 3   // there was nothing to compare with
	exitInterrupted = 130 // Ctrl-C or SIGTERM
)

// exitTexts say what the statuses mean.
var exitTexts = []struct {
	status int
	text   string
}{
	{0, "All was done: each question has an answer."},
	{exitFailed, "Something was not done; standard error says what, and names the file."},
	{exitUsage, "The command line is wrong, or a value is out of its range; nothing was begun."},
	{exitGivenUp, "caption and batch ended early, and the same command goes on. model verify had nothing to compare with."},
	{exitInterrupted, "Ctrl-C or SIGTERM ended it."},
}

// usageError is what is wrong with a command line, found before anything is begun.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
