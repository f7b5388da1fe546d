package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/hub"
	"github.com/mmserve/mmserve/model"
)

// hubFlags say where models come from that are named and not in a folder. The token has no flag: what stands on a
// command line, everybody on the machine can read.
type hubFlags struct {
	HubEndpoint string   `placeholder:"URL" env:"MMSERVE_HUB_ENDPOINT" help:"Model hub that --model ORG/NAME is fetched from (default: the variable HF_ENDPOINT, then https://huggingface.co). Its token is in the variable HF_TOKEN, or in the file that the hub's own clients write."`
	HubOffline  bool     `env:"MMSERVE_HUB_OFFLINE" help:"Ask no hub: take from its cache (HF_HUB_CACHE, HF_HOME) what is there. HF_HUB_OFFLINE=1 says the same."`
	HubMaxSize  byteSize `placeholder:"SIZE" default:"256GiB" env:"MMSERVE_HUB_MAX_SIZE" help:"Most that the files of one model may have together."`
}

// client is of the hub that the flags and the environment name.
func (f hubFlags) client(log *slog.Logger) (*hub.Client, error) {
	home, _ := os.UserHomeDir() // without one, HF_HOME has to say
	e, err := hub.ReadEnvironment(os.Getenv, home)
	if err != nil {
		return nil, err
	}
	return hub.New(hub.Options{
		Endpoint: cmp.Or(f.HubEndpoint, e.Endpoint), Cache: e.Cache, Token: e.Token, Offline: f.HubOffline || e.Offline,
		MaxBytes: int64(f.HubMaxSize), Version: programVersion(), Logger: log,
	})
}

// hubModel tells whether a text names a model of a hub: it has the scheme, or there is no such file or folder.
func hubModel(text string) (r hub.Repo, named bool, err error) {
	r, err = hub.Parse(text)
	if strings.HasPrefix(text, hub.Scheme) {
		return r, true, err
	}
	if _, missing := os.Lstat(text); err != nil || !errors.Is(missing, fs.ErrNotExist) {
		return r, false, nil
	}
	return r, true, nil
}

// find gives a model's folder, which it fetches if the model is a hub's.
func (f hubFlags) find(
	ctx context.Context, m modelFolder, o model.WantedOptions, log *slog.Logger,
) (modelFolder, error) {
	r, named, err := hubModel(m.Dir)
	if err != nil {
		return m, fmt.Errorf("--model: %w", err)
	}
	if !named {
		if _, err := hub.Parse(m.Dir); err == nil {
			log.Info("the model is the folder of that name; hf:// in front would name a hub's", "folder", m.Dir)
		}
		return m, nil
	}
	s, err := f.pull(ctx, r, o, log)
	if errors.Is(err, hub.ErrNotFound) && !strings.HasPrefix(m.Dir, hub.Scheme) {
		return m, fmt.Errorf("there is no folder %s here, and for a model of a hub: %w", m.Dir, err)
	}
	if err != nil {
		return m, err
	}
	return modelFolder{Name: cmp.Or(m.Name, r.Name()), Dir: s.Dir}, nil
}

// pull has a model in the cache, and shows how far it is.
func (f hubFlags) pull(
	ctx context.Context, r hub.Repo, o model.WantedOptions, log *slog.Logger,
) (*hub.Snapshot, error) {
	c, err := f.client(log)
	if err != nil {
		return nil, err
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	progress := new(hub.Progress)
	end := showPull(r, progress, log)
	s, err := c.Pull(ctx, r, func(repository fs.FS) (wanted, absent []string, err error) {
		return model.Wanted(repository, o)
	}, progress)
	end()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("%s: stopped; what was fetched is kept, and the same command goes on with it", r)
	}
	if err != nil {
		return nil, err
	}
	from := "cache"
	if s.Asked {
		from = c.Endpoint()
	}
	log.Info("model", "model", r.ID, "revision", r.Revision, "commit", s.Commit, "from", from,
		"fetched_bytes", s.Fetched, "folder", s.Dir)
	return s, nil
}

// showPull shows a bar on a terminal, and writes a log line now and then elsewhere.
func showPull(r hub.Repo, p *hub.Progress, log *slog.Logger) (end func()) {
	began := time.Now()
	if isTerminal(os.Stderr) {
		return pullBar(os.Stderr, r, p, began)
	}
	return every(10*time.Second, func() {
		n := p.Count()
		if n.Files > 0 {
			log.Info("fetching", "model", r.ID, "files", n.Files, "files_done", n.FilesDone, "bytes", n.Total, "bytes_done",
				n.Done, "rate", pullRate(n, began), "left", pullLeft(n, began))
		}
	})
}

// pullBar draws a bar at the end of a terminal, from the first byte on.
func pullBar(w io.Writer, r hub.Repo, p *hub.Progress, began time.Time) (end func()) {
	bars := mpb.New(mpb.WithOutput(w), mpb.WithWidth(30), mpb.WithRefreshRate(200*time.Millisecond))
	var bar *mpb.Bar
	stop := every(200*time.Millisecond, func() {
		n := p.Count()
		if n.Files == 0 {
			return
		}
		if bar == nil {
			bar = bars.AddBar(0, mpb.PrependDecorators(decor.Name(r.String()+" ")), mpb.AppendDecorators(
				decor.Any(func(decor.Statistics) string { return pullText(p.Count(), began) })))
		}
		bar.SetTotal(max(n.Total, 1), false)
		bar.SetCurrent(n.Done)
	})
	return func() {
		stop()
		if bar != nil {
			bar.Abort(true)
		}
		bars.Wait()
	}
}

// pullText tells how far a pull is.
func pullText(n hub.Count, began time.Time) string {
	return fmt.Sprintf(" %s of %s, %d of %d files, %s, %s left", host.FormatBytes(n.Done), host.FormatBytes(n.Total),
		n.FilesDone, n.Files, pullRate(n, began), pullLeft(n, began))
}

func pullRate(n hub.Count, began time.Time) string {
	return host.FormatBytes(int64(float64(n.Received)/max(time.Since(began).Seconds(), 1e-3))) + "/s"
}

// pullLeft is the time that is left at the rate so far.
func pullLeft(n hub.Count, began time.Time) string {
	if n.Received == 0 {
		return "unknown time"
	}
	left := float64(n.Total-n.Done) / float64(n.Received) * float64(time.Since(began))
	return time.Duration(max(left, 0)).Round(time.Second).String()
}

// every calls do at intervals until end, which waits for the call that is under way.
func every(interval time.Duration, do func()) (end func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				do()
			case <-stop:
				return
			}
		}
	}()
	return func() { close(stop); <-done }
}
