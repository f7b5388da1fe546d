package vision

// Detail is how closely an image is to be looked at.
type Detail int

const (
	// DetailAuto is DetailHigh.
	DetailAuto Detail = iota
	// DetailLow has an image in one tile of the model's size.
	DetailLow
	// DetailHigh has an image cut into as many tiles as its resolution calls for.
	DetailHigh
)

// Split reports whether an image may be cut into tiles.
func (d Detail) Split() bool { return d != DetailLow }
