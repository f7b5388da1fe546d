package tokenizer

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// addedToken is an element of the file's added_tokens.
type addedToken struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"` // only where no word rune is on either side
	LStrip     bool   `json:"lstrip"`      // takes the white space before it
	RStrip     bool   `json:"rstrip"`      // takes the white space after it
	Normalized bool   `json:"normalized"`  // is looked for in the normalized text
	Special    bool   `json:"special"`
}

// mark is a place that no added token may span: a token of the bytes [start, end) is
// not found if start < hi and end > lo. In the raw text lo equals hi; a normalizer that
// rewrites what is around a mark widens it to what it wrote.
type mark struct{ lo, hi int }

// takeMarks removes the guard rune from text and returns where it was, in ascending order.
func takeMarks(text string, guard rune) (string, []mark) {
	sep := string(guard)
	if !strings.Contains(text, sep) {
		return text, nil
	}
	var b strings.Builder
	b.Grow(len(text))
	var marks []mark
	for {
		before, after, found := strings.Cut(text, sep)
		b.WriteString(before)
		if !found {
			return b.String(), marks
		}
		marks = append(marks, mark{b.Len(), b.Len()})
		text = after
	}
}

// within returns the marks inside the bytes [start, end), relative to start.
func within(marks []mark, start, end int) []mark {
	first := sort.Search(len(marks), func(i int) bool { return marks[i].hi > start })
	last := sort.Search(len(marks), func(i int) bool { return marks[i].lo >= end })
	if first >= last {
		return nil
	}
	inside := make([]mark, last-first)
	for i, m := range marks[first:last] {
		inside[i] = mark{m.lo - start, m.hi - start}
	}
	return inside
}

// matcher finds added tokens in a text: the leftmost, of those at one place the longest.
type matcher struct {
	tokens []addedToken
	starts [256]bool        // by the first byte of a token
	edges  map[uint32]int32 // a trie over bytes: node<<8 | byte to node; the root is 0
	ends   []int32          // by node: index into tokens, or -1
}

// add makes m find token as content, unless it finds another token as content already.
func (m *matcher) add(content string, token addedToken) {
	if content == "" {
		return
	}
	if m.edges == nil {
		m.edges = make(map[uint32]int32)
		m.ends = []int32{-1}
	}
	node := int32(0)
	for i := range len(content) {
		edge := uint32(node)<<8 | uint32(content[i])
		next, ok := m.edges[edge]
		if !ok {
			next = int32(len(m.ends))
			m.ends = append(m.ends, -1)
			m.edges[edge] = next
		}
		node = next
	}
	m.starts[content[0]] = true
	if m.ends[node] < 0 {
		m.ends[node] = int32(len(m.tokens))
		m.tokens = append(m.tokens, token)
	}
}

// longest returns the index and the end of the longest token that starts at s[i] and
// ends at limit or before. The end is -1 if there is none.
func (m *matcher) longest(s string, i, limit int) (token int32, end int) {
	node, end := int32(0), -1
	for ; i < limit; i++ {
		next, ok := m.edges[uint32(node)<<8|uint32(s[i])]
		if !ok {
			break
		}
		node = next
		if m.ends[node] >= 0 {
			token, end = m.ends[node], i+1
		}
	}
	return token, end
}

// split calls yield for the added tokens in s, with their ids, and for the text between
// them, with id -1. Every byte of s is in one call. A token for which allow, if it is not
// nil, is false is text.
func (m *matcher) split(s string, marks []mark, allow func(start, end int, t *addedToken) bool,
	yield func(start, end int, id int32)) {
	done, blank := 0, 0 // s[:done] has been given to yield; white space reaches up to blank
	for i := 0; i < len(s); {
		if !m.starts[s[i]] {
			i++
			continue
		}
		for len(marks) > 0 && marks[0].hi <= i {
			marks = marks[1:]
		}
		limit := len(s)
		if len(marks) > 0 {
			limit = marks[0].lo
		}
		index, end := m.longest(s, i, limit)
		if end < 0 {
			i++
			continue
		}
		token := &m.tokens[index]
		start := i
		i = end
		if token.SingleWord && (endsWithWord(s[:start]) || startsWithWord(s[end:])) {
			continue
		}
		if allow != nil && !allow(start, end, token) {
			continue
		}
		if token.LStrip {
			from := min(done, start)
			start = max(from+len(strings.TrimRightFunc(s[from:start], unicode.IsSpace)), done)
		}
		if token.RStrip { // tokens may be white space: none of it is walked over twice
			if end >= blank {
				blank = len(s) - len(strings.TrimLeftFunc(s[end:], unicode.IsSpace))
			}
			end = max(end, blank)
		}
		if done < start {
			yield(done, start, -1)
		}
		yield(start, end, token.ID)
		done = end
	}
	if done < len(s) {
		yield(done, len(s), -1)
	}
}

func endsWithWord(s string) bool {
	r, size := utf8.DecodeLastRuneInString(s)
	return size > 0 && isWord(r)
}

func startsWithWord(s string) bool {
	r, size := utf8.DecodeRuneInString(s)
	return size > 0 && isWord(r)
}
