package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

// exit ends the process; tests have another.
var exit = os.Exit

// serveSignals gives a context that the first SIGTERM or interrupt ends. The second ends the process at once, with
// the status that a shell gives it: as PID 1 of a container it has no default for signals. SIGHUP calls hangup, which
// neither delays the others nor runs twice at once; it never ends the process, not even after the context.
func serveSignals(ctx context.Context, log *slog.Logger, hangup func()) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	hangups := make(chan struct{}, 1) // one that comes while hangup runs is not lost; more are the same
	go func() {                       // ends with done, after a hangup that still runs
		for {
			select {
			case <-done:
				return
			case <-hangups:
				hangup()
			}
		}
	}()
	go func() {
		told := false
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				number, _ := sig.(syscall.Signal)
				switch {
				case number == syscall.SIGHUP:
					select {
					case hangups <- struct{}{}:
					default:
					}
				case told:
					log.Warn("a second signal: ending at once", "signal", sig.String())
					exit(128 + int(number))
				default:
					told = true
					log.Info("signal: draining; a second one ends at once", "signal", sig.String())
					cancel()
				}
			}
		}
	}()
	return ctx, func() {
		signal.Ignore(syscall.SIGHUP)
		signal.Stop(signals)
		close(done)
		cancel()
	}
}
