package safety

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/onnx"
	"github.com/mmserve/mmserve/internal/ort"
)

// classifier is an ONNX model of an operator's, in a folder as transformers has them: model.onnx, config.json with
// id2label, and a preprocessor or a tokenizer.
type classifier struct {
	name       string
	threshold  float64 // the least score of a finding
	session    *ort.Session
	inputs     []onnx.Value
	categories []Category // of each class
	known      []bool     // the class has a category
	softmax    bool       // the outputs are logits of one class of several
	sigmoid    bool       // or each of its own
}

// Bounds of classifiers.
const (
	maxClasses = 4096
	maxConfig  = 1 << 20
)

// classifierConfig is what is read of config.json.
type classifierConfig struct {
	Labels  map[string]string `json:"id2label"`
	Problem string            `json:"problem_type"`
	// Activation is what the graph ends with, where it does: softmax or sigmoid.
	Activation string `json:"output_activation"`
}

// openClassifier opens a folder.
func openClassifier(c ClassifierConfig, threads int) (*classifier, error) {
	var config classifierConfig
	if err := readJSON(filepath.Join(c.Folder, "config.json"), &config); err != nil {
		return nil, err
	}
	out := &classifier{name: c.Name, threshold: c.Threshold}
	n := len(config.Labels)
	if n == 0 || n > maxClasses {
		return nil, fmt.Errorf("config.json: id2label: %d labels; want 1 to %d", n, maxClasses)
	}
	out.categories, out.known = make([]Category, n), make([]bool, n)
	used := 0
	for id, label := range config.Labels {
		i, err := strconv.Atoi(id)
		if err != nil || i < 0 || i >= n {
			return nil, fmt.Errorf("config.json: id2label: %.40q; want 0 to %d", id, n-1)
		}
		if category, ok := c.Labels[label]; ok {
			out.categories[i], out.known[i] = category, true
			used++
		}
	}
	if used != len(c.Labels) {
		return nil, fmt.Errorf("labels: %d of %d are none of the model's", len(c.Labels)-used, len(c.Labels))
	}
	if config.Problem == "regression" {
		return nil, errors.New("config.json: problem_type: regression; want a model that tells classes")
	}
	// As pipelines of transformers choose.
	out.sigmoid = config.Activation == "" && (config.Problem == "multi_label_classification" || n == 1)
	out.softmax = config.Activation == "" && !out.sigmoid
	f, err := ort.ReadFile(filepath.Join(c.Folder, "model.onnx"))
	if err != nil {
		return nil, err
	}
	of, ok := onnx.Find(f.Outputs, "logits")
	if len(f.Outputs) == 1 {
		of, ok = f.Outputs[0], true
	}
	if !ok || of.Type != onnx.F32 {
		return nil, fmt.Errorf("model.onnx: %d outputs; want one, or logits among them, of float32", len(f.Outputs))
	}
	if d := of.Dims; d != nil && (len(d) != 2 || d[1].Size >= 0 && d[1].Size != n) {
		return nil, fmt.Errorf("model.onnx: output %s: want [batch, %d], as config.json has %d labels", of.Name, n, n)
	}
	out.inputs = f.Inputs
	out.session, err = ort.OpenFile(f, []string{of.Name}, ort.Options{Threads: threads})
	return out, err
}

func readJSON(path string, to any) error {
	raw, err := folder.ReadFile(path, maxConfig)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func (c *classifier) close() error { return c.session.Close() }

// findings are what the classes' scores say: of a category the highest, as a share.
func (c *classifier) findings(scores []float32) (list []Finding) {
	p := make([]float64, len(scores))
	sum, most := 0.0, math.Inf(-1)
	for _, v := range scores {
		most = max(most, float64(v))
	}
	for i, v := range scores {
		switch {
		case c.softmax:
			p[i] = math.Exp(float64(v) - most)
			sum += p[i]
		case c.sigmoid:
			p[i] = 1 / (1 + math.Exp(-float64(v)))
		default:
			p[i] = float64(v)
		}
	}
	best := map[Category]float64{}
	for i := range p {
		if c.softmax {
			p[i] /= sum
		}
		if c.known[i] {
			best[c.categories[i]] = max(best[c.categories[i]], p[i])
		}
	}
	for _, category := range Categories() {
		if score, ok := best[category]; ok && !(score < c.threshold) { // NaN is a finding
			list = append(list, Finding{Category: category, Score: score})
		}
	}
	return list
}

// imageClassifier is a classifier of images.
type imageClassifier struct {
	*classifier
	raw bool // it takes [1, height, width, 3] of any size, 0 to 255, and scales it itself
	// else it takes [1, 3, height, width] of this size, with these values
	w, h      int
	filter    int
	rescale   float64
	mean, std [3]float64
}

// imageConfig is what is read of preprocessor_config.json.
type imageConfig struct {
	Size struct {
		Height, Width int
		Shortest      int `json:"shortest_edge"`
	}
	Resample  *int
	Rescale   *float64  `json:"rescale_factor"`
	Normalize *bool     `json:"do_normalize"`
	Mean      []float64 `json:"image_mean"`
	Std       []float64 `json:"image_std"`
}

// maxImageSide is the most pixels of a side that a classifier gets, and maxRawSide of one that scales by itself.
const maxImageSide, maxRawSide = 1024, 2048

func openImageClassifier(c ClassifierConfig, threads int) (*imageClassifier, error) {
	base, err := openClassifier(c, threads)
	if err != nil {
		return nil, err
	}
	out := &imageClassifier{classifier: base}
	if len(base.inputs) != 1 || base.inputs[0].Type != onnx.F32 || len(base.inputs[0].Dims) != 4 {
		return nil, errors.Join(errors.New("model.onnx: want one input, float32 with four dimensions"), base.close())
	}
	if d := base.inputs[0].Dims; d[3].Size == 3 {
		out.raw = true
		return out, nil
	}
	if err := out.configure(filepath.Join(c.Folder, "preprocessor_config.json")); err != nil {
		return nil, errors.Join(err, base.close())
	}
	return out, nil
}

// configure reads how images are prepared.
func (c *imageClassifier) configure(path string) error {
	var config imageConfig
	if err := readJSON(path, &config); err != nil {
		return err
	}
	c.w, c.h, c.filter, c.rescale, c.std = config.Size.Width, config.Size.Height, 2, 1.0/255, [3]float64{1, 1, 1}
	if config.Size.Shortest > 0 {
		c.w, c.h = config.Size.Shortest, config.Size.Shortest
	}
	if c.w < 1 || c.h < 1 || c.w > maxImageSide || c.h > maxImageSide {
		return fmt.Errorf("%s: size: %d×%d; want 1 to %d", path, c.w, c.h, maxImageSide)
	}
	if config.Resample != nil {
		c.filter = *config.Resample
	}
	if _, ok := imaging.Filters[c.filter]; !ok {
		return fmt.Errorf("%s: resample: %d; want 1 to 3", path, c.filter)
	}
	if config.Rescale != nil {
		c.rescale = *config.Rescale
	}
	if config.Normalize == nil || *config.Normalize {
		if len(config.Mean) != 3 || len(config.Std) != 3 {
			return fmt.Errorf("%s: image_mean, image_std: want three values each", path)
		}
		copy(c.mean[:], config.Mean)
		copy(c.std[:], config.Std)
	}
	return nil
}

// classify says what an image is of. It leaves the image as it is.
func (c *imageClassifier) classify(ctx context.Context, p *imaging.RGB) ([]Finding, error) {
	scores, err := c.scores(ctx, p)
	if err != nil {
		return nil, err
	}
	return c.findings(scores), nil
}

// scores are the classes' outputs.
func (c *imageClassifier) scores(ctx context.Context, p *imaging.RGB) (_ []float32, err error) {
	w, h, filter := c.w, c.h, c.filter
	if c.raw {
		filter = 2
		scale := min(1, maxRawSide/float64(max(p.W, p.H)))
		w, h = max(1, int(float64(p.W)*scale)), max(1, int(float64(p.H)*scale))
	}
	if w != p.W || h != p.H {
		if p, err = imaging.Filters[filter].To(p.W, p.H, w, h).Of(ctx, p); err != nil {
			return nil, err
		}
	}
	in, err := ort.Alloc[float32](3 * w * h)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Free()) }()
	dims := []int{1, 3, h, w}
	if c.raw {
		dims = []int{1, h, w, 3}
	}
	for i := range w * h {
		for k := range 3 {
			v := p.Pix[3*i+k]
			if c.raw {
				in.Slice()[3*i+k] = float32(v)
			} else {
				in.Slice()[k*w*h+i] = float32((float64(v)*c.rescale - c.mean[k]) / c.std[k])
			}
		}
	}
	x, err := ort.View(in.Slice(), dims...)
	if err != nil {
		return nil, err
	}
	defer x.Destroy()
	return c.run(ctx, []ort.Tensor{x})
}
