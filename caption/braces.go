package caption

import (
	"fmt"
	"regexp"
	"strconv"
)

// mostExpanded bounds the names that braces stand for.
const mostExpanded = 1_000_000

var braceRange = regexp.MustCompile(`\{(\d{1,9})\.\.(\d{1,9})\}`)

// expandBraces calls f for each name that ranges such as {000..099} stand for, as shells and WebDataset write them.
// Numbers are as wide as the first one of the range.
func expandBraces(pattern string, f func(string) error) error {
	n := 1
	for _, m := range braceRange.FindAllStringSubmatch(pattern, -1) {
		from, to := number(m[1]), number(m[2])
		if to < from {
			return fmt.Errorf("%q: want the smaller number first", m[0])
		}
		if n *= min(to-from+1, mostExpanded+1); n > mostExpanded {
			return fmt.Errorf("%q stands for more than %d names", pattern, mostExpanded)
		}
	}
	return expandFrom("", pattern, f)
}

func expandFrom(before, pattern string, f func(string) error) error {
	at := braceRange.FindStringSubmatchIndex(pattern)
	if at == nil {
		return f(before + pattern)
	}
	first, last := pattern[at[2]:at[3]], pattern[at[4]:at[5]]
	for i := number(first); i <= number(last); i++ {
		part := fmt.Sprintf("%0*d", len(first), i)
		if err := expandFrom(before+pattern[:at[0]]+part, pattern[at[1]:], f); err != nil {
			return err
		}
	}
	return nil
}

// number is the value of up to nine digits.
func number(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		panic(err) // the expression takes digits only
	}
	return n
}
