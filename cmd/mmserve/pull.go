package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/hub"
	"github.com/mmserve/mmserve/model"
)

// pullCmd fetches models.
type pullCmd struct {
	hubFlags
	ONNXDType string   `name:"onnx-dtype" placeholder:"NAME" help:"Fetch the model's ready-made graphs, and which; as for serve."`
	Models    []string `arg:"" name:"model" help:"ORG/NAME, ORG/NAME@REVISION: a branch, a tag or a commit."`
}

// Run prints the folder of each model.
func (k pullCmd) Run(ctx context.Context, log *slog.Logger, out io.Writer) error {
	for _, text := range k.Models {
		r, err := hub.Parse(text)
		if err != nil {
			return err
		}
		s, err := k.pull(ctx, r, model.WantedOptions{ONNXDType: k.ONNXDType}, log)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(out, s.Dir); err != nil {
			return err
		}
	}
	return nil
}

// listCmd tells what the cache has.
type listCmd struct {
	hubFlags
}

// Run prints a line for each commit.
func (k listCmd) Run(log *slog.Logger, out io.Writer) error {
	c, err := k.client(log)
	if err != nil {
		return err
	}
	list, err := hub.List(c.Cache())
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "MODEL\tREVISION\tCOMMIT\tFILES\tSIZE\tSTATE")
	for _, m := range list {
		for _, k := range m.Commits {
			state := "whole"
			if k.Broken > 0 {
				state = fmt.Sprintf("%d files are missing", k.Broken)
			} else if len(k.Revisions) == 0 {
				state = "named by no revision"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\n", m.ID, strings.Join(k.Revisions, ","), k.Commit, k.Files,
				host.FormatBytes(k.Bytes), state)
		}
		if m.Incomplete > 0 {
			fmt.Fprintf(t, "%s\t\t\t\t%s\tin part: model pull goes on with it\n", m.ID, host.FormatBytes(m.Incomplete))
		}
	}
	return t.Flush()
}

// removeCmd takes models out of the cache.
type removeCmd struct {
	hubFlags
	Models []string `arg:"" name:"model" help:"ORG/NAME for all of a model, ORG/NAME@REVISION for a commit and what no other one shares."`
}

// Run tells what is free then.
func (k removeCmd) Run(log *slog.Logger, out io.Writer) error {
	c, err := k.client(log)
	if err != nil {
		return err
	}
	for _, text := range k.Models {
		r, err := hub.Parse(text)
		if err != nil {
			return err
		}
		if !strings.Contains(text, "@") {
			r.Revision = ""
		}
		freed, err := c.Remove(r)
		if errors.Is(err, hub.ErrBusy) {
			return fmt.Errorf("%w: stop it first", err)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: removed, %s\n", text, host.FormatBytes(freed))
	}
	return nil
}
