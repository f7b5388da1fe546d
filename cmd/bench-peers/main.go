// Command bench-peers runs mmserve and what users would pick instead side by side, on the same checkpoint and the same
// work, and prints one table of ratios: medians of runs that take turns, with their spread. A peer that is not installed is
// named and left out.
//
// It needs a folder (-peers) with models/hf, a Hugging Face checkpoint; for llama-server, models/lm-q4_0.gguf and its
// like, and either a llama-server on PATH or a root file system in sid/ that has one.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// answer is what one request measured.
type answer struct {
	ttft, total    time.Duration
	prompt, tokens int
}

// peer is a server under test.
type peer interface {
	name() string
	// missing says why the peer cannot run here, "" if it can.
	missing() string
	// command is the server's process; it listens on addr once ready returns nil.
	command(addr string) *exec.Cmd
	ready(ctx context.Context, addr string) error
	// ask sends a text, with a picture (JPEG) before it unless that is nil, and reads up to n tokens.
	ask(ctx context.Context, text string, picture []byte, n int) (answer, error)
}

func main() {
	home, _ := os.UserHomeDir()
	folder := flag.String("peers", filepath.Join(home, ".cache", "mmserve-peers"), "folder with the peers and their checkpoint")
	bin := flag.String("mmserve", "bin/mmserve", "mmserve's binary")
	threads := flag.Int("threads", 2, "threads of each server")
	reps := flag.Int("reps", 3, "rounds; in each, every peer runs once")
	only := flag.String("only", "", "run only peers whose name contains this, and mmserve")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *folder, *bin, *threads, *reps, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, folder, bin string, threads, reps int, only string) error {
	peers := []peer{&mmserve{bin: bin, folder: folder, threads: threads}}
	for _, q := range []string{"q8_0", "q4_0"} {
		if p := (&llama{folder: folder, quant: q, threads: threads}); strings.Contains(p.name(), only) {
			peers = append(peers, p)
		}
	}
	peers = slices.DeleteFunc(peers, func(p peer) bool {
		why := p.missing()
		if why != "" {
			fmt.Fprintf(os.Stderr, "%s is left out: %s\n", p.name(), why)
		}
		return why != ""
	})
	results := map[string]map[string][]float64{} // metric → peer → values
	for rep := range reps {
		for _, p := range peers {
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", rep+1, reps, p.name())
			got, err := measure(ctx, p, rep)
			if err != nil {
				if rep > 0 {
					report(peers, results) // the rounds that were whole, and a part of this one
				}
				return fmt.Errorf("%s: %w", p.name(), err)
			}
			for _, m := range got {
				if results[m.name] == nil {
					results[m.name] = map[string][]float64{}
				}
				results[m.name][p.name()] = append(results[m.name][p.name()], m.value)
			}
		}
	}
	report(peers, results)
	return nil
}

// metrics in the order of the table. A ratio above 1 means that mmserve is better.
var metrics = []struct {
	name  string
	lower bool // lower is better
}{
	{"start to first token, s", true}, {"image request to first token, ms", true}, {"prefill, tokens/s", false},
	{"decode 1 stream, tokens/s", false}, {"decode 4 streams, tokens/s", false}, {"decode 8 streams, tokens/s", false}, {"decode 16 streams, tokens/s", false},
	{"captions/s, 8 in flight", false}, {"peak memory, MB", true},
}

type metric struct {
	name  string
	value float64
}

// measure starts a server, does the work once, and stops it.
func measure(ctx context.Context, p peer, seed int) (list []metric, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	addr := fmt.Sprintf("127.0.0.1:%d", 21000+rand.IntN(4000))
	cmd := p.command(addr)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil {
			text := log.String()
			err = fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
		}
	}()
	if err := p.ready(ctx, addr); err != nil {
		return nil, err
	}
	ask := func(words, n int, picture bool) (answer, error) {
		var img []byte
		if picture {
			img = photo(rng)
		}
		return p.ask(ctx, text(rng, words), img, n)
	}
	if _, err := ask(4, 1, false); err != nil {
		return nil, err
	}
	list = append(list, metric{"start to first token, s", time.Since(began).Seconds()})
	if _, err := ask(4, 4, true); err != nil { // warm
		return nil, err
	}
	a, err := ask(32, 1, true)
	if err != nil {
		return nil, err
	}
	list = append(list, metric{"image request to first token, ms", a.ttft.Seconds() * 1000})
	if a, err = ask(256, 1, false); err != nil {
		return nil, err
	}
	list = append(list, metric{"prefill, tokens/s", float64(a.prompt) / a.ttft.Seconds()})
	for _, streams := range []int{1, 4, 8, 16} {
		rate, err := together(streams, streams, rng, func(words string, _ []byte) (answer, error) { return p.ask(ctx, words, nil, 64) })
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("decode %d streams, tokens/s", streams)
		list = append(list, metric{strings.Replace(name, "1 streams", "1 stream", 1), rate.tokens})
	}
	rate, err := together(16, 8, rng, func(words string, img []byte) (answer, error) { return p.ask(ctx, words, img, 32) })
	if err != nil {
		return nil, err
	}
	list = append(list, metric{"captions/s, 8 in flight", rate.requests})
	return append(list, metric{"peak memory, MB", peakMB(cmd.Process.Pid)}), nil
}

type rates struct{ tokens, requests float64 }

// together sends n requests, at most limit at a time.
func together(n, limit int, rng *rand.Rand, ask func(words string, picture []byte) (answer, error)) (rates, error) {
	words, pictures := make([]string, n), make([][]byte, n)
	for i := range n {
		words[i], pictures[i] = text(rng, 4), photo(rng)
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var first error
	tokens, places := 0, make(chan struct{}, limit)
	began := time.Now()
	for i := range n {
		group.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			a, err := ask(words[i], pictures[i])
			mu.Lock()
			defer mu.Unlock()
			tokens += a.tokens
			if first == nil {
				first = err
			}
		})
	}
	group.Wait()
	s := time.Since(began).Seconds()
	return rates{float64(tokens) / s, float64(n) / s}, first
}

// text is n words that are one token each in common vocabularies.
func text(rng *rand.Rand, n int) string {
	words := []string{"the", "file", "is", "in", "name", "of", "and", "with", "return", "code", "this", "that", "from", "when", "list", "data"}
	var s strings.Builder
	for range n {
		s.WriteString(" " + words[rng.IntN(len(words))])
	}
	return s.String()
}

// photo is a picture of 512×512 pixels with soft structure, different each time.
func photo(rng *rand.Rand) []byte {
	const size, cell = 512, 32
	var grid [size/cell + 1][size/cell + 1][3]float64
	for i := range grid {
		for j := range grid[i] {
			for c := range 3 {
				grid[i][j][c] = rng.Float64() * 255
			}
		}
	}
	img := image.NewRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			i, j, fy, fx := y/cell, x/cell, float64(y%cell)/cell, float64(x%cell)/cell
			var v [3]uint8
			for c := range 3 {
				v[c] = uint8((grid[i][j][c]*(1-fx)+grid[i][j+1][c]*fx)*(1-fy) + (grid[i+1][j][c]*(1-fx)+grid[i+1][j+1][c]*fx)*fy)
			}
			img.SetRGBA(x, y, color.RGBA{v[0], v[1], v[2], 255})
		}
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 90}); err != nil {
		panic(err) // writing to memory
	}
	return b.Bytes()
}

// peakMB is the largest resident set of a process so far.
func peakMB(pid int) float64 {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	var kb float64
	if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok {
		fmt.Sscanf(rest, "%f", &kb)
	}
	return kb / 1000
}

// report prints medians, the spread of mmserve's values, and the ratios.
func report(peers []peer, results map[string]map[string][]float64) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "| \t")
	for _, p := range peers {
		fmt.Fprintf(w, "| %s\t", p.name())
	}
	for _, p := range peers[1:] {
		fmt.Fprintf(w, "| against %s\t", p.name())
	}
	fmt.Fprintln(w, "|")
	fmt.Fprintln(w, "|---\t"+strings.Repeat("|---\t", 2*len(peers)-1)+"|")
	for _, m := range metrics {
		fmt.Fprintf(w, "| %s\t", m.name)
		own := results[m.name][peers[0].name()]
		for _, p := range peers {
			v := results[m.name][p.name()]
			fmt.Fprintf(w, "| %.4g (%.4g – %.4g)\t", median(v), slices.Min(v), slices.Max(v))
		}
		for _, p := range peers[1:] {
			ratio := median(own) / median(results[m.name][p.name()])
			if m.lower {
				ratio = 1 / ratio
			}
			fmt.Fprintf(w, "| %.2f×\t", ratio)
		}
		fmt.Fprintln(w, "|")
	}
	w.Flush()
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
