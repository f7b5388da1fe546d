package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/mmserve/mmserve/internal/safetensors"
)

// weights are what a model's decoder multiplies by.
type weights struct {
	bytes  float64 // a step of one row reads
	layers float64 // numbers of the layers' matrices, by which each position of a prompt is multiplied
}

// weigher is a peer whose weights are known.
type weigher interface{ weights() weights }

// matrices counts the numbers in the decoder's matrices of a checkpoint: of all layers, and of the head.
func matrices(folder string) (layers, head float64, err error) {
	c, err := safetensors.Open(folder)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	for _, name := range c.Names() {
		t, _ := c.Tensor(name)
		decoder := strings.Contains(name, "text_model.") || strings.Contains(name, "language_model.")
		switch {
		case len(t.Shape) != 2:
		case decoder && strings.Contains(name, ".layers."):
			layers += float64(t.Elems())
		case strings.HasSuffix(name, "lm_head.weight"), strings.HasSuffix(name, "embed_tokens.weight"): // tied or not
			head = float64(t.Elems())
		}
	}
	if layers == 0 || head == 0 {
		return 0, 0, fmt.Errorf("%s: no decoder's matrices", folder)
	}
	return layers, head, nil
}

// layerBits are those of a weight of a layer by --precision: int4 has a scale in bfloat16 for 32 weights; the head is in
// int8 there.
var layerBits = map[string]float64{"fp32": 32, "fp16": 16, "int8": 8, "int4": 4.5}

func (m *mmserve) weights() (w weights) {
	layers, head, err := matrices(filepath.Join(m.folder, "models", "hf"))
	if bits := layerBits[m.precision]; err == nil && bits > 0 {
		w = weights{layers: layers, bytes: layers*bits/8 + head*max(bits, 8)/8}
	}
	return w
}

// limits are what the machine was measured to do in the run itself, of the threads that a peer has.
type limits struct {
	read  float64 // bytes a second from memory
	peak8 float64 // products of 8 bits a second, each with its addition
}

// The metrics that tell a share of a limit.
const (
	shareRead = "decode of 1 stream, % of the bandwidth"
	sharePeak = "prefill of 256, % of the 8-bit peak"
)

// shares are what a peer's figures are of the limits, in percent.
func (l limits) shares(list []value, w weights) (shares []value) {
	for _, v := range list {
		var part float64
		switch v.Metric {
		case "decode, streams: 1, tokens/s":
			v.Metric, part = shareRead, over(v.Value*w.bytes, l.read)
		case "prefill of 256, tokens/s":
			v.Metric, part = sharePeak, over(v.Value*w.layers, l.peak8)
		}
		if part > 0 {
			v.Value = 100 * part
			shares = append(shares, v)
		}
	}
	return shares
}

func over(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}
