package model

import "fmt"

// SameVocabulary tells whether ids mean the same tokens to p and other; an error names the first that does not.
func (p *Processor) SameVocabulary(other *Processor) error {
	n, m := p.Tokenizer.Size(), other.Tokenizer.Size()
	for id := range int32(min(n, m)) {
		a, _, known := p.Tokenizer.Token(id)
		b, _, knows := other.Tokenizer.Token(id)
		if a != b || known != knows {
			return fmt.Errorf("the vocabularies differ: token %d is %q in one and %q in the other", id, a, b)
		}
	}
	if n != m {
		return fmt.Errorf("the vocabularies differ: one has %d tokens, the other %d", n, m)
	}
	return nil
}
