package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed transformers.mjs
var transformersScript string

// transformers is transformers.js on node, with one data type for the decoder and one for the tower. It generates for
// static batches: rows that start and end together.
type transformers struct {
	folder, decoder, tower string
	threads                int
	base                   string
}

func (t *transformers) name() string { return "transformers.js " + t.decoder }

func (t *transformers) family() string { return "transformers.js" }

func (t *transformers) root() string { return filepath.Join(t.folder, "tjs") }

func (t *transformers) missing() string {
	if _, err := exec.LookPath("node"); err != nil {
		return err.Error()
	}
	suffix := map[string]string{"fp32": "", "q8": "_quantized", "q4": "_q4"}[t.decoder]
	for _, f := range []string{"node_modules/@huggingface/transformers/package.json",
		"models/smol/onnx/decoder_model_merged" + suffix + ".onnx"} {
		if _, err := os.Stat(filepath.Join(t.root(), f)); err != nil {
			return err.Error()
		}
	}
	return ""
}

func (t *transformers) command(addr string) *exec.Cmd {
	t.base = "http://" + addr
	_, port, _ := strings.Cut(addr, ":")
	cmd := exec.Command("node", "--input-type=module", "-e", transformersScript,
		port, filepath.Join(t.root(), "models")+"/", t.decoder, t.tower, strconv.Itoa(t.threads))
	cmd.Dir = t.root() // where node looks for the packages of a script without a file
	return cmd
}

func (t *transformers) ready(ctx context.Context, _ string) error {
	return poll(ctx, func() bool {
		r, err := http.Get(t.base)
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
}

// do makes batches of limit jobs, one after the other.
func (t *transformers) do(ctx context.Context, jobs []job, limit int) (answers []answer, err error) {
	for batch := range slices.Chunk(jobs, limit) {
		a, err := t.generate(ctx, batch)
		if err != nil {
			return nil, err
		}
		answers = append(answers, slices.Repeat([]answer{a}, len(batch))...)
	}
	return answers, nil
}

// generate asks for one batch. Its first token counts as there when all are: only jobs of one token have a TTFT.
func (t *transformers) generate(ctx context.Context, batch []job) (a answer, err error) {
	in := struct {
		Texts  []string `json:"texts"`
		Images [][]byte `json:"images"`
		Tokens int      `json:"tokens"`
	}{Tokens: batch[0].tokens}
	for _, j := range batch {
		in.Texts = append(in.Texts, j.text)
		if j.image != nil {
			in.Images = append(in.Images, j.image)
		}
	}
	body, err := json.Marshal(in)
	if err != nil {
		return a, err
	}
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.base, bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer r.Body.Close()
	reply, err := io.ReadAll(r.Body)
	if err != nil {
		return a, err
	}
	if r.StatusCode != http.StatusOK {
		return a, errors.New(string(reply))
	}
	var out struct{ Prompt, Tokens int }
	if err := json.Unmarshal(reply, &out); err != nil {
		return a, fmt.Errorf("%w: %s", err, reply)
	}
	return answer{ttft: time.Since(began), prompt: out.Prompt, tokens: out.Tokens}, nil
}
