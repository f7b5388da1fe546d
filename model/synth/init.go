package synth

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/families"
)

// InitOptions say how Init fills a checkpoint.
type InitOptions struct {
	Seed uint64
	// DType is the type of the weights: "f32", "bf16" or "f16"; "" is "bf16".
	DType string
	// ShardBytes is the most weights in one file; 0 is 4 GiB. A larger tensor has a file of its own.
	ShardBytes int64

	toRun bool // the weights will be run here
}

func (o InitOptions) shardBytes() int64 {
	if o.ShardBytes == 0 {
		return 4 << 30
	}
	return o.ShardBytes
}

var initDTypes = map[string]struct {
	stored safetensors.DType
	config string // what config.json calls it
}{
	"f32": {safetensors.F32, "float32"}, "f16": {safetensors.F16, "float16"}, "bf16": {safetensors.BF16,
		"bfloat16"}, "": {safetensors.BF16, "bfloat16"},
}

func (o InitOptions) dtype() safetensors.DType { return initDTypes[o.DType].stored }

// Init writes a checkpoint with random weights into the empty folder dir, which it makes: the shape is that of a
// config.json, named itself or by its folder. Tokenizer, template and preprocessor are the folder's where it has a
// tokenizer.json, and made up otherwise.
func Init(config, dir string, o InitOptions) error {
	if _, ok := initDTypes[o.DType]; !ok {
		return fmt.Errorf("type of the weights is %q; want f32, bf16 or f16", o.DType)
	}
	st, err := os.Stat(config)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s: name a config.json, or the folder that holds it", config)
	}
	if err != nil {
		return err
	}
	from := folder.Dir(filepath.Dir(config))
	name := filepath.Base(config)
	if st.IsDir() {
		from, name = folder.Dir(config), "config.json"
	}
	raw, err := folder.JSON(from, name)
	if err != nil {
		return err
	}
	_, spec, err := families.Read(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := checkRoom(spec, dir, o.dtype().Size(), o.toRun); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		return fmt.Errorf("%s is not empty: name a new folder", dir)
	}
	if raw, err = withDType(raw, initDTypes[o.DType].config); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o644); err != nil {
		return err
	}
	if err := copyText(from, dir); err != nil {
		return err
	}
	if err := writeSynthetic(spec, raw, dir); err != nil {
		return err
	}
	return writeRandom(dir, spec, o)
}

// withDType says in a config.json what type the weights have.
func withDType(config []byte, dtype string) ([]byte, error) {
	var c map[string]json.RawMessage
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, err
	}
	c["dtype"], c["torch_dtype"] = fmt.Appendf(nil, "%q", dtype), fmt.Appendf(nil, "%q", dtype)
	return json.MarshalIndent(c, "", "  ")
}

// copyText copies what a folder has beside its weights: all of it where there is a tokenizer.json, else what does not
// depend on the tokenizer.
func copyText(from fs.FS, dir string) error {
	patterns := []string{"preprocessor_config.json"}
	if _, err := fs.Stat(from, "tokenizer.json"); err == nil {
		patterns = []string{"*.jinja", "additional_chat_templates/*.jinja", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
			"added_tokens.json",
			"chat_template.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"}
	}
	for _, pattern := range patterns {
		names, err := fs.Glob(from, pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			raw, err := folder.Read(from, name)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Join(dir, filepath.FromSlash(path.Dir(name))), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.FromSlash(name)), raw, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeJSON(file string, v any) error {
	raw, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}
