package audit

// Break has the log write to a file that fails.
func (l *Log) Break(wrap func(Output) Output) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file = wrap(l.file)
}

// Output is the file of a log.
type Output = output

// Rehash gives the lines with their hashes made anew, as whoever has no key could.
func Rehash(lines [][]byte) (out [][]byte) {
	var s sum
	for i, line := range lines {
		if i == 0 {
			l, err := ParseLine(line)
			if err != nil {
				panic(err)
			}
			if s, err = parseSum(l.File.Prev); err != nil {
				return lines
			}
		}
		body := line[:len(line)-hashBytes]
		s = s.next(body)
		out = append(out, []byte(string(body)+hashPrefix+s.String()+lineEnd))
	}
	return out
}
