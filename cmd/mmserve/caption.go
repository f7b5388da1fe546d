package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mmserve/mmserve/caption"
	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
)

// captionFlags are what an answer depends on.
type captionFlags struct {
	lengthFlags
	temperatureFlags
	Prompt     string   `default:"Describe the image." help:"What to ask about each image."`
	PromptFile string   `placeholder:"FILE" help:"Read the prompt from a file."`
	Ask        []string `placeholder:"NAME=TEXT" sep:"none" help:"Ask this too, in a row of its own named NAME; repeatable. It takes the prompt's place."`
	Schema     string   `placeholder:"FILE" help:"Hold answers to a JSON schema, whose fields become columns."`
	Choices    []string `placeholder:"A,B" help:"Hold answers to one of these texts."`
	TopP       *float32 `placeholder:"P" range:"1e-6..1" help:"Keep the likeliest tokens that reach this probability together (default: the model's)."`
	TopK       *uint32  `placeholder:"K" help:"Keep the K likeliest tokens (default: the model's)."`
	Seed       uint64   `default:"0" help:"Start of each answer's random sequence."`
	Detail     string   `enum:"auto,low,high" default:"auto" help:"auto, low (one tile, fewest tokens) or high."`
	Prepend    string   `placeholder:"TEXT" help:"Put a text before each answer."`
	Append     string   `placeholder:"TEXT" help:"Put a text behind each answer."`
}

// sourceFlags say which images.
type sourceFlags struct {
	insecureFlags
	In      []string      `arg:"" optional:"" name:"in" help:"Image files, folders (with all below), 'globs', tar archives, shards-{000..099}.tar, URLs of stores (s3://bucket/prefix/, gs://, azblob://, file://), lists (.jsonl, .csv, .parquet with a column path, image or file_name, and prompt), or - for names on standard input (default: the embedded model's samples)."`
	From    string        `placeholder:"FILE" help:"Read more names from a file, one a line."`
	Null    bool          `short:"0" name:"null" help:"Names on standard input and in --from end with NUL, as find -print0 writes them."`
	Include []string      `placeholder:"GLOB" sep:"none" help:"In folders and archives, take the names that match (default: image formats' extensions)."`
	Exclude []string      `placeholder:"GLOB" sep:"none" help:"In folders and archives, leave out the names that match."`
	Limit   int64         `placeholder:"N" range:"1.." help:"Stop after N images."`
	Queue   string        `placeholder:"URL" help:"Take one shard after the other of --shard /N from a NATS JetStream work queue, nats://host:4222; listen:HOST:PORT holds the queue in this process."`
	AckWait time.Duration `default:"1m" range:"1s..24h" help:"How long a worker of the queue may be silent before its shard is given to another one."`
	Shard   string        `placeholder:"I/N" help:"Take the I-th of N parts, counted from 0 (default: JOB_COMPLETION_INDEX, where --shard is /N)."`
}

// runFlags say how to go about it.
type runFlags struct {
	jobFlags  `set:"items=Images"`
	Out       string `short:"o" placeholder:"OUT" help:"Write rows to OUT: .jsonl, .csv, .parquet, a folder/ for tar archives, an s3://, gs://, azblob:// or file:// URL/, or - for standard output. The same command again goes on where it stopped."`
	Sidecar   string `placeholder:"EXT" help:"Write answers beside the images as well, in files of this extension, such as .txt."`
	Existing  string `enum:"skip,overwrite,append,prepend,error" default:"skip" help:"What to do where there is a caption: skip, overwrite, error; for sidecars append and prepend, too."`
	NoDedupe  bool   `help:"Ask about each copy of an image, too."`
	NearDupes string `placeholder:"FILE" help:"Report images that look alike to FILE, as JSON lines."`
	Failures  bool   `name:"allow-failures" help:"End with status 0 although some items failed; their rows say why."`
	DryRun    bool   `help:"Tell what would be done, and do nothing."`
	Preview   string `placeholder:"FILE.html" help:"Write a page with up to 200 of the images and their captions."`
}

type captionCmd struct {
	connectFlags
	captionFlags
	sourceFlags
	runFlags
}

var priorities = map[string]pb.Priority{
	"interactive": pb.Priority_PRIORITY_INTERACTIVE, "default": pb.Priority_PRIORITY_DEFAULT,
	"batch": pb.Priority_PRIORITY_BATCH,
}

// Run captions images: on the terminal, one after the other, or into a file.
func (k captionCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	if k.Out == "" && !k.DryRun {
		return k.show(ctx, c, log, out)
	}
	code, err := k.toFile(ctx, c, log, out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mmserve:", harmless(err))
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
	end := byte('\n')
	if f.Null {
		end = 0
	}
	var all []caption.Source
	for _, in := range f.In {
		if in == "-" {
			all = append(all, caption.Names(os.Stdin, end, m))
			continue
		}
		s, err := caption.Open(in, m)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	if f.From != "" {
		all = append(all, caption.NamesFile(f.From, end, m))
	}
	s := caption.Concat(all...)
	if f.Shard != "" && f.Queue == "" {
		i, n, err := f.shard()
		if err != nil {
			return nil, err
		}
		s = caption.Shard(s, i, n)
	}
	if f.Limit > 0 {
		s = caption.Limit(s, f.Limit)
	}
	return s, nil
}

// shard is which part of how many the flags and the environment name; with a queue, which hands them out, part 0.
func (f sourceFlags) shard() (i, n int, err error) {
	switch {
	case f.Shard == "":
		return 0, 1, nil
	case f.Queue != "":
		return shardOf(f.Shard, "0")
	}
	return shardOf(f.Shard, os.Getenv("JOB_COMPLETION_INDEX"))
}

// shardOf reads I/N, or /N where a Kubernetes Indexed Job says which of them this is.
func shardOf(flag, index string) (i, n int, err error) {
	first, second, _ := strings.Cut(flag, "/")
	if first == "" {
		first = index
	}
	i, err = strconv.Atoi(first)
	if err == nil {
		n, err = strconv.Atoi(second)
	}
	if err != nil || i < 0 || n < 1 || i >= n || n > 1<<20 {
		return 0, 0, fmt.Errorf(
			"--shard %s: want I/N with I from 0 to N-1, or /N where JOB_COMPLETION_INDEX is set",
			flag,
		)
	}
	return i, n, nil
}

// config is what the flags ask.
func (f captionFlags) config() (caption.Config, error) {
	c := caption.Config{
		MaxTokens: f.MaxTokens, Temperature: f.Temperature, TopP: f.TopP, TopK: f.TopK, Seed: f.Seed, Detail: f.Detail,
		Choices: f.Choices, Prepend: f.Prepend, Append: f.Append,
	}
	for _, a := range f.Ask {
		name, text, ok := strings.Cut(a, "=")
		if !ok {
			return c, errors.New("--ask: want NAME=TEXT")
		}
		c.Questions = append(c.Questions, caption.Question{Name: name, Text: text})
	}
	if len(f.Ask) == 0 {
		prompt := f.Prompt
		if f.PromptFile != "" {
			b, err := os.ReadFile(f.PromptFile)
			if err != nil {
				return c, err
			}
			prompt = strings.TrimRight(string(b), "\r\n")
		}
		c.Questions = []caption.Question{{Name: caption.DefaultQuestion, Text: prompt}}
	}
	if f.Schema != "" {
		b, err := os.ReadFile(f.Schema)
		if err != nil {
			return c, err
		}
		c.Schema = string(b)
	}
	return c, c.Check()
}

// toFile captions into a file. It gives the exit status with the error.
func (k captionCmd) toFile(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) (int, error) {
	o, err := k.options()
	if err != nil {
		return exitUsage, err
	}
	if k.DryRun {
		return k.dryRun(ctx, o, out)
	}
	s, err := k.open(ctx, c, log)
	if err != nil {
		return exitGivenUp, err
	}
	o.Config.Precision = s.precision
	job := captionJob{captionCmd: k, options: o}
	job.open = func(ctx context.Context, c *caption.Config, shard int) (*caption.Target, error) {
		return k.target(ctx, c, shard, out)
	}
	if !slices.Contains(k.In, "-") {
		job.count = o.Source
	}
	code, err := job.run(ctx, s)
	return code, errors.Join(err, s.end())
}

// options checks the flags.
func (k captionCmd) options() (o caption.Options, err error) {
	o = caption.Options{
		InFlight: k.InFlight, Priority: priorities[k.Priority], Retry: caption.Retry(k.Retry), NoDedupe: k.NoDedupe,
		FileName: k.fileName,
	}
	if o.Config, err = k.captionFlags.config(); err != nil {
		return o, err
	}
	if len(k.In) == 0 && k.From == "" {
		return o, errors.New("name at least one image file, folder or list")
	}
	if k.InFlight < 0 || k.Limit < 0 {
		return o, errors.New("-j and --limit take 0 or more")
	}
	if o.Source, err = k.source(); err != nil {
		return o, err
	}
	if o.MaxErrors, o.MaxErrorShare, err = maxErrors(k.MaxErrors); err != nil {
		return o, err
	}
	if k.Out != "-" && k.Out != "" {
		if err := caption.CheckTarget(k.Out); err != nil {
			return o, err
		}
	}
	if k.Queue != "" && (!caption.IsStore(k.Out) || !strings.HasPrefix(k.Shard, "/")) {
		return o, errors.New("--queue is for an output in a store and --shard /N")
	}
	if err := k.checkQueue(); err != nil {
		return o, err
	}
	existing := caption.Existing(k.Existing)
	if k.Sidecar == "" {
		if existing == caption.ExistingAppend || existing == caption.ExistingPrepend {
			return o, fmt.Errorf("--existing %s is for --sidecar", existing)
		}
		return o, nil
	}
	side := caption.Sidecars{Extension: k.Sidecar, Existing: existing}
	o.Before, o.Writing = side.Skip, side.Write
	return o, side.Check()
}

// maxErrors reads a number or a percentage.
func maxErrors(s string) (n int64, share float64, err error) {
	if s == "" {
		return 0, 0, nil
	}
	if p, ok := strings.CutSuffix(s, "%"); ok {
		share, err = strconv.ParseFloat(p, 64)
		if err == nil && share > 0 && share <= 100 {
			return 0, share / 100, nil
		}
	} else if n, err = strconv.ParseInt(s, 10, 64); err == nil && n > 0 {
		return n, 0, nil
	}
	return 0, 0, fmt.Errorf("--max-errors %s: want a number or a percentage, as 100 or 5%%", s)
}

func (k captionCmd) dryRun(ctx context.Context, o caption.Options, out io.Writer) (int, error) {
	p, err := caption.DryRun(ctx, o, k.Out)
	if err != nil {
		return exitCode(err), err
	}
	fmt.Fprintf(out, "%d images of %d bytes: %d to ask about, %d answered, %d with a sidecar, %d cannot be read\n",
		p.Images, p.Bytes, p.Images-p.Done-p.Kept-p.Broken, p.Done, p.Kept, p.Broken)
	for _, name := range p.First {
		fmt.Fprintf(out, "  %q\n", name)
	}
	return 0, nil
}

// precisionText is what a run records of the precision of its answers: the flags that give it, whatever auto took;
// empty for fp32.
func (f precisionFlags) precisionText(d *serving.Deployment) string {
	if f.Precision == "auto" || f.VisionPrecision == "auto" {
		f.Precision, f.VisionPrecision = d.Precisions()
	}
	if f.Precision == "fp32" && (f.VisionPrecision == "" || f.VisionPrecision == "fp32") {
		return ""
	}
	return f.Precision + "," + f.VisionPrecision
}

// servers are where the answers come from.
type servers struct {
	client *client.Client
	slots  int
	wait   time.Duration
	end    func() error
	// precision is what the model runs in; empty for fp32, and for servers, which do not tell.
	precision string
}

// open connects to the servers, or runs the model in this process.
func (k captionCmd) open(ctx context.Context, c *cli, log *slog.Logger) (*servers, error) {
	if k.Server == "" {
		d, err := k.openDeployment(ctx, c, log)
		if err != nil {
			return nil, err
		}
		cl, end, err := inProcess(d, server.Options{Logger: quiet(log)})
		if err != nil {
			return nil, err
		}
		return &servers{client: cl, slots: k.Slots, end: end, precision: k.precisionText(d)}, nil
	}
	list, err := client.SplitServers(k.Server)
	if err != nil {
		return nil, err
	}
	o, err := k.clientOptions(k.Server)
	if err != nil {
		return nil, err
	}
	slots, err := caption.Slots(ctx, list, o...)
	if err != nil {
		return nil, err
	}
	o = append(o, client.WithUnavailableRetries(0)) // captioning tries again itself
	cl, err := client.DialServers(k.Server, o...)
	if err != nil {
		return nil, err
	}
	return &servers{client: cl, slots: slots, wait: k.Wait, end: cl.Close}, nil
}

// untilSecondSignal gives a channel that the first interrupt or SIGTERM closes and a context that the second one ends.
func untilSecondSignal(ctx context.Context, say func(string)) (_ context.Context, stop <-chan struct{}, end func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals, first := make(chan os.Signal, 2), make(chan struct{})
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		defer signal.Stop(signals) // a third one kills
		select {
		case <-signals:
		case <-ctx.Done():
			return
		}
		say("stopping when what is in flight is answered; once more stops at once")
		close(first)
		select {
		case <-signals:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, first, cancel
}

// target opens the output.
func (k captionCmd) target(ctx context.Context, c *caption.Config, shard int, out io.Writer) (*caption.Target, error) {
	if k.Out == "-" {
		return caption.OpenStream(out)
	}
	i, n, err := k.shard()
	if err != nil {
		return nil, err
	}
	if shard >= 0 {
		i = shard
	}
	return caption.OpenTarget(ctx, caption.Begin{
		Shard: i, Shards: n, Out: k.Out, Config: c, Existing: caption.Existing(k.Existing), Sidecars: k.Sidecar != "",
		Started: time.Now().UTC().Format(time.RFC3339), Version: programVersion(),
	})
}

// watchers adds what looks at rows as they are written. after ends it.
func (k captionCmd) watchers(o *caption.Options) (after func() error, err error) {
	var page *caption.Preview
	var near *caption.NearDupes
	var report *os.File
	if k.Preview != "" {
		page = caption.NewPreview()
	}
	if k.NearDupes != "" {
		if report, err = os.Create(k.NearDupes); err != nil {
			return nil, err
		}
		near = caption.NewNearDupes(report)
	}
	o.Written = func(r *caption.Row, image []byte) {
		if page != nil {
			page.Add(r, image)
		}
		if near != nil && r.DuplicateOf == "" {
			near.Add(r.ID, image)
		}
	}
	return func() error {
		var err error
		if page != nil {
			err = writeFile(k.Preview, page.WriteHTML)
		}
		if near != nil {
			n, werr := near.Found()
			err = errors.Join(err, werr, report.Close())
			fmt.Fprintf(os.Stderr, "mmserve: %d images look like an earlier one; see %s\n", n, k.NearDupes)
		}
		return err
	}, nil
}

func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(f), f.Close())
}

func (k captionCmd) progressMode() string {
	switch {
	case k.Progress != "auto":
		return k.Progress
	case isTerminal(os.Stderr):
		return "bar"
	}
	return "plain"
}

// counter counts a source's items beside the run, for the time that is left.
func counter(ctx context.Context, source caption.Source, each int) func() int64 {
	var n atomic.Int64
	if source == nil {
		return n.Load
	}
	go func() {
		var all int64
		for _, err := range source(ctx) {
			if err != nil {
				return
			}
			all++
		}
		n.Store(all * int64(each))
	}()
	return n.Load
}

// exitCode is the status for an error that ended a run.
func exitCode(err error) int {
	var config *caption.ConfigError
	switch {
	case errors.Is(err, caption.ErrInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, caption.ErrConfig), errors.As(err, &config), errors.Is(err, caption.ErrExists):
		return exitUsage
	}
	return exitGivenUp
}

// shellQuote writes a command so that a shell takes it.
func shellQuote(args []string) string {
	var b strings.Builder
	for i, a := range args {
		if i > 0 {
			b.WriteByte(' ')
		}
		if a != "" && strings.IndexFunc(a, func(r rune) bool {
			return !strings.ContainsRune("-_./=:,@%+", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') &&
				(r < 'a' || r > 'z')
		}) < 0 {
			b.WriteString(a)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(a, "'", `'\''`) + "'")
	}
	return b.String()
}

// fileName is an image's path from the output's folder.
func (k captionCmd) fileName(it caption.Item) string {
	if it.Local {
		if rel, err := filepath.Rel(filepath.Dir(k.Out), it.Path); err == nil && !strings.HasPrefix(rel, "..") {
			rel = filepath.ToSlash(rel)
			return caption.Item{Path: rel}.ID()
		}
	}
	return it.ID()
}
