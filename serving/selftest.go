package serving

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mmserve/mmserve/model/verify"
)

// selfTest runs the reference cases that the model's folder carries. One that differs is an error that names it.
func (d *Deployment) selfTest() error {
	if d.config.NoSelfTest {
		return nil
	}
	started := time.Now()
	cases, computed, missed := 0, 0, 0
	var first verify.Case
	sessions := verify.Sessions{
		Model: d.model, Processor: d.text, Tower: d.tower, Runner: d.runner, Precision: d.plan.Decoder.Precision,
	}
	found, err := sessions.SelfTest(func(c verify.Case) {
		cases++
		if slices.ContainsFunc(c.Checks, func(k verify.Check) bool { return k.Name == "generated_ids" }) {
			computed++
		}
		if !c.OK() {
			if missed++; missed == 1 {
				first = c
			}
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("self-test: %w", err)
	case missed > 0:
		return fmt.Errorf("self-test: %d of %d cases of %s's mmserve-gold.jsonl differ (--no-self-test serves all the same); the first: %s",
			missed, cases, d.model.Name, CaseText(first))
	case found:
		d.config.Logger.Info("self-test passed", "cases", cases, "computed", computed,
			"seconds", time.Since(started).Seconds())
	}
	return nil
}

// CaseText is a line that says how a verified case went.
func CaseText(k verify.Case) string {
	if k.Err != nil {
		return fmt.Sprintf("MISS %s: %v", k.ID, k.Err)
	}
	parts := []string{"ok  ", k.ID}
	if !k.OK() {
		parts[0] = "MISS"
	}
	for _, c := range k.Checks {
		switch {
		case c.Exact && c.OK:
			parts = append(parts, c.Name+" equal")
		case c.Exact:
			parts = append(parts, fmt.Sprintf("%s %.1f%% AGREE", c.Name, 100*c.Value))
		case c.OK:
			parts = append(parts, fmt.Sprintf("%s ≤%.1e", c.Name, c.Value))
		default:
			parts = append(parts, fmt.Sprintf("%s OFF BY %.1e", c.Name, c.Value))
		}
	}
	return strings.Join(parts, "  ")
}
