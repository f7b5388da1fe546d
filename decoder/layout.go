package decoder

// layout says where the positions of a step's rows are among those of its run. Where rows may have any number of
// positions (Capacity.Mixed) they lie one behind the other; else each row has room for as many as the longest.
type layout struct {
	rows  []Row
	mixed bool
	first []int // of each row, its first position
	width int   // ids of the longest row
	count int   // positions of all rows
}

// arrange makes l the layout of rows.
func (l *layout) arrange(rows []Row, mixed bool) {
	*l = layout{rows: rows, mixed: mixed, first: l.first[:0], width: (&Batch{Rows: rows}).Width()}
	for i := range rows {
		l.first = append(l.first, l.count)
		l.count += l.room(i)
	}
}

// room is the number of positions of row i, those behind its ids included.
func (l *layout) room(i int) int {
	if l.mixed {
		return len(l.rows[i].IDs)
	}
	return l.width
}

// dims are the first two axes of values at all positions.
func (l *layout) dims() (rows, width int) {
	if l.mixed {
		return 1, l.count
	}
	return len(l.rows), l.width
}
