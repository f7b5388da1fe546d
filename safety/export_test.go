package safety

// Near is near.
func Near(a, b Print) bool { return near(a, b) }
