package chat

// Joined reports whether t wants the messages of role as one string.
func (t *Template) Joined(role string) bool { return t.joined[role] }
