package serving

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/vision"
)

// fingerprint tells apart what can change the answer to the same request: the model's files, the precision and
// provider of both stages, the preprocessing and the version of ONNX Runtime.
func (d *Deployment) fingerprint() string {
	library, _ := ort.Loaded()
	if d.config.Pace != "" {
		library = "pace " + d.config.Pace
	}
	p := d.plan
	return hashed(
		d.Model.Digest,
		PrecisionText(d.model, p.Vision.Precision), PrecisionText(d.model, p.Decoder.Precision),
		p.Vision.Provider.String(), p.Decoder.Provider.String(),
		vision.Describe(d.text.Preprocessor),
		library,
	)
}

// hashed is a short name for values in their order.
func hashed(values ...string) string {
	h := sha256.New()
	for _, v := range values {
		fmt.Fprintf(h, "%d %s\n", len(v), v)
	}
	return "fp_" + hex.EncodeToString(h.Sum(nil)[:8])
}
