package model

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/safetensors"
)

// foreign are formats of weights that mmserve does not read, by the end of a file's name, in the order of their naming.
var foreign = []struct{ suffix, what, todo string }{
	{".gguf", "GGUF, the format of llama.cpp", "serve it with llama.cpp, or take the model's safetensors"},
	{".bin", "PyTorch's pickled weights", saveAgain},
	{".pt", "PyTorch's pickled weights", saveAgain},
	{".pth", "PyTorch's pickled weights", saveAgain},
	{".ckpt", "PyTorch's pickled weights", saveAgain},
	{".h5", "TensorFlow's weights", saveAgain},
	{".msgpack", "Flax's weights", saveAgain},
	{".nemo", "a NeMo archive", "export it to Hugging Face's layout with NeMo's converter"},
	{".npz", "NumPy's or MLX's weights", "take the model's safetensors"},
	{".onnx", "an ONNX graph outside onnx/", "lay the graphs out as transformers.js has them: onnx/…"},
	{".tflite", "a LiteRT graph", "take the model's safetensors"},
	{".engine", "a TensorRT engine", "take the model's safetensors"},
}

const saveAgain = `save it again with transformers: AutoModelForImageTextToText.from_pretrained(DIR).save_pretrained(NEW)`

// noWeights says what a folder without a checkpoint has instead.
func noWeights(files fs.FS) error {
	names := list(files)
	if has(names, adapterConfig) {
		return adapterError(files, "is not a whole model")
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".safetensors") {
			return fmt.Errorf("%s is here, but neither %s nor %s: rename a single file, or download the index of the shards", n, safetensors.Single, safetensors.Index)
		}
	}
	for _, f := range foreign {
		for _, n := range names {
			if strings.HasSuffix(strings.ToLower(n), f.suffix) {
				return fmt.Errorf("no %s: %s is %s, which mmserve does not read; %s", safetensors.Single, n, f.what, f.todo)
			}
		}
	}
	return fmt.Errorf("no %s or %s: download the weights, too", safetensors.Single, safetensors.Index)
}

// noConfig says what a folder without config.json has instead.
func noConfig(files fs.FS) error {
	names := list(files)
	switch {
	case has(names, adapterConfig):
		return adapterError(files, "is not a whole model")
	case has(names, "params.json"):
		return fmt.Errorf("no config.json: params.json is the layout of the authors' own code; take the model in Hugging Face's layout")
	case has(names, "model_index.json"):
		return fmt.Errorf("no config.json: model_index.json is a pipeline of diffusers, which mmserve does not serve")
	}
	for _, f := range foreign {
		for _, n := range names {
			if strings.HasSuffix(strings.ToLower(n), f.suffix) {
				return fmt.Errorf("no config.json, and %s is %s, which mmserve does not read; %s", n, f.what, f.todo)
			}
		}
	}
	return fmt.Errorf("no config.json: a model folder holds config.json, tokenizer.json and model.safetensors as Hugging Face lays them out")
}

const adapterConfig = "adapter_config.json"

// adapterError names an adapter, which transformers would put on the base model that it names.
func adapterError(files fs.FS, what string) error {
	var a struct {
		Type string `json:"peft_type"`
		Base string `json:"base_model_name_or_path"`
	}
	raw, err := folder.JSON(files, adapterConfig)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return fmt.Errorf("%s: %w", adapterConfig, err)
	}
	return fmt.Errorf("%s: an adapter (peft_type %q of base model %q) %s, and mmserve applies none: merge it with its base by peft's merge_and_unload() and save the result, or serve the base model without %[1]s",
		adapterConfig, a.Type, a.Base, what)
}

// list names the files at the root of a folder.
func list(files fs.FS) []string {
	entries, _ := fs.ReadDir(files, ".")
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func has(names []string, name string) bool { return slices.Contains(names, name) }

// quantizationFiles are what tools write beside config.json. transformers does not read them; what they describe is in
// the weights.
var quantizationFiles = []string{"quantize_config.json", "quant_config.json", "hf_quant_config.json"}

// quantization is quantization_config of transformers, or quantization of MLX.
type quantization struct {
	Method string                     `json:"quant_method"`
	Format string                     `json:"format"`
	Groups map[string]json.RawMessage `json:"config_groups"`
}

// changed refuses a folder whose files make another model of its weights than config.json describes, and warns of what
// is not applied and changes nothing here.
func changed(files fs.FS, config []byte) (warnings []string, err error) {
	if folder.Exists(files, adapterConfig) {
		return nil, adapterError(files, "stands beside the weights")
	}
	type part struct {
		Quantization json.RawMessage `json:"quantization_config"`
		Compression  json.RawMessage `json:"compression_config"`
	}
	var c struct {
		part
		MLX      json.RawMessage            `json:"quantization"`
		Text     part                       `json:"text_config"`
		AutoMap  map[string]json.RawMessage `json:"auto_map"`
		Explicit json.RawMessage            `json:"transformers_weights"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	for _, q := range []struct {
		name string
		raw  json.RawMessage
	}{
		{"quantization_config", c.Quantization}, {"compression_config", c.Compression}, {"quantization", c.MLX},
		{"text_config.quantization_config", c.Text.Quantization}, {"text_config.compression_config", c.Text.Compression},
	} {
		warning, err := readQuantization(q.name, q.raw)
		if err != nil {
			return nil, err
		}
		if warning != "" {
			warnings = append(warnings, warning)
		}
	}
	if set(c.Explicit) && string(c.Explicit) != `"`+safetensors.Single+`"` {
		return nil, fmt.Errorf("config.json: transformers_weights names other files than %s; rename them", safetensors.Single)
	}
	for _, name := range quantizationFiles {
		if folder.Exists(files, name) {
			warnings = append(warnings, name+" is not read: the weights count as what they are stored as")
		}
	}
	if len(c.AutoMap) > 0 {
		warnings = append(warnings, "config.json's auto_map names code of the model's own, which is not run; transformers runs it with trust_remote_code only")
	}
	if folder.Exists(files, safetensors.Single) {
		var others []string
		for _, n := range list(files) {
			if n != safetensors.Single && (n == safetensors.Index || path.Ext(n) == ".safetensors" && n != "gold.safetensors") {
				others = append(others, n)
			}
		}
		if len(others) > 0 {
			warnings = append(warnings, fmt.Sprintf("%s is read, and not what else is there: %s", safetensors.Single, shortList(others)))
		}
	}
	return warnings, nil
}

// changedGraphs does what changed does for ready-made graphs: adapters are refused. Quantisation is in the graphs
// themselves, and what files say of it is not read.
func changedGraphs(files fs.FS, config []byte) (warnings []string, err error) {
	for _, dir := range []string{".", "onnx"} {
		entries, _ := fs.ReadDir(files, dir)
		for _, e := range entries {
			switch name := path.Join(dir, e.Name()); {
			case e.IsDir():
			case name == adapterConfig:
				return nil, adapterError(files, "stands beside the graphs")
			case e.Name() == adapterConfig, strings.HasSuffix(name, ".onnx_adapter"):
				return nil, fmt.Errorf("%s: an adapter stands beside the graphs, and mmserve applies none: export the model with the adapter merged, or serve the folder without it", name)
			case has(quantizationFiles, e.Name()), e.Name() == "ort_config.json":
				warnings = append(warnings, name+" is not read: the graphs are run as they are")
			}
		}
	}
	var c map[string]json.RawMessage
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	for _, name := range []string{"quantization_config", "compression_config", "quantization", "auto_map"} {
		if set(c[name]) {
			warnings = append(warnings, "config.json's "+name+" is not read: the graphs are run as they are")
		}
	}
	return warnings, nil
}

func set(raw json.RawMessage) bool {
	return len(raw) > 0 && string(raw) != "null" && string(raw) != "{}"
}

// readQuantization refuses a quantised checkpoint by the name of its method. What calls itself dense is not quantised.
func readQuantization(name string, raw json.RawMessage) (warning string, err error) {
	if !set(raw) {
		return "", nil
	}
	var q quantization
	if err := json.Unmarshal(raw, &q); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	method := q.Method
	if method == "" {
		method = map[string]string{"quantization": "mlx"}[name]
	}
	if method == "compressed-tensors" && q.Format == "dense" && len(q.Groups) == 0 {
		return fmt.Sprintf("config.json: %s has quant_method %q with format \"dense\": the weights are floating point and are served as they are", name, method), nil
	}
	return "", fmt.Errorf("%s has quant_method %q: mmserve reads no quantised checkpoints; take the unquantised model (--precision int8 and int4 quantise it here), or remove %[1]s if the weights are floating point",
		name, method)
}

// shortList writes a few of many names.
func shortList(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
