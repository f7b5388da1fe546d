package verify

import (
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
)

// TestPlainOperators holds that processors without mmserve's own operators are served as well.
func TestPlainOperators(t *testing.T) {
	if !graph.HasKernels {
		t.Skip("the other tests run on them already")
	}
	graph.HasKernels = false
	defer func() { graph.HasKernels = true }()
	t.Run("checkpoints", TestTinyCheckpoints)
	t.Run("default model", TestDefaultModel)
	t.Run("default model int8", TestDefaultModelQuantized)
}
