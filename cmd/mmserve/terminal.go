package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"
	"google.golang.org/grpc/status"
)

// isTerminal tells whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// quiet drops the log lines that a server writes for each request and each start, which would stand between the
// answers; warnings stay. Debug level asks for them all.
func quiet(log *slog.Logger) *slog.Logger {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return log
	}
	return slog.New(warnings{log.Handler()})
}

type warnings struct{ slog.Handler }

func (w warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

// plain takes the wrapping off a gRPC error: a person at a terminal wants its message, and a hint.
func plain(err error) error {
	if s := grpcStatus(err); s != nil {
		return hinted(errors.New(s.Message()))
	}
	return err
}

// grpcStatus finds the status of a call in an error, whatever it was joined with; nil if there is none.
func grpcStatus(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return nil
	}
	return s.GRPCStatus()
}
