package model

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/mmserve/mmserve/internal/safetensors"
)

const (
	headWeight  = "lm_head.weight"
	embedWeight = "text.embed_tokens.weight"
)

// tie settles whether the head is the embedding table. As in transformers, a head of other values counts, whatever
// config.json says. Where neither says anything the table stands in for the head that is missing.
func (m *Model) tie(c *safetensors.Checkpoint) error {
	d, head := &m.Decoder, m.Weights.Has(headWeight)
	switch {
	case head && d.Tied:
		same, err := m.sameTensor(c, headWeight, embedWeight)
		if err != nil || same {
			return err
		}
		d.Tied = false
		name, _ := m.Weights.Stored(headWeight)
		m.warn("tie_word_embeddings is true, but %s differs from the embedding table: the head is %[1]s, as in transformers", name)
	case !head && !d.Tied && m.Untied:
		return fmt.Errorf("%s has no %s, and config.json has tie_word_embeddings false: the head is missing; download it, or set tie_word_embeddings to true if it is the embedding table",
			"the checkpoint", m.CheckpointName(headWeight))
	case !head && !d.Tied:
		d.Tied = true
		m.warn("there is no %s and config.json does not set tie_word_embeddings: the embedding table is the head", m.CheckpointName(headWeight))
	}
	return nil
}

func (m *Model) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}

// sameTensor compares two tensors value by value.
func (m *Model) sameTensor(c *safetensors.Checkpoint, a, b string) (bool, error) {
	var t [2]safetensors.Tensor
	for i, name := range []string{a, b} {
		stored, ok := m.Weights.Stored(name)
		if !ok {
			return false, nil
		}
		t[i], _ = c.Tensor(stored)
	}
	if !slices.Equal(t[0].Shape, t[1].Shape) {
		return false, nil
	}
	if t[0].DType == t[1].DType {
		return bytes.Equal(t[0].Data, t[1].Data), nil
	}
	const chunk = 1 << 16
	var x, y [chunk]float32
	for at, n := 0, t[0].Elems(); at < n; at += chunk {
		k := min(chunk, n-at)
		if err := errors.Join(t[0].FloatsInto(x[:k], at), t[1].FloatsInto(y[:k], at)); err != nil {
			return false, err
		}
		if !slices.Equal(x[:k], y[:k]) {
			return false, nil
		}
	}
	return true, nil
}

// reconcile compares what config.json asks for with what the checkpoint has: what is missing or has another shape or
// type is an error, what is left over a warning.
func (m *Model) reconcile() error {
	if err := m.checkLayers(); err != nil {
		return err
	}
	needs, err := m.CanonicalNeeds()
	if err != nil {
		return err
	}
	needed := map[string]bool{headWeight: m.Decoder.Tied} // a copy of the table
	var missing, wrong []string
	for _, n := range needs {
		needed[n.Name] = true
		if !m.Weights.Has(n.Name) {
			missing = append(missing, fmt.Sprintf("%s %v", m.CheckpointName(n.Name), n.Dims))
		} else if _, err := m.Weights.Find(n.Name, n.Dims...); err != nil {
			wrong = append(wrong, err.Error())
		}
	}
	var unused []string
	for _, name := range m.Weights.Names() {
		if stored, _ := m.Weights.Stored(name); !needed[name] && !m.spare(name) {
			unused = append(unused, stored)
		}
	}
	hint := quantized(unused)
	switch {
	case len(missing) > 0:
		return fmt.Errorf("the checkpoint lacks %d of the %d tensors that config.json asks for: %s%s%s", len(missing), len(needs), shortList(missing), hint, leftOver(unused))
	case len(wrong) > 0:
		return fmt.Errorf("%d tensors do not fit config.json: %s%s", len(wrong), strings.Join(wrong[:min(len(wrong), 3)], "; "), hint)
	case hint != "":
		return errors.New(strings.TrimPrefix(hint, ": "))
	case len(unused) > 0:
		m.warn("%d tensors of the checkpoint are not used: %s", len(unused), shortList(numbered(unused)))
	}
	return nil
}

func leftOver(unused []string) string {
	if len(unused) == 0 {
		return ""
	}
	return fmt.Sprintf("; it has %d others: %s", len(unused), shortList(numbered(unused)))
}

// checkLayers refuses a number of layers far from the checkpoint's before graphs of so many are built.
func (m *Model) checkLayers() error {
	for _, stack := range []struct {
		field, prefix string
		claimed       int
	}{{"text_config.num_hidden_layers", "text.layers.", m.Decoder.Layers},
		{"text_config.decoder_layers", "text.decoder.layers.", m.Decoder.Layers}, {"vision_config.num_hidden_layers", "vision.encoder.layers.",
			m.towerLayers()}} {
		there := 0
		for _, name := range m.Weights.Names() {
			if n, ok := layerOf(name, stack.prefix); ok {
				there = max(there, n+1)
			}
		}
		if there > 0 && stack.claimed > there {
			return fmt.Errorf("config.json: %s is %d, the checkpoint has %d layers", stack.field, stack.claimed, there)
		}
	}
	return nil
}

// towerLayers is the number of the tower's layers that run.
func (m *Model) towerLayers() int {
	if m.AnySize != nil {
		return m.AnySize.Layers
	}
	return m.Tower.Layers
}

// layerOf is the number of the layer that a canonical name belongs to.
func layerOf(name, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	number, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(number)
	return n, err == nil && n >= 0 && n < 1<<20
}

// spareNames are tensors that checkpoints have and no answer depends on: buffers that old files keep, and heads of the
// vision towers that no family reads.
var spareNames = regexp.MustCompile(`rotary_emb\.inv_freq$|position_ids$|\.attn\.(masked_)?bias$|\.crossattention\.(masked_)?bias$|num_batches_tracked$` +
	`|^vision\.(post_layernorm|head|pooler|encoder\.pooler)\.|^vision\.embeddings\.(mask_token$|packing_position_embedding\.)`)

// spare tells whether a tensor that no graph asks for is none that answers depend on.
func (m *Model) spare(canonical string) bool {
	if spareNames.MatchString(canonical) {
		return true
	}
	if n, ok := layerOf(canonical, "text.layers."); ok {
		return n >= m.Decoder.Layers && n < m.Decoder.Layers+m.PredictorLayers
	}
	n, ok := layerOf(canonical, "vision.encoder.layers.")
	return ok && n >= m.towerLayers() && n < m.TowerLayers // the layers after vision_feature_layer
}

// numbered takes the numbers of layers out of names and lists each pattern once.
func numbered(names []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, name := range names {
		pattern := layerNumber.ReplaceAllString(name, ".N.")
		if !seen[pattern] {
			seen[pattern] = true
			out = append(out, pattern)
		}
	}
	return out
}

var layerNumber = regexp.MustCompile(`\.[0-9]+\.`)

// quantizedNames are the tensors that tools of quantisation write beside or in place of a weight.
var quantizedNames = regexp.MustCompile(`\.(qweight|qzeros|scales|biases|g_idx|weight_packed|weight_scale(_inv|_2)?|weight_zero_point|weight_shape|input_scale|activation_scale|SCB|` +
	`weight_format|weight\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\..*)|W_q|lora_[AB]\..*|_packed|blocks)$`)

// quantized says that left-over tensors are those of a quantised checkpoint or an adapter, "" if they are not.
func quantized(unused []string) string {
	for _, name := range unused {
		if quantizedNames.MatchString(name) {
			return fmt.Sprintf(": the checkpoint is quantised or has an adapter's weights (%s), which mmserve does not read; take the unquantised, merged model", name)
		}
	}
	return ""
}
