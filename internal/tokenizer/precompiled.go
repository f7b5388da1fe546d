package tokenizer

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// precompiledNormalizer rewrites text by the rules that SentencePiece compiled into a
// model: a double-array trie (darts-clone) over UTF-8 bytes, whose values are places in
// a text of replacements that each end with a zero byte.
//
// The reference looks a whole grapheme cluster up if it is short, else its runes, and
// takes the shortest rule that what it looks up starts with.
type precompiledNormalizer struct {
	units        []uint32
	replacements string
	ascii        [utf8.RuneSelf]bool // whether there is a rule for the rune alone
}

// longestCluster is the length in bytes of clusters that are looked up whole.
const longestCluster = 5

func readPrecompiled(raw json.RawMessage) (*precompiledNormalizer, error) {
	var f struct {
		Charsmap []byte `json:"precompiled_charsmap"`
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	return newPrecompiled(f.Charsmap)
}

func newPrecompiled(charsmap []byte) (*precompiledNormalizer, error) {
	if len(charsmap) < 4 {
		return nil, fmt.Errorf("precompiled_charsmap has %d bytes, its head alone has 4", len(charsmap))
	}
	size, rest := int64(binary.LittleEndian.Uint32(charsmap)), charsmap[4:]
	if size < 4 || size%4 != 0 || size > int64(len(rest)) {
		return nil, fmt.Errorf("precompiled_charsmap says that %d of %d bytes are its trie", size, len(rest))
	}
	n := &precompiledNormalizer{replacements: string(rest[size:])}
	if !utf8.ValidString(n.replacements) {
		return nil, fmt.Errorf("precompiled_charsmap: the replacements are not UTF-8")
	}
	if err := checkRules(n.replacements); err != nil {
		return nil, err
	}
	for at := int64(0); at < size; at += 4 {
		n.units = append(n.units, binary.LittleEndian.Uint32(rest[at:]))
	}
	for c := range n.ascii {
		_, n.ascii[c] = n.lookUp(string(rune(c)))
	}
	return n, nil
}

// lookUp returns what the shortest rule that s starts with puts in the place of s.
func (n *precompiledNormalizer) lookUp(s string) (with string, ok bool) {
	offset := func(unit uint32) uint32 { return unit >> 10 << (unit & (1 << 9) >> 6) }
	at := offset(n.units[0])
	for i := range len(s) {
		at ^= uint32(s[i])
		if s[i] == 0 || int64(at) >= int64(len(n.units)) || n.units[at]&(1<<31|0xFF) != uint32(s[i]) {
			return "", false
		}
		unit := n.units[at]
		at ^= offset(unit)
		if unit&(1<<8) == 0 { // no rule ends here
			continue
		}
		if int64(at) >= int64(len(n.units)) {
			return "", false
		}
		start := int(n.units[at] & (1<<31 - 1))
		if start >= len(n.replacements) || !utf8.RuneStart(n.replacements[start]) {
			return "", false
		}
		with, _, _ = strings.Cut(n.replacements[start:], "\x00")
		return with, true
	}
	return "", false
}

func (n *precompiledNormalizer) rewrite(s string, edit func(int, int, string)) {
	replace := func(start, end int) bool {
		with, ok := n.lookUp(s[start:end])
		if ok && with != s[start:end] {
			edit(start, end, with)
		}
		return ok
	}
	for i := 0; i < len(s); {
		if s[i] < utf8.RuneSelf && (i+1 == len(s) || s[i+1] < utf8.RuneSelf && s[i+1] != '\n') { // a cluster by itself
			if n.ascii[s[i]] {
				replace(i, i+1)
			}
			i++
			continue
		}
		cluster, _, _, _ := uniseg.FirstGraphemeClusterInString(s[i:], -1)
		end := i + len(cluster)
		if len(cluster) > longestCluster || !replace(i, end) {
			for at, r := range cluster {
				replace(i+at, i+at+utf8.RuneLen(r))
			}
		}
		i = end
	}
}
