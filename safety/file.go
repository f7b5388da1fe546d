package safety

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/nyaruka/phonenumbers"
	"go.yaml.in/yaml/v3"
)

// Limits of a policy file.
const (
	maxPolicyBytes = 4 << 20
	maxTenants     = 10000
	maxTerms       = 100000
	maxTermBytes   = 256
	maxNotice      = 4096
	maxClassifiers = 16
	maxLabels      = 4096
)

// Parse reads a policy from YAML, of which JSON is a part. Errors name the line and the field. An unknown field is an
// error: it was meant to hold something back.
func Parse(raw []byte) (*Policy, error) {
	if len(raw) > maxPolicyBytes {
		return nil, fmt.Errorf("%d bytes; want at most %d", len(raw), maxPolicyBytes)
	}
	p := &Policy{tenants: map[string]*Rules{}}
	p.base = &Rules{policy: p, kinds: personalKinds, regions: defaultRegions}
	for c := range p.base.rules {
		p.base.rules[c].Threshold = defaultThreshold
	}
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return p, nil
	}
	terms, err := p.read(doc.Content[0])
	if err != nil {
		return nil, err
	}
	return p, p.own(terms)
}

// own makes automata of the file's own terms.
func (p *Policy) own(terms []term) (err error) {
	for _, c := range Categories() {
		var own []term
		for _, t := range terms {
			if t.category == c {
				own = append(own, t)
			}
		}
		if len(own) == 0 {
			continue
		}
		if p.terms[c], err = newBlocklist(own); err != nil {
			return err
		}
	}
	return nil
}

// wrong is an error of a node.
func wrong(n *yaml.Node, path, format string, args ...any) error {
	return fmt.Errorf("line %d: %s: %s", n.Line, path, fmt.Sprintf(format, args...))
}

// fields has a function for each field that a mapping may have; it calls those of the fields that are there, in order.
func fields(n *yaml.Node, path string, known map[string]func(n *yaml.Node, path string) error) error {
	return entries(n, path, math.MaxInt, func(key string, k, v *yaml.Node, path string) error {
		read, ok := known[key]
		if !ok {
			names := make([]string, 0, len(known))
			for name := range known {
				names = append(names, name)
			}
			slices.Sort(names)
			return wrong(k, path, "not known; want %s", strings.Join(names, ", "))
		}
		return read(v, path)
	})
}

// entries calls do for each entry of a mapping.
func entries(n *yaml.Node, path string, most int, do func(key string, k, v *yaml.Node, path string) error) error {
	if n.Kind != yaml.MappingNode {
		return wrong(n, or(path, "the file"), "want names with values, each on its line as name: value")
	}
	if len(n.Content)/2 > most {
		return wrong(n, path, "%d entries; want at most %d", len(n.Content)/2, most)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		at := fmt.Sprintf("%.80s", k.Value)
		if path != "" {
			at = path + "." + at
		}
		switch {
		case k.Kind != yaml.ScalarNode:
			return wrong(k, or(path, "the file"), "a name that is no word")
		case v.Kind == yaml.AliasNode || v.Anchor != "":
			return wrong(v, at, "an anchor or alias; want the value itself")
		case seen[k.Value]:
			return wrong(k, at, "given twice")
		}
		seen[k.Value] = true
		if err := do(k.Value, k, v, at); err != nil {
			return err
		}
	}
	return nil
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// scalar is a text of at most that many bytes.
func scalar(n *yaml.Node, path string, most int) (string, error) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", wrong(n, path, "want a text")
	}
	if len(n.Value) == 0 || len(n.Value) > most {
		return "", wrong(n, path, "%d bytes; want 1 to %d", len(n.Value), most)
	}
	return n.Value, nil
}

// list calls do for each item of a list.
func list(n *yaml.Node, path string, most int, do func(n *yaml.Node, path string) error) error {
	if n.Kind != yaml.SequenceNode {
		return wrong(n, path, "want a list")
	}
	if len(n.Content) > most {
		return wrong(n, path, "%d items; want at most %d", len(n.Content), most)
	}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		if item.Kind == yaml.AliasNode || item.Anchor != "" {
			return wrong(item, at, "an anchor or alias; want the value itself")
		}
		if err := do(item, at); err != nil {
			return err
		}
	}
	return nil
}

// choice is the index of a word among those that are allowed.
func choice(n *yaml.Node, path string, allowed []string) (int, error) {
	i := slices.Index(allowed, n.Value)
	if n.Kind != yaml.ScalarNode || i < 0 {
		return 0, wrong(n, path, "%.40q; want %s", n.Value, strings.Join(allowed, ", "))
	}
	return i, nil
}

// share is a number of 0 to 1.
func share(n *yaml.Node, path string) (float64, error) {
	v, err := strconv.ParseFloat(n.Value, 64)
	if n.Kind != yaml.ScalarNode || err != nil || !(v >= 0 && v <= 1) {
		return 0, wrong(n, path, "%.40q; want a number of 0 to 1", n.Value)
	}
	return v, nil
}

// read takes a whole file.
func (p *Policy) read(n *yaml.Node) (terms []term, err error) {
	var tenants *yaml.Node
	var at string
	err = fields(n, "", map[string]func(*yaml.Node, string) error{
		"default": func(n *yaml.Node, path string) error { return p.base.read(n, path) },
		"tenants": func(n *yaml.Node, path string) error {
			tenants, at = n, path
			return nil
		},
		"block_lists": func(n *yaml.Node, path string) error {
			return list(n, path, maxTerms, func(n *yaml.Node, path string) error {
				own, err := readTerms(n, path, maxTerms-len(terms))
				terms = append(terms, own...)
				return err
			})
		},
		"classifiers": func(n *yaml.Node, path string) error {
			return list(n, path, maxClassifiers, p.readClassifier)
		},
		"abuse": p.readAbuse,
		"text_in_images": func(n *yaml.Node, path string) (err error) {
			p.TextInImages, err = scalar(n, path, maxNotice)
			return err
		},
		"use_policy": func(n *yaml.Node, path string) (err error) {
			p.UsePolicy, err = scalar(n, path, 16*maxNotice)
			return err
		},
	})
	if err != nil || tenants == nil {
		return terms, err
	}
	return terms, entries(tenants, at, maxTenants, func(name string, k, v *yaml.Node, path string) error {
		if name == "" || len(name) > 128 {
			return wrong(k, path, "a tenant's name of %d bytes; want 1 to 128", len(name))
		}
		r := *p.base // after default, wherever that stands
		p.tenants[name] = &r
		return r.read(v, path)
	})
}

// read takes the rules of a tenant, or the default's.
func (r *Rules) read(n *yaml.Node, path string) error {
	known := map[string]func(*yaml.Node, string) error{
		"personal_data_kinds": func(n *yaml.Node, path string) error {
			r.kinds = []string{}
			return list(n, path, len(personalKinds), func(n *yaml.Node, path string) error {
				i, err := choice(n, path, personalKinds)
				r.kinds = append(r.kinds, personalKinds[i])
				return err
			})
		},
		"phone_regions": func(n *yaml.Node, path string) error {
			r.regions = []string{}
			return list(n, path, maxRegions, func(n *yaml.Node, path string) error {
				if n.Kind != yaml.ScalarNode || phonenumbers.GetCountryCodeForRegion(n.Value) == 0 {
					return wrong(n, path, "%.40q; want the two letters of a country, as DE", n.Value)
				}
				r.regions = append(r.regions, n.Value)
				return nil
			})
		},
		"health_notice": func(n *yaml.Node, path string) (err error) {
			r.notice, err = scalar(n, path, maxNotice)
			return err
		},
	}
	for c := range r.rules {
		known[categoryNames[c]] = func(n *yaml.Node, path string) error { return r.rules[c].read(n, path) }
	}
	return fields(n, path, known)
}

// read takes the rule of a category.
func (r *Rule) read(n *yaml.Node, path string) error {
	known := map[string]func(*yaml.Node, string) error{
		"threshold": func(n *yaml.Node, path string) (err error) {
			r.Threshold, err = share(n, path)
			return err
		},
	}
	for place := range r.Actions {
		known[placeNames[place]] = func(n *yaml.Node, path string) error {
			i, err := choice(n, path, actionNames[:])
			r.Actions[place] = Action(i)
			return err
		}
	}
	return fields(n, path, known)
}

// readTerms takes one of the block-lists.
func readTerms(n *yaml.Node, path string, most int) (terms []term, err error) {
	category, score := -1, 1.0
	err = fields(n, path, map[string]func(*yaml.Node, string) error{
		"category": func(n *yaml.Node, path string) (err error) {
			category, err = choice(n, path, categoryNames[:])
			return err
		},
		"score": func(n *yaml.Node, path string) (err error) {
			score, err = share(n, path)
			return err
		},
		"terms": func(n *yaml.Node, path string) error {
			return list(n, path, most, func(n *yaml.Node, path string) error {
				text, err := scalar(n, path, maxTermBytes)
				if err == nil && !foldable(text) {
					return wrong(n, path, "no letters or digits in it")
				}
				terms = append(terms, term{text: text, literal: true})
				return err
			})
		},
	})
	if err == nil && (category < 0 || len(terms) == 0) {
		err = wrong(n, path, "want category and terms")
	}
	for i := range terms {
		terms[i].category, terms[i].score = Category(max(0, category)), score
	}
	return terms, err
}

// readClassifier takes one of the classifiers.
func (p *Policy) readClassifier(n *yaml.Node, path string) error {
	c := ClassifierConfig{Labels: map[string]Category{}}
	err := fields(n, path, map[string]func(*yaml.Node, string) error{
		"name": func(n *yaml.Node, path string) (err error) {
			c.Name, err = scalar(n, path, 128)
			return err
		},
		"kind": func(n *yaml.Node, path string) error {
			kinds := []string{"text", "image"}
			i, err := choice(n, path, kinds)
			c.Kind = kinds[i]
			return err
		},
		"threshold": func(n *yaml.Node, path string) (err error) {
			c.Threshold, err = share(n, path)
			return err
		},
		"folder": func(n *yaml.Node, path string) (err error) {
			c.Folder, err = scalar(n, path, maxNotice)
			return err
		},
		"labels": func(n *yaml.Node, path string) error {
			return entries(n, path, maxLabels, func(label string, _, v *yaml.Node, path string) error {
				i, err := choice(v, path, categoryNames[:])
				c.Labels[label] = Category(i)
				return err
			})
		},
	})
	if err == nil && (c.Kind == "" || c.Folder == "" || len(c.Labels) == 0) {
		err = wrong(n, path, "want kind, folder and labels")
	}
	p.Classifiers = append(p.Classifiers, c)
	return err
}
