package verify

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/mmserve/mmserve/internal/chat"
	"github.com/mmserve/mmserve/internal/folder"
	"github.com/mmserve/mmserve/internal/graph"
)

// referencesFile is the file of a model folder with the cases that it is checked by when it is loaded.
const referencesFile = "mmserve-gold.jsonl"

// referenceCase is a line of a file: a prompt, and what another implementation or another machine made of it.
type referenceCase struct {
	ID string `json:"id"`
	// Images are paths below the file's folder, or data: URLs.
	Images []string `json:"images,omitempty"`
	// Detail is that of the request: "low" or "".
	Detail   string             `json:"detail,omitempty"`
	Messages []referenceMessage `json:"messages,omitempty"`
	// Prompt is given instead of Messages: the parts of a raw prompt.
	Prompt []referencePart `json:"prompt,omitempty"`

	PromptText string  `json:"prompt_text"`
	PromptIDs  []int32 `json:"prompt_ids"`
	PixelSHA   string  `json:"pixel_sha256_f32,omitempty"`
	PixelMean  float64 `json:"pixel_mean,omitempty"`
	PixelStd   float64 `json:"pixel_std,omitempty"`
	// Precision is what the numbers below were computed in; "" matches any.
	Precision graph.Precision `json:"precision,omitempty"`
	Top       [][2]float64    `json:"first_step_top5,omitempty"`
	Generated []int32         `json:"generated_ids"`
	// Logprobs are those of the generated ids.
	Logprobs []float64 `json:"logprobs,omitempty"`
}

type referenceMessage struct {
	Role    string          `json:"role"`
	Content []referencePart `json:"content"`
}

type referencePart struct {
	Type string `json:"type"`
	Text string `json:"text,omitempty"`
}

func parts(list []referencePart) []chat.Part {
	out := make([]chat.Part, len(list))
	for i, p := range list {
		out[i] = chat.Part{Image: p.Type == "image", Text: p.Text}
	}
	return out
}

// readCases reads the cases of a file. One without an id is called by its line.
func readCases(files fs.FS, name string) ([]referenceCase, error) {
	raw, err := folder.Read(files, name)
	if err != nil {
		return nil, err
	}
	var list []referenceCase
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, len(raw)+1)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		g := referenceCase{ID: fmt.Sprintf("line %d", n)}
		if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, n, err)
		}
		list = append(list, g)
	}
	return list, lines.Err()
}

// image reads an image of a case.
func readImage(files fs.FS, name string) ([]byte, error) {
	if rest, ok := strings.CutPrefix(name, "data:"); ok {
		_, data, ok := strings.Cut(rest, ";base64,")
		if !ok {
			return nil, errors.New("images: a data: URL that is not base64")
		}
		return base64.StdEncoding.DecodeString(data)
	}
	return folder.Read(files, name)
}
