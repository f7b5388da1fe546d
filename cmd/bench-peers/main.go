// Command bench-peers runs mmserve and what users would pick instead side by side, on the same checkpoint and the same
// work, and prints one table of ratios: medians of runs that take turns, with their spread. A peer that is not
// installed is named and left out.
//
// It needs a folder (-peers) with models/hf, a Hugging Face checkpoint; for llama-server, models/lm-q4_0.gguf and its
// like, and either a llama-server on PATH or a root file system in sid/ that has one; for transformers.js,
// tjs/node_modules with @huggingface/transformers, tjs/models/smol with the same weights as ONNX files, and node on
// PATH.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	home, _ := os.UserHomeDir()
	folder := flag.String("peers", filepath.Join(home, ".cache", "mmserve-peers"),
		"folder with the peers and their checkpoint")
	bin := flag.String("mmserve", "bin/mmserve", "mmserve's binary")
	precision := flag.String("precision", "int8", "mmserve's --precision")
	threads := flag.Int("threads", 2, "threads of each peer")
	reps := flag.Int("reps", 3, "rounds; in each, every peer runs once")
	photos := flag.Int("photos", 64, "images to caption")
	only := flag.String("only", "", "run only those whose name contains one of these, comma-separated: mmserve,q4_0")
	parts := flag.String("work", strings.Join(standard, ","), "what to measure, comma-separated; also: long")
	write := flag.String("write", "", "write the images to caption into this folder, and do nothing else")
	llamaBin := flag.String("llama", "", "a llama-server by path; empty: the one on PATH or in the peers' folder")
	keep := flag.String("keep", "", "file to add the values to; the table counts what earlier runs left there")
	flag.Parse()
	if *write != "" {
		if err := writePhotos(*write, *photos); err != nil {
			fmt.Fprintln(os.Stderr, "bench-peers:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	w := work{parts: strings.Split(*parts, ","), photos: *photos}
	c := config{folder: *folder, bin: *bin, llama: *llamaBin, precision: *precision, threads: *threads, slots: 16, context: 512}
	if w.has("long") {
		c.slots, c.context = longStreams, longContext
	}
	if err := run(ctx, pick(c, *only), w, *reps, c.threads, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

// writePhotos writes n photos to a folder, for scripts/caption-peers.sh.
func writePhotos(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.jpg", i)), photo(rng), 0o666); err != nil {
			return err
		}
	}
	return nil
}

// config is what the peers have in common, and which mmserve and llama-server they are.
type config struct {
	folder         string
	bin, precision string
	llama          string
	threads        int
	slots, context int // streams at a time, and the tokens of each
}

// pick is those asked for that are installed, mmserve first.
func pick(c config, only string) []peer {
	peers := []peer{&mmserve{config: c}}
	for _, q := range []string{"q8_0", "q4_0"} {
		peers = append(peers, &llama{config: c, quant: q})
	}
	for _, d := range [][2]string{{"fp32", "fp32"}, {"q8", "q8"}, {"q4", "fp32"}} {
		peers = append(peers, &transformers{folder: c.folder, decoder: d[0], tower: d[1], threads: c.threads})
	}
	return slices.DeleteFunc(peers, func(p peer) bool {
		if !slices.ContainsFunc(strings.Split(only, ","), func(s string) bool { return strings.Contains(p.name(), s) }) {
			return true
		}
		why := p.missing()
		if why != "" {
			fmt.Fprintf(os.Stderr, "%s is left out: %s\n", p.name(), why)
		}
		return why != ""
	})
}

// run measures every peer in each round, and prints the table of what there is when it ends, by an error too.
func run(ctx context.Context, peers []peer, w work, reps, threads int, keep string) error {
	if err := w.check(); err != nil {
		return err
	}
	all, err := load(keep)
	if err != nil {
		return err
	}
	defer func() { all.table(os.Stdout) }()
	at := limits{read: bandwidth(threads), peak8: peak8(threads)}
	fmt.Fprintf(os.Stderr, "%d threads read %.1f GB/s and do %.0f GOP/s of 8 bits\n", threads, at.read/1e9, 2*at.peak8/1e9)
	if w.has("start") {
		for _, p := range peers { // reads the files once, so that no peer's first round finds a cold disk cache
			fmt.Fprintf(os.Stderr, "warming the disk cache: %s\n", p.name())
			if _, err := measure(ctx, p, work{parts: []string{"start"}}, 0); err != nil {
				return fmt.Errorf("%s: %w", p.name(), err)
			}
		}
	}
	for rep := range reps {
		for _, p := range peers {
			got, err := measure(ctx, p, w, uint64(rep+1))
			if err != nil {
				return fmt.Errorf("%s: %w", p.name(), err)
			}
			fmt.Fprintf(os.Stderr, "round %d of %d: %s, others used %.2f cores\n", rep+1, reps, p.name(), got.others)
			if of, ok := p.(weigher); ok {
				got.values = append(got.values, at.shares(got.values, of.weights())...)
			}
			if err := all.add(got.values, keep); err != nil {
				return err
			}
		}
	}
	return nil
}
