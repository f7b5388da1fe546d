package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mmserve/mmserve/caption"
	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// captionFlags are what an answer depends on.
type captionFlags struct {
	Prompt      string   `default:"Describe the image." help:"What to ask about each image."`
	MaxTokens   uint32   `default:"256" help:"Most tokens of an answer."`
	Temperature *float32 `placeholder:"T" help:"0 (always the likeliest token) to 2 (default: the model's)."`
	Seed        uint64   `default:"0" help:"Start of each answer's random sequence."`
	Detail      string   `enum:"auto,low,high" default:"auto" help:"auto, low (one tile, fewest tokens) or high."`
}

// sourceFlags say which images.
type sourceFlags struct {
	In      []string `arg:"" optional:"" name:"in" help:"Image files, folders (with all below), 'globs', or - for a list of paths on standard input (default: the embedded model's samples)."`
	From    string   `placeholder:"FILE" help:"Read more names from a file, one a line (with -0: NUL-separated)."`
	Include []string `placeholder:"GLOB" sep:"none" help:"In folders and archives, take the names that match (default: image formats' extensions)."`
	Exclude []string `placeholder:"GLOB" sep:"none" help:"In folders and archives, leave out the names that match."`
	Limit   int64    `placeholder:"N" help:"Stop after N images."`
}

// runFlags say how to go about it.
type runFlags struct {
	Out       string        `short:"o" placeholder:"OUT" help:"Write a row for each image to OUT.jsonl, or - for standard output. The same command again goes on where it stopped."`
	InFlight  int           `short:"j" placeholder:"N" help:"Images asked about at once (default: adapts to what the servers take)."`
	Priority  string        `enum:"interactive,default,batch" default:"batch" help:"Who goes first on the server: interactive, default or batch."`
	Existing  string        `enum:"skip,overwrite,error" default:"skip" help:"What to do where there are captions: skip, overwrite or error."`
	Retry     string        `enum:"transient,all,none" default:"transient" help:"Which items that failed in an earlier run are asked again: transient, all or none."`
	NoDedupe  bool          `help:"Ask about each copy of an image, too."`
	MaxErrors string        `placeholder:"N|P%" help:"Give up when more items than that failed."`
	Wait      time.Duration `default:"10m" help:"How long to wait for servers that take no requests."`
}

type captionCmd struct {
	connectFlags
	captionFlags
	sourceFlags
	runFlags
}

var priorities = map[string]pb.Priority{
	"interactive": pb.Priority_PRIORITY_INTERACTIVE, "default": pb.Priority_PRIORITY_DEFAULT, "batch": pb.Priority_PRIORITY_BATCH,
}

// Run captions images: on the terminal, one after the other, or into a file.
func (k captionCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	if k.Out == "" {
		return k.show(ctx, c, log, out)
	}
	code, err := k.toFile(ctx, c, log, out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mmserve:", err)
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// source lists what was named.
func (f sourceFlags) source() (caption.Source, error) {
	m := caption.Match{Include: f.Include, Exclude: f.Exclude}
	if err := m.Check(); err != nil {
		return nil, err
	}
	var all []caption.Source
	for _, in := range f.In {
		s, err := caption.Open(in, m)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	s := caption.Concat(all...)
	if f.Limit > 0 {
		s = caption.Limit(s, f.Limit)
	}
	return s, nil
}

func (f captionFlags) config() caption.Config {
	return caption.Config{
		Questions: []caption.Question{{Name: caption.DefaultQuestion, Text: f.Prompt}},
		MaxTokens: f.MaxTokens, Temperature: f.Temperature, Seed: f.Seed, Detail: f.Detail,
	}
}

// The exit statuses of a run into a file.
const (
	exitFailed      = 1 // some items
	exitUsage       = 2
	exitGivenUp     = 3
	exitInterrupted = 130
)

// toFile captions into a file. It gives the exit status with the error.
func (k captionCmd) toFile(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) (int, error) {
	config := k.config()
	if err := config.Check(); err != nil {
		return exitUsage, err
	}
	if len(k.In) == 0 && k.From == "" {
		return exitUsage, errors.New("name at least one image file, folder or list")
	}
	source, err := k.source()
	if err != nil {
		return exitUsage, err
	}
	s, err := k.open(ctx, c, log)
	if err != nil {
		return exitGivenUp, err
	}
	code, err := k.run(ctx, s, source, config)
	return code, errors.Join(err, s.end())
}

// servers are where the answers come from.
type servers struct {
	client *client.Client
	slots  int
	wait   time.Duration
	end    func() error
}

// open connects to the servers, or runs the model in this process.
func (k captionCmd) open(ctx context.Context, c *cli, log *slog.Logger) (*servers, error) {
	if k.Server == "" {
		cl, end, err := k.connect(c, quiet(log))
		if err != nil {
			return nil, err
		}
		return &servers{cl, k.Slots, 0, end}, nil
	}
	list, err := client.SplitServers(k.Server)
	if err != nil {
		return nil, err
	}
	slots, err := caption.Slots(ctx, list)
	if err != nil {
		return nil, err
	}
	cl, err := client.DialServers(k.Server)
	if err != nil {
		return nil, err
	}
	return &servers{cl, slots, k.Wait, cl.Close}, nil
}

// run holds the output and captions into it.
func (k captionCmd) run(ctx context.Context, s *servers, source caption.Source, config caption.Config) (int, error) {
	say := func(line string) { fmt.Fprintln(os.Stderr, "mmserve:", line) }
	if err := caption.Probe(ctx, s.client, &config, s.wait, say); err != nil {
		return exitCode(err), err
	}
	if k.Existing == "error" {
		if _, err := os.Lstat(k.Out); err == nil {
			return exitUsage, fmt.Errorf("%s exists (--existing error)", k.Out)
		}
	}
	j, err := caption.OpenJournal(k.Out, k.Existing == "overwrite")
	if err != nil {
		return exitCode(err), err
	}
	err = caption.HoldConfig(k.Out+".run.json", config, time.Now().UTC().Format(time.RFC3339), programVersion(), k.Existing == "overwrite")
	if err != nil {
		return exitUsage, errors.Join(err, j.Close())
	}
	var stats caption.Stats
	err = caption.Run(ctx, caption.Options{
		Source: source, Config: config, Server: s.client, Output: j, InFlight: k.InFlight, MostInFlight: s.slots + max(2, s.slots/4),
		Priority: priorities[k.Priority], Retry: caption.Retry(k.Retry), NoDedupe: k.NoDedupe, Patience: s.wait, FileName: k.fileName, Say: say,
	}, &stats)
	err = errors.Join(err, j.Close())
	if err != nil {
		return exitCode(err), err
	}
	if n := stats.Snapshot(); n.Failed+n.FailedBefore > 0 {
		return exitFailed, nil
	}
	return 0, nil
}

// exitCode is the status for an error that ended a run.
func exitCode(err error) int {
	var config *caption.ConfigError
	switch {
	case errors.Is(err, caption.ErrInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, caption.ErrConfig), errors.As(err, &config):
		return exitUsage
	}
	return exitGivenUp
}

// fileName is an image's path from the output's folder.
func (k captionCmd) fileName(it caption.Item) string {
	if it.Local {
		if rel, err := filepath.Rel(filepath.Dir(k.Out), it.Path); err == nil && !strings.HasPrefix(rel, "..") {
			return filepath.ToSlash(rel)
		}
	}
	return it.ID()
}
