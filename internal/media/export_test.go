package media

// Check says what of a store's books does not agree, "" if nothing.
func (s *Store) Check() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle, sum := 0, int64(0)
	for _, t := range s.tenants {
		idle += t.recent.Len()
		sum += t.bytes
		if t.bytes <= 0 {
			return "a tenant of no bytes is known"
		}
	}
	counted := int64(0)
	for _, f := range s.files {
		counted += f.counted
		if (f.users == 0) != (f.recent != nil) || f.recent == nil != (f.among == nil) || !f.kept {
			return "a file is idle and in use"
		}
	}
	switch {
	case idle != s.recent.Len():
		return "lists of idle files differ"
	case s.expiry.Len() != len(s.files):
		return "a file has no expiry"
	case sum != s.bytes:
		return "tenants do not add up"
	case counted > s.bytes:
		return "files take more than is counted"
	case s.bytes > s.options.Bytes:
		return "over the budget"
	case len(s.files) > 0 && s.timer == nil && !s.closed:
		return "no timer runs"
	}
	return ""
}
