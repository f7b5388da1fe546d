package safety

import (
	_ "embed" // the classifier's weights
	"strings"
	"sync"

	"github.com/mmserve/mmserve/internal/ngram"
)

// healthWeights are what training/health makes of texts that were written for it.
//
//go:embed lexicon/health.ngram
var healthWeights []byte

// healthModel tells questions about health from others, beside the phrases of the lexicon.
var healthModel = sync.OnceValue(func() *ngram.Model {
	m, err := ngram.Parse(healthWeights)
	if err != nil {
		panic(err) // the file is this program's own
	}
	return m
})

// Bounds of what the classifier of health looks at, in bytes: sentences, the first and the last of a long text.
const (
	maxSentence  = 400
	maxSentences = 128
)

// minHealth is the least score of a finding of the classifier's: below it false alarms are many.
const minHealth = 0.6

// health gives the sentences of a text that ask about health, as the classifier has it.
func health(text string) (list []Finding) {
	for _, at := range sentences(text) {
		if score := healthModel().Score(text[at[0]:at[1]]); score >= minHealth {
			list = append(list, Finding{Category: Health, Start: at[0], End: at[1], Score: score})
		}
	}
	return list
}

// sentences are where those of a text begin and end; of more than maxSentences the first and the last.
func sentences(text string) (list [][2]int) {
	start := 0
	end := func(at int) {
		if strings.TrimSpace(text[start:at]) != "" {
			list = append(list, [2]int{start, at})
		}
		if len(list) > maxSentences {
			list = append(list[:maxSentences/2], list[maxSentences/2+1:]...)
		}
		start = at
	}
	for i, r := range text {
		if i-start >= maxSentence {
			end(i)
		}
		if strings.ContainsRune("!?\n。！？", r) || r == '.' && strings.IndexByte(" \n\t", nextByte(text, i)) >= 0 {
			end(i + len(string(r)))
		}
	}
	end(len(text))
	return list
}

// nextByte is that behind i; a space at the end.
func nextByte(text string, i int) byte {
	if i+1 < len(text) {
		return text[i+1]
	}
	return ' '
}
