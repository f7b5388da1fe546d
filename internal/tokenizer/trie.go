package tokenizer

import (
	"slices"
	"strings"
)

// trie finds the tokens that a text starts with. The children of a node lie side by
// side, ascending by their bytes. It does not change once it is made.
type trie struct {
	nodes []trieNode // the root first
}

type trieNode struct {
	first    int32 // of its children in nodes
	children int32
	id       int32 // of the token that ends here, or -1
	label    byte  // the last byte of the token
}

// newTrie makes a trie of tokens, of which the empty one is never found.
func newTrie(ids map[string]int32) *trie {
	tokens := make([]string, 0, len(ids))
	for token := range ids {
		tokens = append(tokens, token)
	}
	slices.Sort(tokens)
	// The tokens below nodes[i] are tokens[spans[i].from:spans[i].to], which are the same
	// up to spans[i].depth.
	type span struct{ from, to, depth int }
	t := &trie{nodes: []trieNode{{id: -1}}}
	spans := []span{{0, len(tokens), 0}}
	for i := 0; i < len(t.nodes); i++ {
		s := spans[i]
		if s.from < s.to && len(tokens[s.from]) == s.depth { // the shortest comes first
			t.nodes[i].id = ids[tokens[s.from]]
			s.from++
		}
		t.nodes[i].first = int32(len(t.nodes))
		for from := s.from; from < s.to; {
			label := tokens[from][s.depth]
			to := from + 1
			for to < s.to && tokens[to][s.depth] == label {
				to++
			}
			t.nodes = append(t.nodes, trieNode{id: -1, label: label})
			spans = append(spans, span{from, to, s.depth + 1})
			from = to
		}
		t.nodes[i].children = int32(len(t.nodes)) - t.nodes[i].first
	}
	t.nodes[0].id = -1
	return t
}

// child returns the node below node for a byte, or -1.
func (t *trie) child(node int32, label byte) int32 {
	low := t.nodes[node].first
	high := low + t.nodes[node].children
	for low < high {
		mid := (low + high) / 2
		switch l := t.nodes[mid].label; {
		case l == label:
			return mid
		case l < label:
			low = mid + 1
		default:
			high = mid
		}
	}
	return -1
}

// longest returns the end and the id of the longest token that s starts with; end is 0
// if there is none.
func (t *trie) longest(s string) (end int, id int32) {
	node := int32(0)
	for i := range len(s) {
		if node = t.child(node, s[i]); node < 0 {
			break
		}
		if t.nodes[node].id >= 0 {
			end, id = i+1, t.nodes[node].id
		}
	}
	return end, id
}

// withoutPrefix returns the tokens that start with prefix, without it.
func withoutPrefix(ids map[string]int32, prefix string) map[string]int32 {
	rest := make(map[string]int32)
	for token, id := range ids {
		if after, ok := strings.CutPrefix(token, prefix); ok {
			rest[after] = id
		}
	}
	return rest
}
