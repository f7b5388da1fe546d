package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// llama is llama.cpp's llama-server with one quantisation of the same weights. The tower is the q8_0 one; both
// quantisations run faster with it than with the f16 one.
type llama struct {
	config
	quant        string
	base, marker string
}

func (l *llama) name() string { return "llama-server " + l.quant }

func (l *llama) family() string { return "llama-server" }

func (l *llama) root() string { return filepath.Join(l.folder, "sid") }

// weights are those that a step reads: the whole file, as embeddings are the head's weights too or few of them are read.
func (l *llama) weights() (w weights) {
	if info, err := os.Stat(l.model()); err == nil {
		w.bytes = float64(info.Size())
	}
	w.layers, _, _ = matrices(filepath.Join(l.folder, "models", "hf")) // the same weights
	return w
}

func (l *llama) model() string { return filepath.Join(l.folder, "models", "lm-"+l.quant+".gguf") }

func (l *llama) missing() string {
	if _, err := os.Stat(l.model()); err != nil {
		return err.Error()
	}
	if l.llama != "" {
		if _, err := exec.LookPath(l.llama); err != nil {
			return "-llama: " + err.Error()
		}
		return ""
	}
	if _, err := exec.LookPath("llama-server"); err == nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(l.root(), "usr", "bin", "llama-server")); err != nil {
		return "there is no llama-server on PATH and " + err.Error()
	}
	return ""
}

func (l *llama) command(addr string) *exec.Cmd {
	l.base = "http://" + addr
	_, port, _ := strings.Cut(addr, ":")
	models, start := filepath.Join(l.folder, "models"), []string{"llama-server"}
	if l.llama != "" {
		start[0] = l.llama
	} else if _, err := exec.LookPath("llama-server"); err != nil {
		// The models have to lie inside the other root: a bind mount at /h3.
		models, start = "/h3", []string{"chroot", l.root(), "llama-server"}
	}
	t := strconv.Itoa(l.threads)
	args := append(start, "-m", models+"/lm-"+l.quant+".gguf", "--mmproj", models+"/mm1-q8_0.gguf", "-t", t, "-tb", t,
		"-np", strconv.Itoa(l.slots), "-c", strconv.Itoa(l.slots*l.context),
		"--host", "127.0.0.1", "--port", port, "--cache-ram", "0", "--no-webui", "--offline")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/usr/sbin:/bin:/sbin")
	return cmd
}

func (l *llama) ready(ctx context.Context, addr string) error {
	err := poll(ctx, func() bool {
		r, err := http.Get(l.base + "/health")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == http.StatusOK
	})
	l.marker = "<__media__>"
	r, failed := http.Get(l.base + "/props")
	if failed == nil {
		defer r.Body.Close()
		var props struct {
			Marker string `json:"media_marker"`
		}
		if json.NewDecoder(r.Body).Decode(&props) == nil && props.Marker != "" {
			l.marker = props.Marker
		}
	}
	return err
}

func (l *llama) do(ctx context.Context, jobs []job, limit int) ([]answer, error) {
	return each(ctx, jobs, limit, l.ask)
}

func (l *llama) ask(ctx context.Context, j job) (a answer, err error) {
	var prompt any = j.text
	if j.image != nil {
		prompt = map[string]any{"prompt_string": l.marker + j.text,
			"multimodal_data": []string{base64.StdEncoding.EncodeToString(j.image)}}
	}
	body, err := json.Marshal(map[string]any{"prompt": prompt, "n_predict": j.tokens, "stream": true, "ignore_eos": true,
		"cache_prompt": false, "temperature": 0, "samplers": []string{"temperature"}})
	if err != nil {
		return a, err
	}
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.base+"/completion", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Close = true // llama-server closes idle connections at bad moments
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(r.Body)
		return a, fmt.Errorf("%s: %s", r.Status, text)
	}
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if a.ttft == 0 {
			a.ttft = time.Since(began)
		}
		var event struct {
			Stop    bool
			Timings struct {
				Prompt    int `json:"prompt_n"`
				Predicted int `json:"predicted_n"`
			}
		}
		if err := json.Unmarshal([]byte(data), &event); err != nil {
			return a, err
		}
		if event.Stop {
			a.prompt, a.tokens = event.Timings.Prompt, event.Timings.Predicted
		}
	}
	return a, lines.Err()
}
