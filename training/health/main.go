// Command health trains the classifier of questions about health that package safety has, and says how good it is on
// texts that it was not trained on:
//
//	go run ./training/health -out safety/lexicon/health.ngram
//
// The same texts give the same bytes. It takes some seconds.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/mmserve/mmserve/internal/ngram"
)

// perTemplate is how many texts are made of a template at most.
const perTemplate = 60

// alarmCost is how much worse a false alarm is than a miss: phrases are looked for beside.
const alarmCost = 3

func main() {
	train := flag.String("train", "training/health/train.txt", "templates to train on")
	held := flag.String("held", "training/health/held.txt", "texts to measure on")
	out := flag.String("out", "", "file of the model to write")
	flag.Parse()
	if err := run(*train, *held, *out); err != nil {
		fmt.Fprintln(os.Stderr, "health:", err)
		os.Exit(1)
	}
}

func run(train, held, out string) error {
	samples, err := read(train, perTemplate)
	if err != nil {
		return err
	}
	rest, err := read(held, 1)
	if err != nil {
		return err
	}
	m := ngram.Train(samples, 23)
	right, of := map[bool]int{}, map[bool]int{}
	for _, s := range rest {
		score := m.Score(s.Text)
		if of[s.Class]++; (score >= 0.5) == s.Class {
			right[s.Class]++
		} else {
			fmt.Printf("%.2f %v %s\n", score, s.Class, s.Text)
		}
	}
	fmt.Printf("trained on %d; held out: found %d of %d, false alarms in %d of %d\n", len(samples),
		right[true], of[true], of[false]-right[false], of[false])
	if out == "" {
		return nil
	}
	raw, err := m.MarshalBinary()
	if err != nil {
		return err
	}
	return os.WriteFile(out, raw, 0o644)
}

// read makes texts of the lines of a file. Each part of it counts the same in training as the largest.
func read(path string, per int) (list []ngram.Sample, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rng := rand.New(rand.NewPCG(7, 11))
	begins := []int{}
	class := false
	for i, line := range strings.Split(string(raw), "\n") {
		switch {
		case line == "" || line[0] == '#':
			continue
		case line[0] == '[':
			begins = append(begins, len(list))
			class = strings.HasPrefix(line, "[health ")
			continue
		}
		seen := map[string]bool{}
		for range per {
			text, rest := pick(line, rng)
			if rest != "" {
				return nil, fmt.Errorf("%s: line %d: a brace that does not close", path, i+1)
			}
			if !seen[text] {
				seen[text] = true
				list = append(list, ngram.Sample{Text: text, Class: class})
			}
		}
	}
	begins = append(begins, len(list))
	most := 0
	for i := range len(begins) - 1 {
		most = max(most, begins[i+1]-begins[i])
	}
	for i := range len(begins) - 1 {
		for k := begins[i]; k < begins[i+1]; k++ {
			list[k].Weight = float64(most) / float64(begins[i+1]-begins[i])
			if !list[k].Class {
				list[k].Weight *= alarmCost
			}
		}
	}
	return list, nil
}

// pick takes one of each of a line's alternatives, up to a brace or bar that ends one, and gives what is behind that.
func pick(line string, rng *rand.Rand) (text, rest string) {
	var b strings.Builder
	for {
		open := strings.IndexByte(line, '{')
		if open < 0 {
			b.WriteString(line)
			return b.String(), ""
		}
		end := strings.IndexByte(line[open:], '}')
		if end < 0 {
			return "", line
		}
		b.WriteString(line[:open])
		choices := strings.Split(line[open+1:open+end], "|")
		b.WriteString(choices[rng.IntN(len(choices))])
		line = line[open+end+1:]
	}
}
