package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/mmserve/internal/evaluation"
	"github.com/mmserve/mmserve/model"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

type evalCmd struct {
	// Answers are counted against the reference's.
	connectFlags `set:"precisionDefault=fp32"`
	lengthFlags  `set:"maxTokens=96"`
	Set          string   `placeholder:"FILE" help:"Archive of questions, as training/evaluate.py draws it (default: the embedded model's)."`
	Kind         []string `sep:"none" placeholder:"KIND" help:"Ask questions of this kind only; any number of times."`
	Limit        int      `placeholder:"N" range:"1.." help:"Ask the first N questions of each kind."`
	Parallel     int      `default:"16" range:"1..4096" help:"Questions asked at once."`
	Wrong        int      `placeholder:"N" range:"0.." help:"Show the first N wrong answers."`
}

// evaluated is what came back for a case.
type evaluated struct {
	text string
	ids  []uint32 // nil where they cannot be compared
	err  error
}

// Run asks the questions by way of a server, in this process or elsewhere, and prints the table. A question that gets
// no answer does not stop the others; the exit status tells.
func (e evalCmd) Run(ctx context.Context, c *cli, log *slog.Logger, out io.Writer) error {
	if e.Parallel < 1 || e.Limit < 0 || e.Wrong < 0 {
		return fmt.Errorf("--parallel %d, --limit %d, --wrong %d: want 1 or more, and no negative number", e.Parallel, e.Limit, e.Wrong)
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	set, closeSet, err := e.open()
	if err != nil {
		return err
	}
	defer closeSet()
	cases, err := e.choose(set.Cases)
	if err != nil {
		return err
	}
	cl, end, err := e.connect(ctx, c, log)
	if err != nil {
		return err
	}
	answers := make([]evaluated, len(cases))
	next := make(chan int)
	var wg sync.WaitGroup
	for range e.Parallel {
		wg.Go(func() {
			for i := range next {
				answers[i] = e.ask(ctx, cl, set, cases[i])
			}
		})
	}
	for i := range cases {
		next <- i
	}
	close(next)
	wg.Wait()
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), end())
	}
	return errors.Join(e.report(out, cases, answers), end())
}

// open opens the set; what it gives closes it.
func (e evalCmd) open() (*evaluation.Set, func() error, error) {
	if e.Set == "" {
		q := model.Questions()
		s, err := evaluation.Read(strings.NewReader(q), int64(len(q)))
		return s, func() error { return nil }, err
	}
	f, err := os.Open(e.Set)
	if err != nil {
		return nil, nil, fmt.Errorf("--set: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		var s *evaluation.Set
		if s, err = evaluation.Read(f, info.Size()); err == nil {
			return s, f.Close, nil
		}
	}
	return nil, nil, errors.Join(fmt.Errorf("--set %s: %w", e.Set, err), f.Close())
}

// choose picks the cases that --kind and --limit leave.
func (e evalCmd) choose(all []evaluation.Case) (list []evaluation.Case, err error) {
	taken := map[string]int{}
	for _, k := range all {
		if _, known := taken[k.Kind]; !known {
			taken[k.Kind] = 0
		}
		if len(e.Kind) > 0 && !slices.Contains(e.Kind, k.Kind) || e.Limit > 0 && taken[k.Kind] == e.Limit {
			continue
		}
		taken[k.Kind]++
		list = append(list, k)
	}
	for _, k := range e.Kind {
		if _, known := taken[k]; !known {
			return nil, fmt.Errorf("--kind %s: the set has no such questions", k)
		}
	}
	return list, nil
}

// ask asks for the likeliest answer.
func (e evalCmd) ask(ctx context.Context, cl *client.Client, set *evaluation.Set, k evaluation.Case) evaluated {
	var messages []*pb.Message
	images := k.Images
	for _, m := range k.Messages {
		var parts []*pb.Part
		for _, p := range m.Content {
			if p.Type == "text" {
				parts = append(parts, client.Text(p.Text))
				continue
			}
			data, err := set.Image(images[0])
			if err != nil {
				return evaluated{err: err}
			}
			images = images[1:]
			parts = append(parts, client.ImageBytes(data))
		}
		message := client.User
		if m.Role == "assistant" {
			message = client.Assistant
		}
		messages = append(messages, message(parts...))
	}
	req := client.Chat(messages...)
	req.MaxTokens = &e.MaxTokens
	req.Sampling = &pb.Sampling{Temperature: new(float32)}
	req.Logprobs = len(k.Generated) > 0 // they come with the ids
	out, err := cl.Generate(ctx, req)
	if err != nil {
		return evaluated{err: err}
	}
	a := evaluated{text: out.GetText()}
	if set.Model == out.GetModelDigest() {
		for _, l := range out.GetChoices()[0].GetLogprobs() {
			a.ids = append(a.ids, l.GetToken().GetId())
		}
	}
	return a
}

// report prints the table, after the wrong answers that --wrong asks for.
func (e evalCmd) report(out io.Writer, cases []evaluation.Case, answers []evaluated) error {
	var tally evaluation.Tally
	wrong, failed, compared := e.Wrong, 0, false
	for i, k := range cases {
		a := answers[i]
		if a.err != nil {
			failed++
			fmt.Fprintf(os.Stderr, "mmserve: %s: %v\n", k.ID, harmless(plain(a.err)))
			continue
		}
		tally.Add(k, a.text, a.ids)
		compared = compared || a.ids != nil
		if wrong > 0 && !k.Right(a.text) {
			wrong--
			last := k.Messages[len(k.Messages)-1].Content
			fmt.Fprintf(out, "%s: %s\n  want %s\n  got  %s\n", k.ID, harmless(last[len(last)-1].Text),
				harmless(k.Truth), harmless(strings.TrimSpace(a.text)))
		}
	}
	if failed < len(cases) {
		if err := tally.Write(out); err != nil {
			return err
		}
		if !compared {
			fmt.Fprintln(out, "the set has no recorded ids of this model")
		}
	}
	if failed > 0 {
		fmt.Fprintf(os.Stderr, "mmserve: %d of %d questions got no answer\n", failed, len(cases))
		return exitError(1)
	}
	return nil
}
