package hub

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Repo names a model of a hub.
type Repo struct {
	// ID is ORG/NAME; some old ones are a NAME alone.
	ID string
	// Revision is a branch, a tag or a commit. It is never empty.
	Revision string
}

// DefaultRevision is the branch that is meant if none is named.
const DefaultRevision = "main"

// Scheme begins a name that can be no folder's.
const Scheme = "hf://"

const (
	maxID       = 96
	maxRevision = 255
)

var (
	idPart      = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)
	revisionTxt = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+/-]*$`)
	commitTxt   = regexp.MustCompile(`^[0-9a-f]{40}$`)
)

// ErrName says that a text does not name a model of a hub.
var ErrName = errors.New("want ORG/NAME or ORG/NAME@REVISION")

// Parse reads ORG/NAME[@REVISION], with Scheme in front or without.
func Parse(text string) (Repo, error) {
	rest, schemed := strings.CutPrefix(text, Scheme)
	id, revision, named := strings.Cut(rest, "@")
	if !named {
		revision = DefaultRevision
	}
	parts := strings.Split(id, "/")
	switch {
	case len(id) > maxID, len(parts) > 2, len(parts) < 2 && !schemed,
		strings.Contains(id, "--"), strings.Contains(id, ".."):
		return Repo{}, fmt.Errorf("%.120q: %w", text, ErrName)
	}
	for _, p := range parts {
		if !idPart.MatchString(p) {
			return Repo{}, fmt.Errorf("%.120q: %w", text, ErrName)
		}
	}
	if err := checkRevision(revision); err != nil {
		return Repo{}, err
	}
	return Repo{ID: id, Revision: revision}, nil
}

// checkRevision refuses what git takes for no branch, tag or commit, and what would lead out of a folder.
func checkRevision(revision string) error {
	bad := len(revision) > maxRevision || !revisionTxt.MatchString(revision) || strings.Contains(revision, "..")
	for part := range strings.SplitSeq(revision, "/") {
		bad = bad || part == "" || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock")
	}
	if bad {
		return fmt.Errorf("revision %.120q: want a branch, a tag or a commit", revision)
	}
	return nil
}

// String is what Parse reads.
func (r Repo) String() string {
	if r.Revision == DefaultRevision {
		return r.ID
	}
	return r.ID + "@" + r.Revision
}

// Name is the last part of the ID.
func (r Repo) Name() string { return r.ID[strings.LastIndexByte(r.ID, '/')+1:] }

// pinned says that the revision is a commit, which never changes.
func (r Repo) pinned() bool { return commitTxt.MatchString(r.Revision) }

// folder is the name of the repository's folder in a cache.
func (r Repo) folder() string { return modelsPrefix + strings.ReplaceAll(r.ID, "/", separator) }

const (
	modelsPrefix = "models--"
	separator    = "--"
)

// fromFolder reads what folder wrote.
func fromFolder(name string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(name, modelsPrefix)
	if !ok {
		return "", false
	}
	r, err := Parse(Scheme + strings.ReplaceAll(rest, separator, "/"))
	return r.ID, err == nil
}
