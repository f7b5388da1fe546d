// Package tfjs makes ONNX graphs of image classifiers in TensorFlow.js' layers format: of the layers that MobileNets
// are made of. It is for tests and for whoever has such a classifier.
package tfjs

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/mmserve/mmserve/internal/onnx"
)

// model is what is read of a model.json.
type model struct {
	Topology struct {
		Config struct {
			Config struct {
				Layers []layer `json:"layers"`
			} `json:"config"`
		} `json:"model_config"`
	} `json:"modelTopology"`
	Weights []struct {
		Weights []weight `json:"weights"`
	} `json:"weightsManifest"`
}

type layer struct {
	Name    string              `json:"name"`
	Class   string              `json:"class_name"`
	Inbound [][]json.RawMessage `json:"inbound_nodes"`
	Config  struct {
		Shape      []*int  `json:"batch_input_shape"`
		Kernel     []int   `json:"kernel_size"`
		Strides    []int   `json:"strides"`
		Dilation   []int   `json:"dilation_rate"`
		Activation string  `json:"activation"`
		Epsilon    float32 `json:"epsilon"`
		Max        float32 `json:"max_value"`
		Slope      float32 `json:"negative_slope"`
		Pool       []int   `json:"pool_size"`
		// Padding is "same" or "valid", and of ZeroPadding2D two pairs.
		Padding json.RawMessage `json:"padding"`
	} `json:"config"`
}

type weight struct {
	Name         string `json:"name"`
	Shape        []int  `json:"shape"`
	DType        string `json:"dtype"`
	Quantization *struct {
		Min   float64 `json:"min"`
		Scale float64 `json:"scale"`
		DType string  `json:"dtype"`
	} `json:"quantization"`
}

// tensor is a weight with its values.
type tensor struct {
	shape  []int
	values []float32
}

// maxWeights bounds all values of a model together.
const maxWeights = 64 << 20

// Convert makes a graph that takes pixels, [1, height, width, 3] of 0 to 255 and of any size, scales them as the
// classifier's own code does (bilinear, corners on corners) and gives a probability for each class.
func Convert(config, weights []byte) (*onnx.Graph, error) {
	var m model
	if err := json.Unmarshal(config, &m); err != nil {
		return nil, err
	}
	tensors, err := m.tensors(weights)
	if err != nil {
		return nil, err
	}
	g := onnx.New("classifier")
	c := &converter{g: g, tensors: tensors, out: map[string]string{}, side: map[string]int{}}
	for i := range m.Topology.Config.Config.Layers {
		l := &m.Topology.Config.Config.Layers[i]
		if err := c.layer(l); err != nil {
			return nil, fmt.Errorf("layer %q of class %q: %w", l.Name, l.Class, err)
		}
		c.last = l.Name
	}
	if c.last == "" {
		return nil, errors.New("no layers")
	}
	g.Node("", "Identity", nil, []string{c.out[c.last]}, []string{"probabilities"})
	g.Output("probabilities", onnx.F32, 1, c.classes)
	return g, nil
}

// tensors reads all weights.
func (m *model) tensors(raw []byte) (map[string]tensor, error) {
	list, total := map[string]tensor{}, 0
	for _, group := range m.Weights {
		for _, w := range group.Weights {
			n, size := 1, 4
			for _, d := range w.Shape {
				if d < 1 || n > maxWeights/d {
					return nil, fmt.Errorf("weight %q: shape %v", w.Name, w.Shape)
				}
				n *= d
			}
			if w.Quantization != nil {
				size = 1
			}
			if w.DType != "float32" || w.Quantization != nil && w.Quantization.DType != "uint8" {
				return nil, fmt.Errorf("weight %q: want float32, or uint8 that stands for it", w.Name)
			}
			if total += n; total > maxWeights || n*size > len(raw) {
				return nil, fmt.Errorf("weight %q: %d values of %d bytes, %d bytes are left", w.Name, n, size, len(raw))
			}
			t := tensor{w.Shape, make([]float32, n)}
			for i := range t.values {
				if w.Quantization != nil {
					t.values[i] = float32(float64(raw[i])*w.Quantization.Scale + w.Quantization.Min)
				} else {
					t.values[i] = math.Float32frombits(uint32(raw[4*i]) | uint32(raw[4*i+1])<<8 | uint32(raw[4*i+2])<<16 |
						uint32(raw[4*i+3])<<24)
				}
			}
			raw, list[w.Name] = raw[n*size:], t
		}
	}
	return list, nil
}

// converter adds layers to a graph. Values are [1, channels, side, side].
type converter struct {
	g       *onnx.Graph
	tensors map[string]tensor
	out     map[string]string // of layers
	side    map[string]int    // of what they give; 0 once it is flat
	last    string
	classes int
}

// weight is a weight of a layer.
func (c *converter) weight(l *layer, name string, dims int) (tensor, error) {
	t, ok := c.tensors[l.Name+"/"+name]
	if !ok || len(t.shape) != dims {
		return tensor{}, fmt.Errorf("%s: want a weight of %d dimensions", name, dims)
	}
	return t, nil
}

// inputs are the layers that a layer takes.
func (l *layer) inputs() (names []string, err error) {
	if len(l.Inbound) != 1 {
		return nil, fmt.Errorf("%d inbound nodes; want one", len(l.Inbound))
	}
	for _, raw := range l.Inbound[0] {
		var node []any
		if err := json.Unmarshal(raw, &node); err != nil {
			return nil, err
		}
		name, ok := "", false
		if len(node) > 0 {
			name, ok = node[0].(string)
		}
		if !ok {
			return nil, errors.New("an inbound node without a name")
		}
		names = append(names, name)
	}
	return names, nil
}

// layer adds a layer.
func (c *converter) layer(l *layer) error {
	if l.Class == "InputLayer" {
		return c.input(l)
	}
	names, err := l.inputs()
	if err != nil {
		return err
	}
	in := make([]string, len(names))
	for i, name := range names {
		if in[i] = c.out[name]; in[i] == "" {
			return fmt.Errorf("no layer %q before it", name)
		}
	}
	if want := 1 + len(in)/2; l.Class == "Add" && len(in) != 2 || l.Class != "Add" && len(in) != 1 {
		return fmt.Errorf("%d inputs; want %d", len(in), want)
	}
	side := c.side[names[0]]
	switch l.Class {
	case "ZeroPadding2D":
		var p [2][2]int
		if err := json.Unmarshal(l.Config.Padding, &p); err != nil {
			return err
		}
		pads := c.g.I64s(0, 0, int64(p[0][0]), int64(p[1][0]), 0, 0, int64(p[0][1]), int64(p[1][1]))
		c.out[l.Name] = c.g.Op("Pad", nil, in[0], pads)
		side += p[0][0] + p[0][1]
	case "Conv2D", "DepthwiseConv2D":
		c.out[l.Name], side, err = c.conv(l, in[0], side)
	case "BatchNormalization":
		c.out[l.Name], err = c.normalize(l, in[0])
	case "ReLU":
		c.out[l.Name] = c.g.Op("Clip", nil, in[0], c.g.F32(0), c.g.F32(l.Config.Max))
		if l.Config.Max <= 0 || l.Config.Slope != 0 {
			err = errors.New("want a max_value and no slope")
		}
	case "Add":
		c.out[l.Name] = c.g.Op("Add", nil, in...)
	case "Dropout":
		c.out[l.Name] = in[0]
	case "AveragePooling2D":
		k := l.Config.Pool
		if len(k) != 2 || len(l.Config.Strides) != 2 || k[0] < 1 || l.Config.Strides[0] < 1 {
			return errors.New("want pool_size and strides")
		}
		c.out[l.Name] = c.g.Op("AveragePool", onnx.Attrs{"kernel_shape": k, "strides": l.Config.Strides}, in[0])
		side = (side-k[0])/l.Config.Strides[0] + 1
	case "Flatten": // of channels last
		c.out[l.Name] = c.g.Op("Flatten", nil, c.g.Op("Transpose", onnx.Attrs{"perm": []int{0, 2, 3, 1}}, in[0]))
	case "Dense":
		c.out[l.Name], err = c.dense(l, in[0])
	default:
		err = errors.New("not known here")
	}
	c.side[l.Name] = side
	return err
}

// input has pixels brought to what the model takes.
func (c *converter) input(l *layer) error {
	s := l.Config.Shape
	if len(s) != 4 || s[1] == nil || s[2] == nil || s[3] == nil || *s[1] != *s[2] || *s[3] != 3 || *s[1] < 8 ||
		*s[1] > 1024 {
		return errors.New("batch_input_shape: want a square of three channels")
	}
	side := *s[1]
	c.g.Input("pixels", onnx.F32, 1, "height", "width", 3)
	x := c.g.Op("Div", nil, c.g.Op("Transpose", onnx.Attrs{"perm": []int{0, 3, 1, 2}}, "pixels"), c.g.F32(255))
	c.out[l.Name] = c.g.Op("Resize", onnx.Attrs{"mode": "linear", "coordinate_transformation_mode": "align_corners"},
		x, "", "", c.g.I64s(1, 3, int64(side), int64(side)))
	c.side[l.Name] = side
	return nil
}

// conv adds a convolution. TensorFlow's kernels are [height, width, in, out], of depthwise ones [height, width, in, 1].
func (c *converter) conv(l *layer, in string, side int) (string, int, error) {
	name, depthwise := "kernel", l.Class == "DepthwiseConv2D"
	if depthwise {
		name = "depthwise_kernel"
	}
	k, err := c.weight(l, name, 4)
	if err != nil {
		return "", 0, err
	}
	stride := l.Config.Strides
	if len(stride) != 2 || stride[0] < 1 || stride[0] != stride[1] || len(l.Config.Dilation) > 0 &&
		l.Config.Dilation[0] != 1 ||
		l.Config.Activation != "linear" {
		return "", 0, errors.New("want equal strides, no dilation and no activation")
	}
	h, w, from, to := k.shape[0], k.shape[1], k.shape[2], k.shape[3]
	groups := 1
	if depthwise {
		from, to, groups = 1, from*to, from
	}
	values := make([]float32, len(k.values))
	for y := range h {
		for x := range w {
			for i := range from {
				for o := range to {
					values[((o*from+i)*h+y)*w+x] = k.values[((y*w+x)*from+i)*to+o]
				}
			}
		}
	}
	attrs := onnx.Attrs{"strides": stride, "group": groups}
	var padding string
	if err := json.Unmarshal(l.Config.Padding, &padding); err != nil {
		return "", 0, err
	}
	out := (side-h)/stride[0] + 1
	if padding == "same" {
		out = (side + stride[0] - 1) / stride[0]
		total := max(0, (out-1)*stride[0]+h-side)
		attrs["pads"] = []int{total / 2, total / 2, total - total/2, total - total/2}
	}
	args := []string{in, c.g.F32s(l.Name+".kernel", []int{to, from, h, w}, values)}
	if b, ok := c.tensors[l.Name+"/bias"]; ok {
		args = append(args, c.g.F32s(l.Name+".bias", b.shape, b.values))
	}
	return c.g.Op("Conv", attrs, args...), out, nil
}

// normalize adds a batch normalization.
func (c *converter) normalize(l *layer, in string) (string, error) {
	args := []string{in}
	for _, name := range []string{"gamma", "beta", "moving_mean", "moving_variance"} {
		t, err := c.weight(l, name, 1)
		if err != nil {
			return "", err
		}
		args = append(args, c.g.F32s(l.Name+"."+name, t.shape, t.values))
	}
	return c.g.Op("BatchNormalization", onnx.Attrs{"epsilon": l.Config.Epsilon}, args...), nil
}

// dense adds a fully connected layer.
func (c *converter) dense(l *layer, in string) (string, error) {
	k, err := c.weight(l, "kernel", 2)
	if err != nil {
		return "", err
	}
	b, err := c.weight(l, "bias", 1)
	if err != nil {
		return "", err
	}
	out := c.g.Op("Gemm", nil, in, c.g.F32s(l.Name+".kernel", k.shape, k.values), c.g.F32s(l.Name+".bias", b.shape,
		b.values))
	c.classes = k.shape[1]
	switch l.Config.Activation {
	case "relu":
		return c.g.Op("Relu", nil, out), nil
	case "softmax":
		return c.g.Op("Softmax", nil, out), nil
	case "linear":
		return out, nil
	}
	return "", fmt.Errorf("activation %q is not known here", l.Config.Activation)
}
