package tokenizer

// mustEncodeGuarded is EncodeGuarded of texts that no step makes too long.
func (t *Tokenizer) mustEncodeGuarded(text string, guard rune, addSpecial bool) []int32 {
	ids, err := t.EncodeGuarded(text, guard, addSpecial)
	if err != nil {
		panic(err)
	}
	return ids
}
