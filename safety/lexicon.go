package safety

import (
	"embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// lexica are the terms that every policy has: what people say, not a list of insults. Operators add their own.
//
//go:embed lexicon/*.txt
var lexica embed.FS

// builtinTerms are a category's; nil for none. Each automaton is made when it is first asked for.
func builtinTerms(c Category) *blocklist { return builtins[c]() }

var builtins = func() (list [numCategories]func() *blocklist) {
	for c := range list {
		list[c] = sync.OnceValue(func() *blocklist { return openLexicon(Category(c)) })
	}
	return list
}()

// openLexicon reads a category's file. What is wrong with it is this program's own mistake.
func openLexicon(c Category) *blocklist {
	name := "lexicon/" + c.String() + ".txt"
	raw, err := lexica.ReadFile(name)
	if err != nil {
		return nil // a category without terms
	}
	terms, err := parseLexicon(string(raw), c)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", name, err))
	}
	b, err := newBlocklist(terms)
	if err != nil {
		panic(fmt.Sprintf("%s: %v", name, err))
	}
	return b
}

// elided is a letter before an apostrophe, which is written as a space in the files and left out when texts are folded.
var elided = regexp.MustCompile(`(^|[ {|])([cdjlmnstCDJLMNST]|qu) ([aeiouhéèêà])`)

// parseLexicon reads a term a line. {a|b} stands for either, $name for what a line "$name = a|b" says before, and a
// line
// "= 0.7" gives the score of the terms after it.
func parseLexicon(text string, c Category) (list []term, err error) {
	score := 1.0
	var names []string // and what they stand for
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		name, value, named := strings.Cut(line, " = ")
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '$' && named:
			names = append(names, name, "{"+value+"}")
		case strings.HasPrefix(line, "= "):
			if score, err = strconv.ParseFloat(line[2:], 64); err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
		default:
			line = elided.ReplaceAllString(strings.NewReplacer(names...).Replace(line), "$1{$2 |$2}$3")
			list = append(list, term{category: c, score: score, text: line})
			if strings.ContainsRune(list[len(list)-1].text, '$') {
				return nil, fmt.Errorf("line %d: an unknown name", i+1)
			}
		}
	}
	return list, nil
}
