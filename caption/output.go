package caption

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Target is where a run's rows go: a journal, and what is made of it.
type Target struct {
	Output
	journal *Journal
	shards  *Shards
	parts   *Parts
	path    string
	runPath string // empty for a stream
	config  *Config
	table   func(io.Writer, *Journal, *Config) error // nil where the journal is the output
}

// TargetPaths are the journal and the file of the configuration that belong to an output.
func TargetPaths(out string) (journal, run string) {
	base := strings.TrimRight(out, "/")
	if filepath.Ext(base) == ".jsonl" {
		return base, base + ".run.json"
	}
	return base + ".journal.jsonl", base + ".run.json"
}

// CheckTarget refuses an output of a kind that cannot be written.
func CheckTarget(out string) error {
	if IsStore(out) {
		if path, _, _ := strings.Cut(out, "?"); !strings.HasSuffix(path, "/") {
			return fmt.Errorf("%s: want a prefix in the store, which ends in /", path)
		}
		return nil
	}
	info, err := os.Stat(out)
	isDir := err == nil && info.IsDir() || strings.HasSuffix(out, "/")
	switch ext := filepath.Ext(out); {
	case isDir, ext == ".jsonl", ext == ".csv", ext == ".parquet":
		return nil
	}
	return fmt.Errorf(
		"%s: want a name that ends in .jsonl, .csv or .parquet, a folder/ for tar archives, the URL/ of a store, or - for standard output",
		out,
	)
}

// Begin says what a run wants of its output.
type Begin struct {
	// Out is an output that CheckTarget takes.
	Out    string
	Config *Config
	// Existing is what to do where there are rows.
	Existing Existing
	// Started and Version are written down with the configuration.
	Started, Version string
	// Shard of Shards is what a run writes of an output in an object store.
	Shard, Shards int
	// Sidecars tells that Existing is about text files beside the images: rows are then gone on with.
	Sidecars bool
}

// ErrExists is the error of an output that is there, where it must not be.
var ErrExists = errors.New("it exists")

// OpenTarget opens an output and holds it until Close: a .jsonl file is its own journal, a .csv or .parquet file is
// made from one when a run is complete, and a folder gets tar archives. An output that was begun with another
// configuration is a *ConfigError.
func OpenTarget(ctx context.Context, b Begin) (_ *Target, err error) {
	if IsStore(b.Out) {
		return openStoreTarget(ctx, b)
	}
	path, runPath := TargetPaths(b.Out)
	if _, err := os.Lstat(path); err == nil && b.Existing == ExistingError && !b.Sidecars {
		return nil, fmt.Errorf("%s: %w", path, ErrExists)
	}
	begin := b.Existing == ExistingOverwrite && !b.Sidecars && !goesOn(runPath, b)
	j, err := OpenJournal(path, begin)
	if err != nil {
		return nil, err
	}
	t := &Target{Output: j, journal: j, path: b.Out, runPath: runPath, config: b.Config}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Close())
		}
	}()
	now := runFile{
		Format:   runFormat,
		Config:   *b.Config,
		Existing: string(b.Existing),
		Started:  b.Started,
		Version:  b.Version,
	}
	if err := holdConfig(runPath, now, begin); err != nil {
		return nil, err
	}
	switch filepath.Ext(strings.TrimRight(b.Out, "/")) {
	case ".jsonl":
	case ".csv":
		t.table = writeCSV
	case ".parquet":
		t.table = writeParquet
	default:
		if t.shards, err = OpenShards(b.Out, j); err != nil {
			return nil, err
		}
		t.Output = t.shards
	}
	return t, nil
}

// openStoreTarget opens an output in an object store: a prefix.
func openStoreTarget(ctx context.Context, b Begin) (*Target, error) {
	if dir, ok := strings.CutPrefix(b.Out, "file://"); ok {
		dir, _, _ = strings.Cut(dir, "?")
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return nil, err
		}
	}
	l, err := OpenLocation(ctx, b.Out)
	if err != nil {
		return nil, err
	}
	run := runFile{Format: runFormat, Config: *b.Config, Started: b.Started, Version: b.Version}
	parts, err := OpenParts(ctx, l, run, b.Shard, max(b.Shards, 1))
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &Target{Output: parts, journal: parts.Journal, parts: parts}, nil
}

// goesOn tells whether an earlier run began to overwrite the output and was not completed: then this one goes on with
// it.
func goesOn(runPath string, b Begin) bool {
	had, err := readRunFile(runPath)
	return err == nil && had.Existing == string(ExistingOverwrite) && !had.Complete &&
		len(differences(had.Config, *b.Config)) == 0
}

// OpenBatch opens the output of a Batch: its rows are in b.Out.journal.jsonl, and b.Out is made from them when all
// lines are answered, with b.Out.errors.jsonl where some failed.
func OpenBatch(ctx context.Context, b Begin) (*Target, error) {
	out := b.Out
	b.Out += batchJournal
	t, err := OpenTarget(ctx, b)
	if err != nil {
		return nil, err
	}
	t.path = out
	t.table = func(w io.Writer, j *Journal, _ *Config) error { return t.writeBatch(w, j) }
	return t, nil
}

const batchJournal = ".journal.jsonl"

// writeBatch writes the output, and beside it the errors if there are any.
func (t *Target) writeBatch(w io.Writer, j *Journal) error {
	path := strings.TrimSuffix(t.path, ".jsonl") + ".errors.jsonl"
	failed := 0
	err := replaceFile(path, func(e io.Writer) (err error) {
		failed, err = writeBatch(j, w, e)
		return err
	})
	if err == nil && failed == 0 {
		err = os.Remove(path)
	}
	return err
}

// BatchConfig is the configuration of a Batch, whose lines hold everything that an answer depends on but the model.
func BatchConfig() Config {
	return Config{Questions: []Question{{"batch", "Hello"}}, MaxTokens: 1, Detail: "auto"}
}

// Close writes what is made from the journal, if the run is complete, and closes all.
func (t *Target) Close(complete bool) error {
	var err error
	if complete && t.runPath != "" {
		err = t.complete()
	}
	switch {
	case t.shards != nil:
		return errors.Join(err, t.shards.Close(complete))
	case t.parts != nil:
		return t.parts.Close(complete)
	case t.runPath == "":
		return t.journal.release()
	}
	if complete && t.table != nil {
		if err = t.journal.Sync(); err == nil {
			err = replaceFile(t.path, func(w io.Writer) error { return t.table(w, t.journal, t.config) })
		}
	}
	return errors.Join(err, t.journal.Close())
}

// complete writes down that the run is.
func (t *Target) complete() error {
	r, err := readRunFile(t.runPath)
	if err != nil {
		return err
	}
	r.Complete = true
	return writeRunFile(t.runPath, r)
}

// Journal gives the rows that were written.
func (t *Target) Journal() *Journal { return t.journal }

// stream writes rows to w as they come. It keeps them in a temporary journal as well, to find copies.
type stream struct {
	*Journal
	w io.Writer
}

// OpenStream gives an output that writes JSON lines to w, and cannot be gone on with.
func OpenStream(w io.Writer) (*Target, error) {
	f, err := os.CreateTemp("", "mmserve-captions-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	f.Close()
	j, err := OpenJournal(f.Name(), true)
	if err != nil {
		return nil, err
	}
	return &Target{Output: stream{j, w}, journal: j}, nil
}

// Append implements Output.
func (s stream) Append(r *Row, _ []byte) error {
	line, err := r.line()
	if err != nil {
		return err
	}
	if _, err := s.w.Write(line); err != nil {
		return fmt.Errorf("standard output: %w", pathless(err))
	}
	return s.Journal.Append(r, nil)
}
