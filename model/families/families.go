// Package families reads config.json: each file makes the values of one family of models, which vision, fusion and
// decoder work with, and registers them by their model types. Nothing outside this package compares a model's name.
package families

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/vision"
)

// Spec is what a family makes of config.json: values only.
type Spec struct {
	Tower     vision.ViT
	Connector vision.Connector
	Decoder   decoder.Config
	Layout    fusion.Layout
	// ImageProcessor is that of a checkpoint whose files name none.
	ImageProcessor string
	// AnyProcessor takes an image processor of whatever kind the files name, as ready-made graphs do.
	AnyProcessor bool
	// Prefixes rename the checkpoint's tensors to the names the graphs use.
	Prefixes []graph.Prefix
	// NativeResolution is set for a tower that takes images of any size, which Tower and Connector then do not describe.
	NativeResolution *vision.NativeResolution
	// AnySize is the tower of NativeResolution over a checkpoint; nil where it is a ready-made graph.
	AnySize *vision.AnySize
	// DaViT is the tower of an image in one tile in place of Tower, which has its ImageSize; nil where there is none.
	DaViT *vision.DaViT
	// WholeImages makes one tile of every image, whatever the image processor says.
	WholeImages bool
	// TowerLayers is the number of layers in the checkpoint's tower, of which Tower may run fewer; 0 if it runs all.
	TowerLayers int
	// PredictorLayers is the number of layers behind the decoder's that checkpoints have and no answer depends on: they
	// predict further tokens.
	PredictorLayers int
	// Untied is set where the files say that the head is not the embedding table.
	Untied bool
}

// validate refuses a tower or connector that no graph can be built from; the decoder was checked where it was read.
func (s Spec) validate() error {
	if s.AnySize != nil {
		return s.AnySize.Validate()
	}
	if s.DaViT != nil {
		return s.DaViT.Validate()
	}
	if err := s.Tower.Validate(); err != nil {
		return err
	}
	return s.Connector.Validate(s.Tower)
}

// SingleTile gives every image one tile, which the connector's graph makes a run of placeholders of.
func (s *Spec) SingleTile(c vision.Connector) {
	tokens := c.Tokens(s.Tower)
	run := strings.Repeat(s.Layout.Placeholder, tokens)
	s.Connector, s.Layout.PatchTokens = c, tokens
	s.Layout.Expand = func(vision.Grid) string { return run }
}

// Reader makes values of a config.json, or says which of its fields is not supported.
type Reader func(config []byte) (Spec, error)

// Family says how the models of a model type are read.
type Family struct {
	// Checkpoint reads the config.json of a checkpoint; nil for models that are run from ready-made graphs only.
	Checkpoint Reader
	// Graphs says what is otherwise with ready-made ONNX graphs; nil where none are run.
	Graphs *Graphs
	// Instead says of files that are not read what to take in their place.
	Instead string
}

// Graphs is the layout of a family's ready-made graphs.
type Graphs struct {
	// Read takes the place of Checkpoint; nil where graphs compute the same.
	Read Reader
	// Sessions are the graphs' names, the tower's first and the decoder's last; nil for the usual three.
	Sessions []string
	// FirstPosition is what position_ids calls the first position.
	FirstPosition int
	// InferSizes takes the tower's and the decoder's sizes from what the graphs declare.
	InferSizes bool
	// Start is the number of ids at a prompt's end that are the decoder's, in an encoder-decoder without EncoderStates.
	Start int
}

// The sessions of ready-made graphs, as Optimum and transformers.js name them.
const (
	VisionGraph  = "vision_encoder"
	EmbedGraph   = "embed_tokens"
	EncoderGraph = "encoder_model"
	DecoderGraph = "decoder_model_merged"
)

// registered are the families by config.json's model_type.
var registered = map[string]Family{}

// Register makes a family known. Each family's file calls it; the last one for a model type counts.
func Register(f Family, modelTypes ...string) {
	if f.Graphs != nil && f.Graphs.Sessions == nil {
		f.Graphs.Sessions = []string{VisionGraph, EmbedGraph, DecoderGraph}
	}
	for _, t := range modelTypes {
		registered[t] = f
	}
}

// Lookup gives the family of a model type; the zero Family for one that is not known.
func Lookup(modelType string) Family { return registered[modelType] }

// types lists the model types of which a part is there, sorted.
func types(has func(Family) bool) []string {
	var list []string
	for t, f := range registered {
		if has(f) {
			list = append(list, t)
		}
	}
	slices.Sort(list)
	return list
}

// Types lists the model types that are read from checkpoints, sorted.
func Types() []string { return types(func(f Family) bool { return f.Checkpoint != nil }) }

// GraphTypes lists those that are read from ready-made graphs, sorted.
func GraphTypes() []string { return types(func(f Family) bool { return f.Graphs != nil }) }

// Read reads the config.json of a checkpoint.
func Read(config []byte) (modelType string, s Spec, err error) {
	if modelType, err = ModelType(config); err != nil {
		return "", Spec{}, err
	}
	f := Lookup(modelType)
	switch {
	case f.Instead != "":
		return "", Spec{}, fmt.Errorf("model_type %q is not supported: %s", modelType, f.Instead)
	case f.Checkpoint == nil && f.Graphs != nil:
		return "", Spec{}, fmt.Errorf("model_type %q is not supported from a checkpoint, only from ready-made ONNX graphs", modelType)
	case f.Checkpoint == nil:
		return "", Spec{}, fmt.Errorf("model_type %q is not supported; supported are %s", modelType, strings.Join(Types(), ", "))
	}
	if s, err = f.Checkpoint(config); err != nil {
		return modelType, Spec{}, err
	}
	return modelType, s, s.within()
}

// ReadGraphs reads the config.json of ready-made graphs.
func ReadGraphs(config []byte) (modelType string, s Spec, g Graphs, err error) {
	if modelType, err = ModelType(config); err != nil {
		return "", Spec{}, Graphs{}, err
	}
	f := Lookup(modelType)
	if f.Graphs == nil {
		return "", Spec{}, Graphs{}, fmt.Errorf("ONNX graphs of model_type %q are not supported; supported are %s", modelType, strings.Join(GraphTypes(), ", "))
	}
	read := f.Graphs.Read
	if read == nil {
		read = f.Checkpoint
	}
	s, err = read(config)
	s.AnyProcessor = true
	return modelType, s, *f.Graphs, err
}

// ModelType is config.json's model_type.
func ModelType(config []byte) (string, error) {
	var head struct {
		ModelType string `json:"model_type"`
	}
	err := json.Unmarshal(config, &head)
	return head.ModelType, err
}
