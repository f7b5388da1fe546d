package caption

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"syscall"
)

// Open gives the source that a command's argument names: an image file, a folder, a tar archive, a list (.jsonl, .csv,
// .parquet), names with ranges such as {000..099}, or a pattern. A name that exists is never taken for a pattern.
func Open(in string, m Match) (Source, error) {
	if in == "" {
		return nil, errors.New("an empty name")
	}
	if IsStore(in) {
		if braceRange.MatchString(in) {
			return ranges(in, m), checkRanges(in)
		}
		return Store(in, m), nil
	}
	info, err := os.Stat(in)
	missing := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG) || errors.Is(err, syscall.ENOTDIR)
	switch {
	case missing && braceRange.MatchString(in):
		return ranges(in, m), checkRanges(in)
	case missing && hasMeta(in):
		return Glob(in, m), nil
	case err == nil && info.Mode().IsRegular() && isList(in):
		return List(in, m), nil
	}
	return openListed(in, m), nil
}

// checkRanges refuses ranges that run backwards or stand for too many names.
func checkRanges(pattern string) error {
	if err := expandBraces(pattern, func(string) error { return errStop }); !errors.Is(err, errStop) {
		return err
	}
	return nil
}

// ranges lists what each name stands for that a pattern with ranges gives.
func ranges(pattern string, m Match) Source {
	return func(ctx context.Context) iter.Seq2[Item, error] {
		return func(yield func(Item, error) bool) {
			err := expandBraces(pattern, func(name string) error {
				s, err := Open(name, m)
				if err != nil {
					return err
				}
				return giveAll(ctx, s, yield)
			})
			if err != nil && !errors.Is(err, errStop) {
				yield(Item{}, err)
			}
		}
	}
}
