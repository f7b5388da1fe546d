package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math"
	"slices"
)

// Check is one comparison of what a model gives with its reference value.
type Check struct {
	// Name is what was compared: "image_features", "logits", "prompt_ids", "pixel_values", "generated_ids", ….
	Name string
	// Value is the largest absolute difference of numbers, or the share of ids that agree; Exact says which.
	Value float64
	// Exact is set for ids and texts, where only full agreement passes.
	Exact bool
	OK    bool
}

// Case is one reference case and what came of it.
type Case struct {
	ID     string
	Checks []Check
	// Err is set when the case could not be run.
	Err error
}

// OK tells whether every check of the case passed.
func (c Case) OK() bool {
	return c.Err == nil && !slices.ContainsFunc(c.Checks, func(k Check) bool { return !k.OK })
}

// sameIDs compares id by id; the value is the share of the longer list that agrees.
func sameIDs(name string, got, want []int32) Check {
	same := 0
	for i := range min(len(got), len(want)) {
		if got[i] == want[i] {
			same++
		}
	}
	n := max(len(got), len(want), 1)
	return Check{Name: name, Value: float64(same) / float64(n), Exact: true, OK: slices.Equal(got, want)}
}

// near compares numbers; the value is the largest absolute difference.
func (v *Verifier) near(name string, got []float32, want []float64) Check {
	worst := 0.0
	for i := range got {
		if d := math.Abs(float64(got[i]) - want[i]); d > worst || math.IsNaN(d) {
			worst = d
		}
	}
	return Check{Name: name, Value: worst, OK: worst <= v.tolerance}
}

// pixelTolerance is the difference of an image's mean or deviation, in normalised units, that passes where the
// values are not bit-identical: a tenth of one eight-bit level.
const pixelTolerance = 0.1 * 2 / 255

// samePixels compares by digest, and where that differs by mean and standard deviation.
func samePixels(values []float32, want referenceCase) Check {
	sum, mean, std := pixelSummary(values)
	if sum == want.PixelSHA {
		return Check{Name: "pixel_values", OK: true}
	}
	d := max(math.Abs(mean-want.PixelMean), math.Abs(std-want.PixelStd))
	return Check{Name: "pixel_values", Value: d, OK: d <= pixelTolerance}
}

// pixelSummary is the SHA-256 of the values as little-endian float32, their mean and standard deviation.
func pixelSummary(values []float32) (sha string, mean, std float64) {
	h := sha256.New()
	var sum, square float64
	var word [4]byte
	for _, x := range values {
		binary.LittleEndian.PutUint32(word[:], math.Float32bits(x))
		h.Write(word[:])
		sum += float64(x)
		square += float64(x) * float64(x)
	}
	n := float64(len(values))
	mean = sum / n
	return hex.EncodeToString(h.Sum(nil)), mean, math.Sqrt(square/n - mean*mean)
}

func sameText(got, want string) Check {
	if got != want {
		return Check{Name: "prompt_text", Exact: true}
	}
	return Check{Name: "prompt_text", Value: 1, Exact: true, OK: true}
}
