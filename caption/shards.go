package caption

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// Shards writes images with their captions into tar archives as WebDataset has them: 00000.tar, 00001.tar, …, each with
// a 00000_stats.json. A sample is <key>.<format>, <key>.txt and <key>.json, the row. Rows go into a journal, too, those
// of failed images and of copies into it alone. The archive in progress is a hidden file, which is truncated to what
// the journal has of it when a run goes on; an archive that is there is whole.
type Shards struct {
	*Journal
	// MaxSamples and MaxBytes end an archive.
	MaxSamples int
	MaxBytes   int64

	dir     string
	number  int
	f       *os.File // the archive in progress; nil if there is none
	size    int64
	stats   shardStats
	started time.Time
}

// shardStats is what stands in an archive's _stats.json.
type shardStats struct {
	Count            int     `json:"count"`
	Bytes            int64   `json:"bytes"`
	PromptTokens     int64   `json:"prompt_tokens"`
	CompletionTokens int64   `json:"completion_tokens"`
	Cut              int     `json:"cut_by_max_tokens"`
	Seconds          float64 `json:"seconds"`
}

// OpenShards goes on with the archives in dir, whose journal is j.
func OpenShards(dir string, j *Journal) (*Shards, error) {
	s := &Shards{Journal: j, MaxSamples: 1000, MaxBytes: 1 << 30, dir: dir}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	if err := s.findNumber(); err != nil {
		return nil, err
	}
	info, err := os.Stat(s.temp())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var have int64
	if err == nil {
		have = info.Size()
	}
	return s, s.recover(have)
}

var shardName = regexp.MustCompile(`^(\d{5,9})\.tar$`)

// findNumber sets the number of the archive after the last one that is whole.
func (s *Shards) findNumber() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if m := shardName.FindStringSubmatch(e.Name()); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				return err
			}
			s.number = max(s.number, n+1)
		}
	}
	return nil
}

func (s *Shards) name() string { return fmt.Sprintf("%05d.tar", s.number) }
func (s *Shards) temp() string { return filepath.Join(s.dir, "."+s.name()+".tmp") }

// recover goes on with an archive of have bytes that an earlier run began. Rows whose sample is not in it any more,
// after a crash of the machine, are dropped from the journal, and their images asked about again.
func (s *Shards) recover(have int64) error {
	lost := false
	err := s.Each(func(r *Row, _ []byte) error {
		switch {
		case r.Part != s.name():
		case r.PartEnd > have:
			lost = true
		default:
			s.size = max(s.size, r.PartEnd)
			s.count(r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if lost {
		name := s.name()
		if err := s.Journal.drop(func(r *Row) bool { return r.Part == name && r.PartEnd > have }); err != nil {
			return err
		}
	}
	if have == 0 {
		return nil
	}
	if s.f, err = os.OpenFile(s.temp(), os.O_RDWR, 0); err != nil {
		return err
	}
	s.started = time.Now()
	return s.f.Truncate(s.size)
}

func (s *Shards) count(r *Row) {
	s.stats.Count++
	s.stats.PromptTokens += int64(r.PromptTokens)
	s.stats.CompletionTokens += int64(r.CompletionTokens)
	if r.FinishReason == "length" {
		s.stats.Cut++
	}
}

// Append implements Output.
func (s *Shards) Append(r *Row, image []byte) error {
	if !r.OK() || r.DuplicateOf != "" || image == nil {
		return s.Journal.Append(r, nil)
	}
	if s.f == nil {
		f, err := os.OpenFile(s.temp(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o666)
		if err != nil {
			return err
		}
		s.f, s.size, s.stats, s.started = f, 0, shardStats{}, time.Now()
	}
	end, err := s.sample(r, image)
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", s.temp(), pathless(err)), s.f.Truncate(s.size))
	}
	r.Part, r.PartEnd = s.name(), end
	if err := s.Journal.Append(r, nil); err != nil {
		return errors.Join(err, s.f.Truncate(s.size))
	}
	s.size = end
	s.count(r)
	if s.stats.Count >= s.MaxSamples || s.size >= s.MaxBytes {
		return s.finish()
	}
	return nil
}

// sample writes a sample at the archive's end and gives its new length.
func (s *Shards) sample(r *Row, image []byte) (end int64, err error) {
	row, err := r.line()
	if err != nil {
		return 0, err
	}
	id := r.identity()
	key := fmt.Sprintf("%x", id[:10])
	w := io.NewOffsetWriter(s.f, s.size)
	t := tar.NewWriter(w)
	for _, m := range []struct {
		name string
		data []byte
	}{{key + "." + sampleExtension(r.Format), image}, {key + ".txt", []byte(r.Text)}, {key + ".json", row}} {
		if err := t.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.data)),
			Format: tar.FormatUSTAR}); err != nil {
			return 0, err
		}
		if _, err := t.Write(m.data); err != nil {
			return 0, err
		}
	}
	if err := t.Flush(); err != nil { // pads; Close would write the end of the archive
		return 0, err
	}
	n, err := w.Seek(0, io.SeekCurrent) // from where w began
	return s.size + n, err
}

func sampleExtension(format string) string {
	if format == "jpeg" {
		return "jpg"
	}
	return format
}

// Sync implements Output: the archive before the rows that say what is in it.
func (s *Shards) Sync() error {
	if s.f != nil {
		if err := s.f.Sync(); err != nil {
			return err
		}
	}
	return s.Journal.Sync()
}

// finish ends the archive in progress and gives it its name.
func (s *Shards) finish() error {
	if s.f == nil {
		return nil
	}
	if _, err := s.f.WriteAt(make([]byte, 1024), s.size); err != nil { // two empty blocks end a tar archive
		return err
	}
	s.stats.Bytes, s.stats.Seconds = s.size+1024, seconds(time.Since(s.started))
	if err := errors.Join(s.Sync(), s.f.Close()); err != nil {
		return err
	}
	temp, path := s.temp(), filepath.Join(s.dir, s.name())
	s.f = nil
	err := replaceFile(filepath.Join(s.dir, fmt.Sprintf("%05d_stats.json", s.number)), func(w io.Writer) error {
		return json.NewEncoder(w).Encode(s.stats)
	})
	if err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	s.number++
	return syncDir(s.dir)
}

// Close closes the journal. The archive in progress stays for the next run, unless the run is complete.
func (s *Shards) Close(complete bool) error {
	var err error
	if complete {
		err = s.finish()
	} else if s.f != nil {
		err = errors.Join(s.f.Sync(), s.f.Close())
	}
	return errors.Join(err, s.Journal.Close())
}
