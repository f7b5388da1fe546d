package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/mmserve/mmserve/caption"
)

// batchCmd answers a file of requests.
type batchCmd struct {
	connectFlags
	jobFlags `set:"items=Requests"`
	In       string `short:"i" name:"input-file" required:"" placeholder:"IN.jsonl" help:"Requests, one a line, as OpenAI's batch API and vllm run-batch take them."`
	Out      string `short:"o" name:"output-file" required:"" placeholder:"OUT.jsonl" help:"Responses, one a line; those that failed are in OUT.errors.jsonl as well. The same command again goes on where it stopped."`
	Existing string `enum:"skip,overwrite,error" default:"skip" help:"What to do where there are answers: skip, overwrite or error."`
	Fetch    bool   `default:"true" negatable:"" help:"Fetch images that requests name by http: and https: URLs."`
}

// Run answers each line of the file.
func (k batchCmd) Run(ctx context.Context, c *cli, log *slog.Logger) error {
	code, err := k.answer(ctx, c, log)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mmserve:", harmless(err))
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

func (k batchCmd) answer(ctx context.Context, c *cli, log *slog.Logger) (int, error) {
	if _, err := os.Stat(k.In); err != nil {
		return exitUsage, err
	}
	run := captionCmd{
		connectFlags: k.connectFlags,
		runFlags:     runFlags{jobFlags: k.jobFlags, Out: k.Out, Existing: k.Existing},
	}
	s, err := run.open(ctx, c, log)
	if err != nil {
		return exitGivenUp, err
	}
	code, err := k.run(ctx, run, s)
	return code, errors.Join(err, s.end())
}

func (k batchCmd) run(ctx context.Context, run captionCmd, s *servers) (int, error) {
	batch := &caption.Batch{In: k.In, Priority: priorities[k.Priority]}
	if k.Fetch {
		batch.Fetch = caption.FetchHTTP
	}
	maxErrors, share, err := maxErrors(k.MaxErrors)
	if err != nil {
		return exitUsage, err
	}
	o := caption.Options{
		Source: batch.Source, Asker: batch.Asker(), Config: caption.BatchConfig(), InFlight: k.InFlight, NoDedupe: true,
		ShrinkMaxTokens: true, Retry: caption.Retry(k.Retry), MaxErrors: maxErrors, MaxErrorShare: share,
	}
	job := captionJob{captionCmd: run, options: o, count: batch.Source, noun: "requests"}
	job.open = func(ctx context.Context, c *caption.Config, _ int) (*caption.Target, error) {
		return caption.OpenBatch(ctx, caption.Begin{
			Out: k.Out, Config: c, Existing: caption.Existing(k.Existing), Started: time.Now().UTC().Format(time.RFC3339),
			Version: programVersion(),
		})
	}
	code, err := job.run(ctx, s)
	if names := batch.Ignored(); len(names) > 0 {
		fmt.Fprintf(os.Stderr, "mmserve: fields of requests that are not read: %s\n", harmless(strings.Join(names, ", ")))
	}
	if names := batch.OtherModels(job.options.Config.Model); len(names) > 0 {
		fmt.Fprintf(
			os.Stderr,
			"mmserve: requests name %s; %s answered them\n",
			harmless(strings.Join(names, ", ")),
			harmless(job.options.Config.Model),
		)
	}
	return code, err
}

// captionJob is a run: what caption and batch have in common.
type captionJob struct {
	captionCmd
	options caption.Options
	count   caption.Source // to be counted beside the run; nil for what cannot be
	noun    string
	open    func(context.Context, *caption.Config, int) (*caption.Target, error)
}

// run writes the job's rows, and says how it went.
func (k *captionJob) run(ctx context.Context, s *servers) (int, error) {
	say := func(line string) { fmt.Fprintln(os.Stderr, "mmserve:", harmless(line)) }
	ctx, stop, end := untilSecondSignal(ctx, say)
	defer end()
	o := &k.options
	if err := caption.Probe(ctx, s.client, &o.Config, s.wait, say); err != nil {
		return exitCode(err), err
	}
	after, err := k.watchers(o)
	if err != nil {
		return exitUsage, err
	}
	o.Server, o.MostInFlight, o.Patience, o.Stop, o.Say = s.client, max(s.slots+max(2, s.slots/4), 4), s.wait, stop, say
	stats := &caption.Stats{Noun: k.noun}
	hide := caption.Progress(os.Stderr, k.progressMode(), stats, counter(ctx, k.count, len(o.Config.Questions)))
	if k.Queue != "" {
		err = k.fromQueue(ctx, stats)
	} else {
		err = k.into(ctx, *o, -1, stats)
	}
	hide()
	if err = errors.Join(err, after()); err != nil {
		code := exitCode(err)
		if code == exitInterrupted {
			return code, errors.New("interrupted; go on with: " + shellQuote(os.Args))
		}
		return code, err
	}
	if k.Progress != "none" {
		stats.WriteSummary(os.Stderr)
	}
	if n := stats.Snapshot(); n.Failed+n.FailedBefore > 0 && !k.Failures {
		return exitFailed, nil
	}
	return 0, nil
}

// into holds the output, or a shard of it, while rows are written into it; -1 is the shard that the flags name.
func (k *captionJob) into(ctx context.Context, o caption.Options, shard int, stats *caption.Stats) error {
	t, err := k.open(ctx, &o.Config, shard)
	if err != nil {
		return err
	}
	o.Output = t
	err = caption.Run(ctx, o, stats)
	return errors.Join(err, t.Close(err == nil))
}
