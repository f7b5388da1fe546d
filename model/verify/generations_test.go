package verify

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mmserve/mmserve/internal/graph"
	"github.com/mmserve/mmserve/internal/ort"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model"
	"github.com/mmserve/mmserve/model/modeltest"
)

// generations rename the tensors of LLaVA's kin, as transformers 5.x saves them, to what older files have.
var generations = map[string]*strings.Replacer{
	"5.x": strings.NewReplacer(),
	"hub": strings.NewReplacer("vision_tower.", "vision_tower.vision_model."),
	"4.52": strings.NewReplacer(
		"vision_tower.", "model.vision_tower.vision_model.", "language_model.lm_head.", "lm_head.",
		"language_model.model.", "model.language_model.", "multi_modal_projector.", "model.multi_modal_projector.",
		"image_newline", "model.image_newline",
	),
}

// renamed is what a generation calls a tensor of a family's checkpoint. The towers of those born after LLaVA have no
// vision_model within.
func renamed(family, generation, tensor string) string {
	tensor = generations[generation].Replace(tensor)
	switch family {
	case "internvl", "internvl-rms", "mistral3", "llava-pixtral":
		return strings.Replace(tensor, "vision_tower.vision_model.", "vision_tower.", 1)
	case "lfm2_vl": // the outer model is in what 5.x saves already
		return strings.Replace(tensor, "model.model.", "model.", 1)
	case "qwen2_vl", "qwen2_5_vl": // what 5.x saves is what the hub has
		if rest, ok := strings.CutPrefix(tensor, "model."); ok && generation == "4.52" {
			return "model.language_model." + rest
		}
		if generation == "4.52" && strings.HasPrefix(tensor, "visual.") {
			return "model." + tensor
		}
	}
	return tensor
}

// rewritten copies a tiny checkpoint with other tensor names and, where store is not nil, other data, in one file or in
// three.
func rewritten(t *testing.T, family, generation string, store func(*safetensors.Tensor, []float32),
	sharded bool) string {
	t.Helper()
	from, to := modeltest.TinyDir(family), t.TempDir()
	c, err := safetensors.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var list []safetensors.Tensor
	for _, name := range c.Names() {
		tensor, _ := c.Tensor(name)
		tensor.Name = renamed(family, generation, name)
		if store != nil {
			values, err := tensor.Floats()
			if err != nil {
				t.Fatal(err)
			}
			tensor.Data = nil
			store(&tensor, values)
		}
		list = append(list, tensor)
	}
	shards := map[string][]safetensors.Tensor{"model.safetensors": list}
	if sharded {
		shards = map[string][]safetensors.Tensor{}
		index := struct {
			Map map[string]string `json:"weight_map"`
		}{map[string]string{}}
		for i, tensor := range list {
			file := fmt.Sprintf("model-%05d-of-00003.safetensors", i%3+1)
			shards[file] = append(shards[file], tensor)
			index.Map[tensor.Name] = file
		}
		raw, err := json.Marshal(index)
		if err != nil {
			t.Fatal(err)
		}
		modeltest.WriteFile(t, filepath.Join(to, "model.safetensors.index.json"), raw)
	}
	for file, tensors := range shards {
		var b bytes.Buffer
		if err := safetensors.Write(&b, tensors); err != nil {
			t.Fatal(err)
		}
		modeltest.WriteFile(t, filepath.Join(to, file), b.Bytes())
	}
	config, err := os.ReadFile(filepath.Join(from, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	modeltest.WriteFile(t, filepath.Join(to, "config.json"), config)
	return to
}

// asBF16 rounds to the nearest bfloat16, ties to even; asRounded does so too and writes the result as float32.
func asBF16(tensor *safetensors.Tensor, values []float32) {
	tensor.DType = safetensors.BF16
	for _, x := range values {
		tensor.Data = binary.LittleEndian.AppendUint16(tensor.Data, uint16(rounded(x)>>16))
	}
}

func asRounded(tensor *safetensors.Tensor, values []float32) {
	for _, x := range values {
		tensor.Data = binary.LittleEndian.AppendUint32(tensor.Data, rounded(x))
	}
}

func rounded(x float32) uint32 {
	bits := math.Float32bits(x)
	return (bits + 0x7fff + bits>>16&1) &^ 0xffff
}

// against compares a folder with the gold values of a tiny checkpoint.
func against(t *testing.T, dir, name string) (result Case) {
	t.Helper()
	m, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	v, err := New(m, 2e-4, graph.FP32, ort.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.File(modeltest.References(name), func(c Case) { result = c }); err != nil || result.Err != nil {
		t.Fatal(err, result.Err)
	}
	return result
}

func verified(t *testing.T, dir, name string) {
	t.Helper()
	if c := against(t, dir, name); !c.OK() {
		t.Errorf("%+v", c.Checks)
	}
}

// Every family under the tensor names of every generation of files, whole and in shards.
func TestNameGenerations(t *testing.T) {
	modeltest.StartLibrary(t)
	for name := range modeltest.TinyCheckpoints {
		for generation := range generations {
			t.Run(name+"/"+generation, func(t *testing.T) {
				verified(t, rewritten(t, name, generation, nil, generation == "hub"), name)
			})
		}
	}
}

// A bfloat16 checkpoint is used as the float32 one of the same values is: what they give is equally far from the gold
// values of the unrounded one.
func TestBF16Checkpoints(t *testing.T) {
	modeltest.StartLibrary(t)
	for name := range modeltest.TinyCheckpoints {
		t.Run(name, func(t *testing.T) {
			got := against(t, rewritten(t, name, "hub", asBF16, true), name)
			want := against(t, rewritten(t, name, "5.x", asRounded, false), name)
			for i, c := range got.Checks {
				if math.Abs(c.Value-want.Checks[i].Value) > 1e-4 {
					t.Errorf("%+v, float32 gives %+v", c, want.Checks[i])
				}
			}
			t.Logf("%+v", got.Checks)
		})
	}
}

// The cache of the Hugging Face hub: a snapshot folder of links to blobs outside it.
func TestHubCacheSnapshot(t *testing.T) {
	modeltest.StartLibrary(t)
	root := t.TempDir()
	snapshot, blobs := filepath.Join(root, "snapshots", "0123abcd"), filepath.Join(root, "blobs")
	for _, dir := range []string{snapshot, blobs} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	from := rewritten(t, "llava", "hub", nil, true)
	files, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range files {
		blob := fmt.Sprintf("blob%d", i)
		if err := os.Rename(filepath.Join(from, f.Name()), filepath.Join(blobs, blob)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..", "..", "blobs", blob), filepath.Join(snapshot, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	verified(t, snapshot, "llava")
}
