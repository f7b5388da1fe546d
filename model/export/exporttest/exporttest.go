// Package exporttest writes a checkpoint as ready-made ONNX graphs in the layout of transformers.js, for tests: plain
// operators, keys and values that come in and go out longer. It knows nothing of the graphs that mmserve builds for
// itself.
package exporttest

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/vision"
)

// Source is a checkpoint: its shape and its weights.
type Source struct {
	Tower     vision.ViT
	Connector vision.Connector
	Decoder   decoder.Config
	Weights   *graph.Weights
	// Images replaces the tower: one made-up linear layer over the patches of each block.
	NativeResolution *vision.NativeResolution
}

// Options are what exports differ in.
type Options struct {
	// Suffix stands in the files' names before .onnx.
	Suffix string
	// Half gives caches and logits as float16.
	Half bool
	// CacheBranch adds use_cache_branch: past is not read where it is false.
	CacheBranch bool
	// KeepLogits adds num_logits_to_keep.
	KeepLogits bool
	// Tiles takes images as [prompts, tiles, 3, side, side] with a mask of their pixels, and leaves out tiles that are
	// all zero, as exports of Idefics3 do.
	Tiles bool
	// External keeps weights in a file beside the graph.
	External bool
	// ShapePositions takes positions from the length of the past, as exports without position_ids do: padding moves them.
	ShapePositions bool
	// GroupQuery uses ONNX Runtime's operator, which wants padding behind a row and not before it.
	GroupQuery bool
	// Sections are the parts of a head's frequencies that turn by the places in time, height and width: position_ids are
	// those of Qwen2-VL.
	Sections []int
	// Dynamic quantises the decoder's linear layers to 8 bits, and what they take by one scale for all of a run.
	Dynamic bool
	// CrossCaches has an encoder-decoder keep what the encoder's states project to, as exports of BART do: caches of the
	// encoder that mean nothing after the first step, embeddings for ids, and an encoder of its own, which changes
	// nothing.
	CrossCaches bool
	// FirstPosition is what position_ids calls the first position.
	FirstPosition int
}

// Write writes dir/onnx.
func Write(dir string, s Source, o Options) error {
	dir = filepath.Join(dir, "onnx")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, build := range s.graphs(o) {
		n := &net{Graph: onnx.New(name), weights: s.Weights, options: o, data: name + o.Suffix + ".onnx_data"}
		build(n)
		if n.err != nil {
			return fmt.Errorf("%s: %w", name, n.err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+o.Suffix+".onnx"), n.Bytes(), 0o600); err != nil {
			return err
		}
		if o.External {
			if err := os.WriteFile(filepath.Join(dir, n.data), n.external, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// graphs are what builds each session's graph.
func (s Source) graphs(o Options) map[string]func(*net) {
	switch {
	case s.Decoder.EncoderStates > 0 && o.CrossCaches:
		return map[string]func(*net){
			"vision_encoder": s.vision, "embed_tokens": s.embed, "encoder_model": s.same, "decoder_model_merged": s.crossDecoder,
		}
	case s.Decoder.EncoderStates > 0:
		return map[string]func(*net){"encoder_model": s.vision, "decoder_model_merged": s.crossDecoder}
	}
	return map[string]func(*net){"vision_encoder": s.vision, "embed_tokens": s.embed, "decoder_model_merged": s.decoder}
}

func (s Source) embed(n *net) {
	ids := n.Input("input_ids", onnx.I64, "batch_size", "sequence_length")
	x := n.Op("Gather", onnx.Attrs{"axis": 0}, n.weight("text.embed_tokens.weight", s.Decoder.Vocab, s.Decoder.Hidden), ids)
	if f := s.Decoder.EmbedScale; f != 0 {
		x = n.Op("Mul", nil, x, n.F32(f))
	}
	n.result(x, "inputs_embeds", onnx.F32, "batch_size", "sequence_length", s.Decoder.Hidden)
}
