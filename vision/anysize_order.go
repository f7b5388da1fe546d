package vision

// runOrder is the order in which an image's patches run: those of a block side by side, the blocks of a window too.
type runOrder struct {
	// row and col are where patch i of the run stands in the image, source where in its Pixels.
	row, col, source []int32
	// token is the number, row by row, of embedding i of the run.
	token []int32
	// windows are the lengths of the windows, in patches; the whole image is one where there are none.
	windows []int32
}

// order gives that of an image of so many rows and columns of patches, which are whole blocks.
func (c AnySize) order(rows, cols int) runOrder {
	m, n := c.MergeSize, rows*cols
	side := max(rows, cols) // of a window
	if c.Window > 0 {
		side = c.Window
	}
	o := runOrder{row: make([]int32, 0, n), col: make([]int32, 0, n), source: make([]int32, 0, n),
		token: make([]int32, 0, n/(m*m))}
	for top := 0; top < rows; top += side {
		for left := 0; left < cols; left += side {
			before := len(o.row)
			for y := top; y < min(top+side, rows); y += m {
				for x := left; x < min(left+side, cols); x += m {
					o.block(c, y, x, cols)
				}
			}
			o.windows = append(o.windows, int32(len(o.row)-before))
		}
	}
	return o
}

// block adds the patches of the block at a row and a column.
func (o *runOrder) block(c AnySize, top, left, cols int) {
	m := c.MergeSize
	number := top/m*(cols/m) + left/m
	o.token = append(o.token, int32(number))
	for i := range m * m {
		y, x := top+i/m, left+i%m
		o.row, o.col = append(o.row, int32(y)), append(o.col, int32(x))
		o.source = append(o.source, int32(number*m*m+i))
	}
}
