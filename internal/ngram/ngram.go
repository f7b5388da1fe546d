// Package ngram is a linear classifier of short texts over hashed n-grams of letters and words: logistic regression
// (Weinberger et al., "Feature hashing for large scale multitask learning", 2009). It tells one class from the rest.
package ngram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode"
)

// The features: n-grams of 1 to maxLetters letters within words, and pairs of words, hashed into 2^Bits weights.
const (
	Bits       = 15
	maxLetters = 5
	// maxText bounds the letters of a text that are looked at.
	maxText = 2000
)

// Features are those of a text, each once, in order. The highest bit says whether a weight adds or takes away.
func Features(text string) []uint32 {
	var list []uint32
	last := ""
	n := 0
	for _, word := range strings.FieldsFunc(strings.ToLower(text), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsNumber(r) && !unicode.IsMark(r)
	}) {
		if n += len(word); n > maxText {
			break
		}
		letters := []rune("^" + word + "$")
		for size := 1; size <= maxLetters; size++ {
			for at := 0; at+size <= len(letters); at++ {
				if size > 1 || letters[at] > 0x2e80 { // a letter says nothing, a sign of Chinese does
					list = append(list, hash(string(letters[at:at+size])))
				}
			}
		}
		list = append(list, hash(" "+word), hash(last+" "+word))
		last = word
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// hash is FNV-1a of a feature, cut to an index and, in the highest bit, a sign.
func hash(s string) uint32 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	h ^= h >> 32
	return uint32(h>>20)&(1<<Bits-1) | uint32(h&1)<<31
}

// Model is a classifier. Its methods may be called concurrently.
type Model struct {
	bias, scale float64
	weights     [1 << Bits]int8
}

// Score is the share that a text is of the class, 0 to 1.
func (m *Model) Score(text string) float64 {
	list := Features(text)
	if len(list) == 0 {
		return 0
	}
	sum := 0
	for _, f := range list {
		w := int(m.weights[f&(1<<Bits-1)])
		if f>>31 != 0 {
			w = -w
		}
		sum += w
	}
	return sigmoid(m.bias + float64(sum)*m.scale/math.Sqrt(float64(len(list))))
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

// magic begins the form of a model in a file.
const magic = "ngram1\n\x00"

// MarshalBinary gives the form in a file: 24 bytes and a byte for each weight.
func (m *Model) MarshalBinary() ([]byte, error) {
	b := binary.LittleEndian.AppendUint64([]byte(magic), math.Float64bits(m.bias))
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(m.scale))
	for _, w := range m.weights {
		b = append(b, byte(w))
	}
	return b, nil
}

// Parse reads a model.
func Parse(b []byte) (*Model, error) {
	if want := len(magic) + 16 + 1<<Bits; len(b) != want {
		return nil, fmt.Errorf("a model of %d bytes; want %d", len(b), want)
	}
	if string(b[:len(magic)]) != magic {
		return nil, errors.New("not a model of n-grams")
	}
	m := &Model{}
	b = b[len(magic):]
	m.bias = math.Float64frombits(binary.LittleEndian.Uint64(b))
	m.scale = math.Float64frombits(binary.LittleEndian.Uint64(b[8:]))
	for i, w := range b[16:] {
		m.weights[i] = int8(w)
	}
	return m, nil
}

// Sample is a text and whether it is of the class. Weight is what it counts in training.
type Sample struct {
	Text   string
	Class  bool
	Weight float64
}

// Training of a model: passes over the samples, the rate of AdaGrad and the decay of weights.
const (
	passes = 20
	rate   = 0.3
	decay  = 1e-5
)

// Train makes a model of samples; the same of the same samples and seed.
func Train(samples []Sample, seed uint64) *Model {
	features := make([][]uint32, len(samples))
	for i, s := range samples {
		features[i] = Features(s.Text)
	}
	var weights, seen [1 << Bits]float64
	bias, seenBias := 0.0, 0.0
	rng := rand.New(rand.NewPCG(seed, 0))
	for range passes {
		for _, i := range rng.Perm(len(samples)) {
			list := features[i]
			norm := 1 / math.Sqrt(float64(max(1, len(list))))
			x := bias
			for _, f := range list {
				x += sign(f) * weights[f&(1<<Bits-1)] * norm
			}
			off := sigmoid(x)
			if samples[i].Class {
				off--
			}
			off *= samples[i].Weight
			seenBias += off * off
			bias -= rate * off / math.Sqrt(seenBias+1e-9)
			for _, f := range list {
				at := f & (1<<Bits - 1)
				g := off*sign(f)*norm + decay*weights[at]
				seen[at] += g * g
				weights[at] -= rate * g / math.Sqrt(seen[at]+1e-9)
			}
		}
	}
	m := &Model{bias: bias}
	most := 1e-9
	for _, w := range weights {
		most = max(most, math.Abs(w))
	}
	m.scale = most / 127
	for i, w := range weights {
		m.weights[i] = int8(math.Round(w / m.scale))
	}
	return m
}

func sign(f uint32) float64 {
	if f>>31 != 0 {
		return -1
	}
	return 1
}
