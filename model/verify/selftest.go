package verify

import (
	"context"
	"errors"
	"io/fs"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
)

// DriftTolerance is how far the log-probabilities of a model's own reference cases may be off on another machine.
func DriftTolerance(p graph.Precision) float64 { return p.Drift() }

// SelfTest runs the cases that the model's folder carries in mmserve-gold.jsonl. Cases that need a longer context than
// the sessions have are left out. found is false where there is no such file, and for synthetic models.
func (s Sessions) SelfTest(report func(Case)) (found bool, err error) {
	if s.Model.Synthetic() {
		return false, nil
	}
	cases, err := readCases(s.Model.Files(), referencesFile)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	v := &Verifier{s, DriftTolerance(s.Precision)}
	longest := 0
	for _, want := range cases {
		n := len(want.PromptIDs) + len(want.Generated)
		if n > s.Runner.Capacity().MaxLen {
			continue
		}
		longest = max(longest, n)
		report(v.run(s.Model.Files(), want))
	}
	_, err = s.Runner.Run(context.Background(), &decoder.Batch{Releases: []decoder.Release{{From: 0, To: longest}}})
	return true, err
}

// Own runs the cases of the model's own mmserve-gold.jsonl, as SelfTest does.
func (v *Verifier) Own(report func(Case)) (found bool, err error) {
	if err := v.openProcessor(); err != nil {
		return false, err
	}
	return v.SelfTest(report)
}
