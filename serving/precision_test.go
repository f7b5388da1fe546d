package serving

import (
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/model"
)

func TestChoosePrecision(t *testing.T) {
	m, err := model.Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	webgpu, err := ort.ParseProvider("webgpu")
	if err != nil {
		t.Fatal(err)
	}
	auto := graph.FP32
	if kernels.Available() {
		auto = graph.INT8
	}
	mixed := Plan{Vision: StagePlan{Provider: webgpu}}
	for _, c := range []struct {
		asked, vision    string
		at               Plan
		decoder, tower   graph.Precision
		why, whyAlso, no string // parts of what is said, or of the error
	}{
		{asked: "fp32", decoder: graph.FP32, tower: graph.FP32},
		{asked: "int8", decoder: graph.INT8, tower: graph.INT8},
		{asked: "int4", decoder: graph.INT4, tower: graph.INT8},
		{asked: "int4", vision: "int4", decoder: graph.INT4, tower: graph.INT4},
		{asked: "int8", vision: "fp32", decoder: graph.INT8, tower: graph.FP32},
		{asked: "auto", decoder: auto, tower: auto, why: "--precision auto chose " + string(auto)},
		{asked: "auto", at: mixed, decoder: auto, tower: graph.FP16,
			why: "--precision auto chose " + string(auto), whyAlso: "for the tower, --precision auto chose fp16"},
		{asked: "fp32", vision: "auto", decoder: graph.FP32, tower: auto, why: "--vision-precision auto chose " + string(auto)},
		{asked: "fp16", no: "--precision fp16: the cpu provider"},
		{asked: "int8", at: mixed, no: "--precision int8 runs on the cpu provider only; webgpu takes fp32 and fp16"},
		{asked: "int8", vision: "fp16", no: "--vision-precision fp16"},
	} {
		p := c.at
		err := Config{Precision: c.asked, VisionPrecision: c.vision}.choosePrecisions(m, &p)
		switch {
		case c.no != "":
			if err == nil || !strings.Contains(err.Error(), c.no) {
				t.Errorf("%+v: %v", c, err)
			}
		case err != nil || p.Decoder.Precision != c.decoder || p.Vision.Precision != c.tower ||
			!strings.Contains(p.PrecisionReason, c.why) || !strings.Contains(p.PrecisionReason, c.whyAlso) ||
			(c.why == "") != (p.PrecisionReason == "") ||
			(c.whyAlso == "") == strings.Contains(p.PrecisionReason, ";"):
			t.Errorf("%+v: %+v %v", c, p, err)
		}
	}
}
