// Package safety finds in texts and images what a policy has a rule for, and says what is to be done about it: personal
// data, hate, spam and more. Policies are files of an operator's, each tenant's rules in them; what is found is told by
// category, place and count, never by content.
//
// A text may come piece by piece (Stream): what leaves, and what is found, is the same however it is cut.
package safety

import "slices"

// Category is what a finding is of.
type Category int

// The categories.
const (
	Hate Category = iota
	Sexual
	Violence
	SelfHarm
	PersonalData
	Spam
	PromptInjection
	// Health is of questions about illness and treatment. By default it blocks nothing: a notice is shown.
	Health
	numCategories
)

var categoryNames = [numCategories]string{
	"hate", "sexual", "violence", "self_harm", "personal_data", "spam", "prompt_injection", "health",
}

// String is the category as policies, metrics and answers write it.
func (c Category) String() string { return categoryNames[c] }

// Categories are all of them.
func Categories() []Category {
	list := make([]Category, numCategories)
	for i := range list {
		list[i] = Category(i)
	}
	return list
}

// ParseCategory is the category of a name.
func ParseCategory(name string) (Category, bool) {
	i := slices.Index(categoryNames[:], name)
	return Category(i), i >= 0
}

// Action is what is done about a finding, from the mildest to the sternest.
type Action int

// The actions.
const (
	Allow  Action = iota
	Flag          // it passes, and is counted
	Redact        // a mark stands in its place
	Block         // the request is refused, or the answer ends
)

var actionNames = [...]string{"allow", "flag", "redact", "block"}

// String is the action as policies, metrics and answers write it.
func (a Action) String() string { return actionNames[a] }

// Place is where something is found.
type Place int

// The places.
const (
	Input  Place = iota // text of a request
	Output              // text of an answer
	Images              // images of a request, and text in them
	numPlaces
)

var placeNames = [numPlaces]string{"input", "output", "images"}

// String is the place as policies, metrics and answers write it.
func (p Place) String() string { return placeNames[p] }

// Finding is something that a policy has a rule for, in bytes [Start, End) of a text.
type Finding struct {
	Category Category
	// Kind is what it is, of personal data: email, phone, card, iban, national_id, ip or secret. Else empty.
	Kind       string
	Start, End int
	// Score is how sure the detector is, 0 to 1.
	Score  float64
	Action Action
}

// Mark is what stands in the place of a finding.
func (f Finding) Mark() string {
	if f.Kind != "" {
		return "[" + f.Kind + "]"
	}
	return "[" + f.Category.String() + "]"
}

// Count is how often something was found.
type Count struct {
	Category Category
	Place    Place
	Action   Action
	N        int
}

// Tally adds findings up.
type Tally struct{ counts []Count }

// Add counts one.
func (t *Tally) Add(c Category, p Place, a Action) {
	for i := range t.counts {
		if o := &t.counts[i]; o.Category == c && o.Place == p && o.Action == a {
			o.N++
			return
		}
	}
	t.counts = append(t.counts, Count{c, p, a, 1})
}

// Counts are in the order of categories, places and actions.
func (t *Tally) Counts() []Count {
	list := slices.Clone(t.counts)
	slices.SortFunc(list, func(a, b Count) int {
		return (int(a.Category)*int(numPlaces)+int(a.Place))*len(actionNames) + int(a.Action) -
			(int(b.Category)*int(numPlaces)+int(b.Place))*len(actionNames) - int(b.Action)
	})
	return list
}
