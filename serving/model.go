// Package serving is the life of a request in plain Go values, the same for every edge: no wire type and no status code
// is known here.
package serving

import (
	"context"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/vision"
)

// Model is what serving needs of a model that runs. Its functions are called concurrently.
type Model struct {
	// Name is what requests call the model, Digest what tells its weights and configuration from others.
	Name, Digest string
	// Card is what the folder's README.md says; nil where there is none.
	Card *ModelCard
	// Fingerprint is the same as long as a request with the same seed gets the same answer; empty where no model runs.
	Fingerprint string
	// MaxLen is the context: prompt and answer together, in tokens. Vocab is the number of logits.
	MaxLen, Vocab int
	// EOS are the ids that end an answer.
	EOS []int32
	// Prompter makes inputs. Its Preprocessor is nil for a model that takes no images; Encode is not called then.
	Prompter *fusion.Prompter
	// Encode returns what stands for an image's patches, [patches, PatchWidth()], and whether it had been made before.
	Encode func(ctx context.Context, img *vision.Image) (patches []float32, cached bool, err error)
	// Hidden is the width of an embedding. Behind that of a patch lie features for Deepstack layers, as wide.
	Hidden, Deepstack int
	// Forget takes what Encode keeps of a tenant's file (vision.Image.File) out of its cache, and gives it: requests may
	// be using it still. nil: nothing is kept.
	Forget func(tenant string, file [32]byte) [][]float32
	// ForgetDisk takes what the folder of patch embeddings has of it, and is slow; nil where there is none.
	ForgetDisk func(tenant string, file [32]byte)
	// KVBytesPerToken is the memory that a position of a sequence takes, for metrics.
	KVBytesPerToken int64
	// EncoderStats is what the encoder behind Encode counts; nil if it does not.
	EncoderStats func() vision.EncoderStats
	// DiskStats is what the folder of patch embeddings counts, which models may share; nil where there is none.
	DiskStats func() vision.DiskStats
	// DeviceStats is what devices count; nil where there is none.
	DeviceStats func() DeviceStats
	// MaxImages is the most images the model takes in a prompt. 0: it sets no limit.
	MaxImages int
	// Compiler makes constraints for the model's vocabulary; it may take a while the first time. Its error says why there
	// can be none. nil: there are none.
	Compiler func() (*constrain.Compiler, error)
	// Sessions say where the model's graphs run; none where no model does. ProviderReason says why
	// there, if somebody chose.
	Sessions       []Session
	ProviderReason string
	// Defaults is how the model samples when a request does not say; Seed is not used.
	Defaults decoder.Sampling
}

// ModelCard is what a model's authors say of it.
type ModelCard = model.Card

// PatchWidth is the number of values that stand for a patch.
func (m *Model) PatchWidth() int { return m.Hidden * (1 + m.Deepstack) }

// DeviceStats counts bytes: copied to and from the devices that the model's graphs run on, and held there between runs.
type DeviceStats struct{ To, From, Held int64 }

// Session is one of the model's graphs and where its nodes run.
type Session struct {
	// Graph names the graph, Provider the execution provider that it was opened on.
	Graph, Provider string
	// Nodes counts its nodes by the execution provider that runs them, Fallbacks by operator those that the processor runs
	// because the provider lacks a kernel.
	Nodes, Fallbacks map[string]int
}

// meanTokenBytes is the mean length of a vocabulary's tokens, in bytes, over some that are spread evenly.
func meanTokenBytes(m *Model) float64 {
	const samples = 4096
	total, n := 0, 0
	for id := 0; id < m.Vocab; id += max(1, m.Vocab/samples) {
		total += len(m.Prompter.Tokenizer.TokenBytes(int32(id)))
		n++
	}
	return float64(total) / float64(max(1, n))
}
