package safety

// Near is near.
func Near(a, b uint64) bool { return near(a, b) }
