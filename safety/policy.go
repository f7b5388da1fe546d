package safety

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"

	"github.com/mmserve/mmserve/internal/reload"
)

// Policy is what a file says, ready for use. It is never changed.
type Policy struct {
	base    *Rules
	tenants map[string]*Rules
	// terms are the file's own, one automaton for each category; nil for none.
	terms [numCategories]*blocklist
	// UsePolicy is what the service is for and what it is not, in the operator's words.
	UsePolicy string
	// Classifiers and TextInImages name the folders of models that images and texts are looked at with.
	Classifiers  []ClassifierConfig
	TextInImages string
	// Abuse says when callers are quarantined; nil: never.
	Abuse *AbuseRules
}

// Rules are those of one tenant. Their methods may be called concurrently.
type Rules struct {
	policy  *Policy
	rules   [numCategories]Rule
	kinds   []string // of personal data
	regions []string // whose numbers are phones without a country's code
	notice  string   // for Health
}

// Rule is what holds of a category.
type Rule struct {
	// Threshold is the least score of a finding.
	Threshold float64
	Actions   [numPlaces]Action
}

// ClassifierConfig is a model of an operator's that texts or images are looked at with.
type ClassifierConfig struct {
	Name, Kind, Folder string
	// Labels are the categories of its labels; the others mean nothing.
	Labels map[string]Category
	// Threshold is the least score of a finding, beside that of the category.
	Threshold float64
}

// defaultThreshold is that of categories without one of their own.
const defaultThreshold = 0.5

// personalKinds are the kinds of personal data, with all of them on where a policy says nothing else.
var personalKinds = []string{"email", "phone", "card", "iban", "national_id", "ip", "secret"}

// Of gives a tenant's rules.
func (p *Policy) Of(tenant string) *Rules {
	if r := p.tenants[tenant]; r != nil {
		return r
	}
	return p.base
}

// Action is what is to be done about something of a category and score.
func (r *Rules) Action(c Category, place Place, score float64) Action {
	if score < r.rules[c].Threshold {
		return Allow
	}
	return r.rules[c].Actions[place]
}

// Acts says whether anything is done about a category in a place.
func (r *Rules) Acts(c Category, place Place) bool { return r.rules[c].Actions[place] != Allow }

// acts says whether anything is done about any category in a place.
func (r *Rules) acts(place Place) bool {
	return slices.ContainsFunc(Categories(), func(c Category) bool { return r.Acts(c, place) })
}

// Trusting are the rules without one category in requests: what an operator's own texts say.
func (r *Rules) Trusting(c Category) *Rules {
	if !r.Acts(c, Input) {
		return r
	}
	o := *r
	o.rules[c].Actions[Input] = Allow
	return &o
}

// Notice is what is to be shown with an answer to a question about health; empty for nothing.
func (r *Rules) Notice() string { return r.notice }

// File is a policy that follows its file.
type File struct{ files *reload.Files[*Policy] }

// Open reads a policy from a file, which it follows while the reloader runs. A file that makes no sense changes
// nothing.
func Open(path string, log *slog.Logger) (*File, reload.Reloader, error) {
	files, err := reload.Open("policy", log, func(contents [][]byte) (*Policy, error) {
		p, err := Parse(contents[0])
		if err != nil {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return p, err
	}, path)
	if err != nil {
		return nil, nil, err
	}
	return &File{files}, files, nil
}

// Policy is the newest one.
func (f *File) Policy() *Policy { return f.files.Value() }

// Default is the policy of a file that says nothing: everything passes.
func Default() *Policy {
	p, err := Parse(nil)
	if err != nil {
		panic(err) // an empty file is this program's own
	}
	return p
}

// sortFindings puts them in the order of the text; of those that begin together the longest comes first.
func sortFindings(list []Finding) {
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(b.End, a.End), cmp.Compare(b.Action, a.Action),
			cmp.Compare(a.Category, b.Category))
	})
}
