package export

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/mmserve/mmserve/model/families"
)

// Wanted picks the files that Open would read of a repository with this config.json: of each session the graph that
// dtypes or config.json choose, and its external data.
func Wanted(repository fs.FS, config []byte, dtypes string) ([]string, error) {
	_, _, family, err := families.ReadGraphs(config)
	if err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	entries, err := fs.ReadDir(repository, "onnx")
	if err != nil {
		return nil, fmt.Errorf("the repository has no ready-made graphs in onnx/: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	choose, err := choiceAmong(graphNames(names), dtypes, config)
	if err != nil {
		return nil, err
	}
	var wanted []string
	for _, session := range family.Sessions {
		dtype, _, err := choose.pick(session)
		if err != nil {
			return nil, err
		}
		graph := session + suffixOf(dtype) + ".onnx"
		for _, n := range names { // data are graph.onnx_data, graph.onnx_data_1, graph.onnx.data
			if n == graph || strings.HasPrefix(n, graph+"_data") || n == graph+".data" {
				wanted = append(wanted, path.Join("onnx", n))
			}
		}
	}
	return wanted, nil
}
