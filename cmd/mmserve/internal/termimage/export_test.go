package termimage

// NewBesideSized is NewBeside for a window of cols by rows.
var NewBesideSized = newBeside
