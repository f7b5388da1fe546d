package main

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/alecthomas/kong"

	"github.com/mmserve/mmserve/internal/audit"
)

// reloaders are what SIGHUP has read again, in the order they were added. Any goroutine may use it.
type reloaders struct {
	log *slog.Logger

	mu    sync.Mutex
	list  []reloader
	audit *audit.Log // nil: there is none
}

type reloader struct {
	name   string
	reload func() error
}

// add has reload called at each SIGHUP, never twice at once. If it fails, what was in effect has to stay so.
func (r *reloaders) add(name string, reload func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, reloader{name, reload})
}

// keep has the audit log say what is read again.
func (r *reloaders) keep(l *audit.Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.audit = l
}

// reload calls all and logs how each ended.
func (r *reloaders) reload() {
	r.mu.Lock()
	list, kept := slices.Clone(r.list), r.audit
	r.mu.Unlock()
	if len(list) == 0 {
		r.log.Info("SIGHUP: there is nothing to read again; the log level is set at the admin listener, or in the --config file")
	}
	for _, l := range list {
		if err := auditReload(kept, l.name, l.try); err != nil {
			r.log.Error("SIGHUP: not read again; the former stays in effect", "what", l.name, "error", err)
			continue
		}
		r.log.Info("SIGHUP: read again", "what", l.name)
	}
}

// try turns a panic into an error: a signal never ends the process.
func (l reloader) try() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return l.reload()
}

// rereader parses the command line, variables and the file anew.
type rereader func() (*cli, *kong.Context, error)

// watchConfig has SIGHUP read the file again: the log level takes effect, and what else differs is named.
func (r *reloaders) watchConfig(k *kong.Context, level *slog.LevelVar, again rereader) error {
	inEffect, err := settings(k.Flags())
	if err != nil {
		return err
	}
	r.add("config", func() error {
		c, k, err := again()
		if err == nil {
			err = c.Serve.checkAll()
		}
		if err != nil {
			return c.Serve.located(err)
		}
		now, err := settings(k.Flags())
		if err != nil {
			return err
		}
		if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
			return err
		}
		names := slices.DeleteFunc(changed(inEffect, now), func(name string) bool { return name == "log-level" })
		if len(names) > 0 {
			r.log.Warn("SIGHUP: settings that differ take effect at the next start", "flags", names)
		}
		return nil
	})
	return nil
}
