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

// serveSignals gives a context that the first SIGTERM or interrupt ends. The second ends the process at once, with the
// status that a shell gives it: as PID 1 of a container it has no default for signals. SIGHUP changes nothing.
func serveSignals(ctx context.Context, log *slog.Logger) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
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
					log.Info("SIGHUP: there is nothing to read again; the log level is set at the admin listener")
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
		signal.Stop(signals)
		close(done)
		cancel()
	}
}
