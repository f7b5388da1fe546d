package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/safetensors"
	"github.com/mmserve/mmserve/model/export"
	"github.com/mmserve/mmserve/model/families"
)

// settingFiles are what is read of a model folder beside its weights.
var settingFiles = []string{
	"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
	"added_tokens.json", "chat_template.json", "chat_template.jinja", "preprocessor_config.json", "processor_config.json",
	"video_preprocessor_config.json",
}

// WantedOptions say what of a repository is to be run.
type WantedOptions struct {
	// ONNXDType asks for ready-made graphs, as OpenExport's dtypes.
	ONNXDType string
	// NoWeights leaves the weights out: dummies take their place.
	NoWeights bool
}

// Wanted picks the files of a repository that Open or OpenExport reads. absent are settings that the repository does
// not have. What the folder would be refused for by its names and its configuration is an error here, before its
// weights are fetched.
func Wanted(repository fs.FS, o WantedOptions) (wanted, absent []string, err error) {
	names := list(repository)
	if !has(names, "config.json") {
		return nil, nil, noConfig(repository)
	}
	for _, n := range settingFiles {
		if has(names, n) {
			wanted = append(wanted, n)
		} else {
			absent = append(absent, n)
		}
	}
	for _, n := range quantizationFiles { // they are warned of
		if has(names, n) {
			wanted = append(wanted, n)
		}
	}
	templates, err := fs.Glob(repository, "additional_chat_templates/*.jinja")
	if err != nil {
		return nil, nil, err
	}
	wanted = append(wanted, templates...)
	config, err := folder.JSON(repository, "config.json")
	if err != nil {
		return nil, nil, err
	}
	weights, err := wantedWeights(repository, config, o)
	if err == nil && !o.NoWeights && !has(names, "tokenizer.json") {
		err = (&Model{files: repository}).noTokenizer()
	}
	return append(wanted, weights...), absent, err
}

// wantedWeights are the checkpoint's files, or the graphs with theirs.
func wantedWeights(repository fs.FS, config []byte, o WantedOptions) ([]string, error) {
	graphs, err := fs.Glob(repository, "onnx/*.onnx")
	if err != nil {
		return nil, err
	}
	if o.ONNXDType != "" || len(graphs) > 0 && !o.NoWeights && runsGraphs(list(repository), config) {
		if _, err := changedGraphs(repository, config); err != nil {
			return nil, err
		}
		return export.Wanted(repository, config, o.ONNXDType)
	}
	if _, err := changed(repository, config); err != nil {
		return nil, err
	}
	if _, _, err := families.Read(config); err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	names := list(repository)
	switch {
	case o.NoWeights:
		return nil, nil
	case has(names, safetensors.Single):
		return []string{safetensors.Single}, nil
	case has(names, safetensors.Index):
		return wantedShards(repository)
	}
	return nil, noWeights(repository)
}

// wantedShards are the files that the index names, and the index.
func wantedShards(repository fs.FS) ([]string, error) {
	raw, err := folder.Read(repository, safetensors.Index)
	if err != nil {
		return nil, err
	}
	var index struct {
		Files map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%s: %w", safetensors.Index, err)
	}
	wanted := []string{safetensors.Index}
	seen := map[string]bool{}
	for _, n := range index.Files {
		if seen[n] {
			continue
		}
		seen[n] = true
		if path.Ext(n) != ".safetensors" || !folder.Exists(repository, n) {
			return nil, fmt.Errorf("%s names %.120q: want a file of .safetensors that is there", safetensors.Index, n)
		}
		wanted = append(wanted, n)
	}
	if len(wanted) == 1 {
		return nil, errors.New(safetensors.Index + " names no file")
	}
	slices.Sort(wanted)
	return wanted, nil
}

// runsGraphs tells whether Open would run the graphs of a folder with files of these names at its root.
func runsGraphs(names []string, config []byte) bool {
	if !slices.ContainsFunc(names, func(n string) bool { return path.Ext(n) == ".safetensors" }) {
		return true
	}
	t, err := families.ModelType(config)
	if err != nil {
		return false
	}
	f := families.Lookup(t)
	return f.Checkpoint == nil && f.Graphs != nil
}
