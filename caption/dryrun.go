package caption

import (
	"context"
	"errors"
	"os"
)

// Plan is what a run would do, as far as that can be told without reading images.
type Plan struct {
	// Images are listed, Bytes long as far as known; Broken cannot be read.
	Images, Broken, Bytes int64
	// Done images have rows for all questions; Kept ones have a sidecar.
	Done, Kept int64
	// First are the paths of the first ones that would be asked about.
	First []string
}

// DryRun lists a source and compares it with an output, which may not be there yet. Nothing is written.
func DryRun(ctx context.Context, o Options, out string) (Plan, error) {
	var p Plan
	r := &runner{o: o, stats: &Stats{}}
	if path, _ := TargetPaths(out); out != "-" {
		if _, err := os.Stat(path); err == nil {
			j, err := OpenJournal(path, false)
			if err != nil {
				return p, err
			}
			defer func() { _ = j.release() }()
			r.o.Output = j
		}
	}
	r.stats.errors = map[string]*ErrorKind{}
	for it, err := range o.Source(ctx) {
		if err != nil {
			return p, errors.Join(err, ctx.Err())
		}
		if err := p.add(r, it); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p *Plan) add(r *runner, it Item) error {
	p.Images++
	p.Bytes += it.Size
	switch {
	case it.Err != nil:
		p.Broken++
		return nil
	case r.o.Before != nil && r.o.Before(it):
		p.Kept++
		return nil
	}
	if r.o.Output != nil {
		j, err := r.newJob(it)
		if err != nil {
			return err
		}
		if j == nil {
			p.Done++
			return nil
		}
	}
	if len(p.First) < 10 {
		p.First = append(p.First, it.ID())
	}
	return nil
}
