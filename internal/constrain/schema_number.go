package constrain

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
)

// maxRemainders bounds the remainders that a multipleOf tells apart.
const maxRemainders = 1 << 14

// number is a number, or an integer, that satisfies all parts.
func (s *schemaCompiler) number(integer bool, parts []*jsonObject, next int32) (int32, error) {
	lo, hi, multiples, err := numberBounds(parts)
	if err != nil {
		return 0, err
	}
	if lo != nil {
		lo = lo.inward(true)
	}
	if hi != nil {
		hi = hi.inward(false)
	}
	patterns, err := numberPatterns(integer, lo, hi)
	if err != nil {
		return 0, err
	}
	name := fmt.Sprintf("number %s of %v", strings.Join(patterns, " & "), multiples)
	return s.term(name, next, func() (*dfa, error) {
		d, err := patternDFA(patterns[0], s.budget)
		if err == nil && len(patterns) > 1 {
			var also *dfa
			if also, err = patternDFA(patterns[1], s.budget); err == nil {
				d, err = intersect(d, also, s.budget)
			}
		}
		for _, m := range multiples {
			var also *dfa
			if err == nil {
				also, err = multiplesDFA(m, integer, s.budget)
			}
			if err == nil {
				d, err = intersect(d, also, s.budget)
			}
		}
		return d, err
	})
}

// numberBounds returns the tightest bounds of parts, each nil if there is none, and all that a number is a multiple of.
func numberBounds(parts []*jsonObject) (lo, hi *bound, multiples []*big.Rat, err error) {
	for _, p := range parts {
		for _, key := range boundKeywords {
			n, ok := p.values[key].(json.Number)
			if !ok {
				continue
			}
			value, err := decimal(n)
			if err != nil {
				return nil, nil, nil, err
			}
			switch b := (&bound{value, strings.HasPrefix(key, "exclusive")}); key {
			case "multipleOf":
				multiples = append(multiples, value)
			case "minimum", "exclusiveMinimum":
				b.strict = b.strict || p.values["exclusiveMinimum"] == true // draft 4
				if lo == nil || value.Cmp(lo.value) > 0 || value.Cmp(lo.value) == 0 && b.strict {
					lo = b
				}
			default:
				b.strict = b.strict || p.values["exclusiveMaximum"] == true
				if hi == nil || value.Cmp(hi.value) < 0 || value.Cmp(hi.value) == 0 && b.strict {
					hi = b
				}
			}
		}
	}
	return lo, hi, multiples, nil
}

// inward is the bound, or the next one inside of it whose value has maxDigits behind the decimal point.
func (b *bound) inward(least bool) *bound {
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(maxDigits), nil)
	scaled := new(big.Rat).Mul(b.value, new(big.Rat).SetInt(scale))
	if scaled.IsInt() {
		return b
	}
	whole := new(big.Int).Div(scaled.Num(), scaled.Denom()) // rounded down
	if least {
		whole.Add(whole, big.NewInt(1))
	}
	return &bound{value: new(big.Rat).SetFrac(whole, scale)}
}

// multiplesDFA returns the automaton of the numbers without exponent that are multiples of m: it carries the remainder
// of the digits so far, as if there were as many behind the decimal point as there may be.
func multiplesDFA(m *big.Rat, integer bool, b *budget) (*dfa, error) {
	places := 0
	if !integer {
		for at := new(big.Rat).Set(m); places < maxDigits && !at.IsInt(); places++ {
			at.Mul(at, big.NewRat(10, 1))
		}
	}
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(places)), nil)
	modulus := new(big.Int).Mul(scale, m.Num())
	modulus.Div(modulus, new(big.Int).GCD(nil, nil, modulus, m.Denom()))
	if !modulus.IsInt64() || modulus.Int64() > maxRemainders {
		// Zero is a multiple of everything, and the only one that can be told.
		return patternDFA("0", b)
	}
	mod := int(modulus.Int64())
	// State 0 is the start, 1 that after the sign; then places+1 groups of remainders: before the decimal point, and after
	// so many digits behind it; at last, that just behind the decimal point.
	const digit, minus, point, other = 0, 11, 10, 12
	d := &dfa{classes: 13}
	for i := range 256 {
		d.class[i] = other
	}
	for i := range 10 {
		d.class['0'+i] = uint8(digit + i)
	}
	d.class['-'], d.class['.'] = minus, point
	groups := places + 1
	at := func(group, rem int) int32 { return int32(2 + group*mod + rem) }
	behind := func(rem int) int32 { return int32(2 + groups*mod + rem) }
	states := 2 + (groups+1)*mod
	if !b.spend(8 * d.classes * states) {
		return nil, errTooLarge
	}
	d.accept = make([]bool, states)
	d.next = make([]int32, states*d.classes)
	for i := range d.next {
		d.next[i] = none
	}
	set := func(from int32, class int, to int32) { d.next[int(from)*d.classes+class] = to }
	set(0, minus, 1)
	for i := range 10 {
		set(0, digit+i, at(0, i%mod))
		set(1, digit+i, at(0, i%mod))
	}
	for rem := range mod {
		full := rem
		for group := groups - 1; group >= 0; group-- { // full is the remainder when only zeros follow
			from := at(group, rem)
			d.accept[from] = full == 0
			full = full * 10 % mod
			for i := range 10 {
				if to := (rem*10 + i) % mod; group == 0 {
					set(from, digit+i, at(0, to))
				} else if group < groups-1 {
					set(from, digit+i, at(group+1, to))
				}
			}
		}
		if groups > 1 {
			set(at(0, rem), point, behind(rem))
			for i := range 10 {
				set(behind(rem), digit+i, at(1, (rem*10+i)%mod))
			}
		}
	}
	return d.trim()
}
