package server

// NewProgress is the tag of a request whose trace is recorded.
func NewProgress() any { return new(progress) }
