package vision

import "github.com/mmserve/mmserve/internal/graph"

// RunBytes bounds the memory that a run of an image of n patches takes beside the weights: what goes in and comes out,
// and the values around one layer. Scores are not among it: mmserve's own operator holds those of a few keys.
func (c AnySize) RunBytes(n int) int64 {
	mlp := 2 * c.Intermediate
	if c.GatedMLP {
		mlp = 3 * c.Intermediate
	}
	values := c.values() + c.head() + 2*c.Hidden + max(5*c.Hidden, 2*c.Hidden+mlp)
	if c.Positions.Side > 0 {
		values += c.Hidden
	}
	if c.QKNorm {
		values += 2 * c.Hidden
	}
	block := c.MergeSize * c.MergeSize
	values += 3*c.Hidden + (3*c.Width+block-1)/block // mergers, and what they give
	return 4 * int64(n) * int64(values)
}

// ScoredRunBytes is the most memory that a run takes where operators may hold all scores, as on devices: larger images
// are refused there.
const ScoredRunBytes = 2 << 30

// HoldsScores tells whether operators on the processor may hold all scores, as others' do.
func (c AnySize) HoldsScores() bool { return !graph.OwnSequences(c.head(), graph.Target{}) }

// scoreBytes is what the scores of an image of n patches take where they are held: those of a layer, three times over
// until they are shares.
func (c AnySize) scoreBytes(n int) int64 { return 3 * 4 * int64(c.Heads) * int64(n) * int64(n) }

// MostPatches is the most patches that an image may have for a run of so many bytes, held scores among them or not.
// It is at least that of one block, and at most what a tower takes of any image.
func (c AnySize) MostPatches(bytes int64, scores bool) int {
	most := mostAnySize
	for most > c.MergeSize*c.MergeSize {
		takes := c.RunBytes(most)
		if scores {
			takes += c.scoreBytes(most)
		}
		if takes <= bytes {
			break
		}
		most -= max(1, most/16)
	}
	return most
}
