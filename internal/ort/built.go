package ort

import (
	"bytes"
	"fmt"

	"github.com/mmserve/mmserve/internal/onnx"
)

// Built is a graph that was built in memory, as a File that OpenFile opens. Its external data lies where the session's
// options say.
func Built(g Graph) (File, error) {
	data := g.Bytes()
	h, err := onnx.ReadHead(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return File{}, fmt.Errorf("graph %s: %w", g.Title(), err)
	}
	return File{Path: g.Title(), Head: h, built: g}, nil
}
