package constrain

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mmserve/mmserve/internal/tokenizer"
)

// vocabulary is what a tokenizer's tokens spell. It does not change.
type vocabulary struct {
	text  []string // by id: the bytes amid other tokens; empty for a token that is never allowed
	first map[int32]string
	stop  []int32
	words int // of a mask

	rest  trie // of text
	start trie // of the text of tokens that come first; the same as rest where first is empty
}

// newVocabulary reads the tokens of tok. It is an error if a byte of UTF-8 has no token of its own: a text could
// then be impossible to continue.
func newVocabulary(tok *tokenizer.Tokenizer, stop []int32) (*vocabulary, error) {
	if len(stop) == 0 {
		return nil, fmt.Errorf("constrain: no stop id: an output could not end")
	}
	size := tok.Size()
	for _, id := range stop {
		if id < 0 {
			return nil, fmt.Errorf("constrain: stop id %d is negative", id)
		}
		size = max(size, int(id)+1)
	}
	v := &vocabulary{text: make([]string, size), first: make(map[int32]string), stop: slices.Clone(stop),
		words: (size + 63) / 64}
	never := make(map[int32]bool)
	for _, t := range tok.AddedTokens() {
		never[t.ID] = true
	}
	for _, id := range stop {
		never[id] = true
	}
	var single [256]bool
	for id := range int32(tok.Size()) {
		if never[id] {
			continue
		}
		text := string(tok.TokenBytes(id))
		v.text[id] = text
		if len(text) == 1 {
			single[text[0]] = true
		}
		// A decoder may drop what the first token starts with, such as the space that the normalizer put there. Only
		// whole characters can be dropped.
		if utf8.ValidString(text) {
			if first := tok.Decode([]int32{id}, true); first != text {
				v.first[id] = first
			}
		}
	}
	for b, ok := range single {
		if !ok && b != 0xC0 && b != 0xC1 && b < 0xF5 {
			return nil, fmt.Errorf("constrain: the tokenizer has no token for the byte 0x%02X alone", b)
		}
	}
	v.rest = newTrie(v.text)
	v.start = v.rest
	if len(v.first) > 0 {
		text := slices.Clone(v.text)
		for id, first := range v.first {
			text[id] = first
		}
		v.start = newTrie(text)
	}
	return v, nil
}

// trie holds the tokens by their bytes, its nodes in the order of a walk: a node's descendants follow it. The root,
// which has no byte, is left out.
type trie struct {
	nodes []trieNode // and one more, which ends them
	ids   []int32    // in the order of the nodes
	depth int        // of the deepest node
}

type trieNode struct {
	skip   int32  // the next node that is no descendant
	parent int32  // or none
	first  int32  // the tokens that end here or below are ids[first:nodes[skip].first]
	depth  uint16 // 0 for the first byte of a token
	b      byte
}

// maxToken bounds the bytes of a token: longer ones are never allowed.
const maxToken = 1 << 12

func newTrie(text []string) trie {
	var t trie
	for id, s := range text {
		if s != "" && len(s) <= maxToken {
			t.ids = append(t.ids, int32(id))
		}
	}
	slices.SortFunc(t.ids, func(a, b int32) int { return strings.Compare(text[a], text[b]) })
	var path []int32 // the nodes of the last token
	last := ""
	// pop ends the nodes of path from depth on.
	pop := func(depth int) {
		for _, at := range path[depth:] {
			t.nodes[at].skip = int32(len(t.nodes))
		}
		path = path[:depth]
	}
	for i, id := range t.ids {
		s := text[id]
		common := 0
		for common < len(last) && common < len(s) && last[common] == s[common] {
			common++
		}
		pop(common)
		for depth := common; depth < len(s); depth++ {
			parent := int32(none)
			if depth > 0 {
				parent = path[depth-1]
			}
			path = append(path, int32(len(t.nodes)))
			t.nodes = append(t.nodes, trieNode{parent: parent, first: int32(i), depth: uint16(depth), b: s[depth]})
		}
		t.depth = max(t.depth, len(s))
		last = s
	}
	pop(0)
	t.nodes = append(t.nodes, trieNode{skip: int32(len(t.nodes)) + 1, parent: none, first: int32(len(t.ids))})
	return t
}

// here returns the ids of the tokens that end at node i.
func (t *trie) here(i int32) []int32 { return t.ids[t.nodes[i].first:t.nodes[i+1].first] }

// path appends the bytes from the root up to and without node i.
func (t *trie) path(dst []byte, i int32) []byte {
	from := len(dst)
	for at := t.nodes[i].parent; at != none; at = t.nodes[at].parent {
		dst = append(dst, t.nodes[at].b)
	}
	slices.Reverse(dst[from:])
	return dst
}
