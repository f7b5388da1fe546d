package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mmserve/mmserve/loadtest"
)

// Exit statuses of bench where all was answered and something is not as it has to be: the first of these that holds.
const (
	exitSLO       = exitError(3) // --slo was not kept
	exitWorse     = exitError(4) // --compare had better numbers
	exitReconcile = exitError(5) // --reconcile found requests that do not agree
)

// status says what is not as it has to be, by the exit status too. What does not agree with a log goes before all else.
func (b benchCmd) status(out io.Writer, run *loadtest.Result, report, old *loadtest.Report) error {
	var failed []error
	if b.Reconcile != "" {
		failed = append(failed, b.reconcile(out, run.Samples))
	}
	if v := report.Verdict; v != nil && !v.Kept {
		failed = append(failed, exitSLO)
	}
	if old != nil {
		for _, c := range report.Regressions(old, b.Tolerance) {
			fmt.Fprintf(out, "worse than before by more than %v %%: %s, %.4g then, %.4g now\n", b.Tolerance, c.Name, c.Old, c.New)
			failed = append(failed, exitWorse)
		}
	}
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// reconcile sets requests against the lines of --reconcile that are of this test.
func (b benchCmd) reconcile(out io.Writer, samples []loadtest.Sample) error {
	f, err := os.Open(b.Reconcile)
	if err != nil {
		return fmt.Errorf("--reconcile: %w", err)
	}
	defer f.Close()
	log, err := loadtest.ReadLog(f)
	if err != nil {
		return fmt.Errorf("--reconcile %s: %w", b.Reconcile, err)
	}
	a := loadtest.Reconcile(samples, loadtest.OfTest(log, samples))
	fmt.Fprintf(out, "books: %d requests sent, %d in the log; %d ended alike in both, %d never came to the server; %d problems\n"+
		"tokens: %d in whole answers, %d in the log for them\n",
		a.Sent, a.Logged, a.Matched, a.Unheard, len(a.Problems), a.AnsweredTokens, a.LoggedTokens)
	for i, p := range a.Problems {
		if i == 20 {
			fmt.Fprintf(out, "  and %d more\n", len(a.Problems)-i)
			break
		}
		fmt.Fprintln(out, " ", harmless(p))
	}
	if len(a.Problems) > 0 {
		return exitReconcile
	}
	return nil
}

// reconcileLedger is reconcile of an earlier test.
func (b benchCmd) reconcileLedger(out io.Writer) error {
	if b.Reconcile == "" {
		return errors.New("--from-ledger wants --reconcile: the log to set it against")
	}
	f, err := os.Open(b.FromLedger)
	if err != nil {
		return fmt.Errorf("--from-ledger: %w", err)
	}
	defer f.Close()
	samples, err := loadtest.ReadLedger(f)
	if err != nil {
		return fmt.Errorf("--from-ledger %s: %w", b.FromLedger, err)
	}
	return b.reconcile(out, samples)
}

// tested is what the server says of itself; nil where it does not tell. Names of models are its operator's.
func (b benchCmd) tested(ctx context.Context, target loadtest.Target) map[string]string {
	g, ok := target.(*loadtest.GRPC)
	if !ok {
		if b.Model == "" {
			return nil
		}
		return map[string]string{"model": b.Model}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	info, err := g.Server(ctx)
	if err != nil {
		return nil
	}
	var providers []string
	for _, s := range info.GetSessions() {
		providers = append(providers, s.GetGraph()+" on "+s.GetProvider())
	}
	return map[string]string{
		"model": info.GetModel(), "slots": fmt.Sprint(info.GetSlots()), "context": fmt.Sprint(info.GetContext()),
		"version": info.GetVersion(), "fingerprint": info.GetSystemFingerprint(), "runs": strings.Join(providers, "; "),
	}
}
