package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// works are the parts of the work, in the order they are done.
var works = []string{"start", "image", "prefill", "decode", "captions", "long"}

// standard are those that are done unless others are asked for: a long context takes gigabytes and minutes.
var standard = works[:5]

// longContext is the context of "long", in tokens, of each of longStreams streams.
const longContext, longStreams = 8192, 8

const (
	eightPrompts = "eight prompts of 32 at once, tokens/s"
	longDecode   = "decode at a context of 8,192, streams: 8, tokens/s"
)

// work is what every peer is asked to do.
type work struct {
	parts  []string
	photos int
}

func (w work) has(part string) bool { return slices.Contains(w.parts, part) }

func (w work) check() error {
	for _, p := range w.parts {
		if !slices.Contains(works, p) {
			return fmt.Errorf("-work %q: it is some of %s", p, strings.Join(works, ", "))
		}
	}
	if w.photos < 1 {
		return fmt.Errorf("-photos %d: it takes 1 or more", w.photos)
	}
	return nil
}

// measured is what one peer did in one round.
type measured struct {
	values []value
	others float64 // cores that neither the peer nor this program used: above some 0.1 the round is not to be trusted
}

// measure starts a peer, does the work once, and stops it.
func measure(ctx context.Context, p peer, w work, seed uint64) (m measured, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	addr := fmt.Sprintf("127.0.0.1:%d", 21000+rand.IntN(4000))
	cmd := p.command(addr)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	began, busy, own := time.Now(), machineSeconds(), processSeconds(os.Getpid())
	if err := cmd.Start(); err != nil {
		return m, err
	}
	pid, exited := cmd.Process.Pid, make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait()
		cancel() // nobody waits for a server that has ended
	}()
	defer func() {
		used := processSeconds(pid) + processSeconds(os.Getpid()) - own
		m.others = (machineSeconds() - busy - used) / time.Since(began).Seconds()
		cmd.Process.Kill()
		<-exited
		if err != nil {
			text := log.String()
			err = fmt.Errorf("%w\n%s", err, text[max(0, len(text)-2000):])
		}
	}()
	r := &round{peer: p, work: w, pid: pid, rng: rand.New(rand.NewPCG(seed, 1))}
	if err := p.ready(ctx, addr); err != nil {
		return m, err
	}
	if _, err := r.one(ctx, 4, 1, false); err != nil {
		return m, err
	}
	if w.has("start") {
		r.note("start to first token, s", time.Since(began).Seconds())
		if len(w.parts) == 1 {
			m.values = r.values
			return m, nil
		}
	}
	if _, err := r.one(ctx, 4, 4, true); err != nil { // warm
		return m, err
	}
	for _, part := range []func(context.Context) error{r.prompts, r.decode, r.captions, r.long} {
		if err := part(ctx); err != nil {
			return m, err
		}
	}
	if m.values = r.values; len(m.values) == 0 {
		return m, errors.New("nothing was measured")
	}
	return m, nil
}

// round is one peer doing the work once. Its methods do nothing for a part that is not asked for.
type round struct {
	peer   peer
	work   work
	pid    int
	rng    *rand.Rand
	values []value
}

func (r *round) note(metric string, v float64) {
	r.values = append(r.values, value{Metric: metric, Peer: r.peer.name(), Family: r.peer.family(), Value: v})
}

// jobs makes n different requests.
func (r *round) jobs(n, words, tokens int, image bool) []job {
	list := make([]job, n)
	for i := range list {
		list[i] = job{text: text(r.rng, words), tokens: tokens}
		if image {
			list[i].image = photo(r.rng)
		}
	}
	return list
}

func (r *round) one(ctx context.Context, words, tokens int, image bool) (answer, error) {
	a, err := r.peer.do(ctx, r.jobs(1, words, tokens, image), 1)
	if err != nil {
		return answer{}, err
	}
	return a[0], nil
}

// together gives tokens and answers a second.
func (r *round) together(ctx context.Context, list []job, limit int) (tokens, answers float64, err error) {
	began := time.Now()
	got, err := r.peer.do(ctx, list, limit)
	s := time.Since(began).Seconds()
	for i, a := range got {
		if err == nil && a.tokens != list[i].tokens {
			err = fmt.Errorf("an answer of %d tokens came out with %d", list[i].tokens, a.tokens)
		}
		tokens += float64(a.tokens)
	}
	return tokens / s, float64(len(list)) / s, err
}

func (r *round) prompts(ctx context.Context) error {
	if r.work.has("image") {
		a, err := r.one(ctx, 32, 1, true)
		if err != nil {
			return err
		}
		r.note("image request to first token, ms", a.ttft.Seconds()*1000)
	}
	if r.work.has("prefill") {
		a, err := r.one(ctx, 256, 1, false)
		if err != nil {
			return err
		}
		r.note("prefill of 256, tokens/s", float64(a.prompt)/a.ttft.Seconds())
		_, rate, err := r.together(ctx, r.jobs(8, 32, 1, false), 8)
		if err != nil {
			return err
		}
		r.note(eightPrompts, 32*rate)
	}
	return nil
}

func (r *round) decode(ctx context.Context) error {
	if !r.work.has("decode") {
		return nil
	}
	for _, streams := range []int{1, 4, 8, 16} {
		rate, _, err := r.together(ctx, r.jobs(streams, 4, 64, false), streams)
		if err != nil {
			return err
		}
		r.note(fmt.Sprintf("decode, streams: %d, tokens/s", streams), rate)
		if streams == 8 {
			r.note("peak memory at 8 streams, MB", peakMB(r.pid))
		}
	}
	return nil
}

// long is the rate of tokens at a long context: of what 65 tokens take longer than one does, after prompts of the same
// length.
func (r *round) long(ctx context.Context) error {
	if !r.work.has("long") {
		return nil
	}
	const more = 64
	var took [2]time.Duration
	for i, tokens := range []int{1, 1 + more} {
		began := time.Now()
		if _, _, err := r.together(ctx, r.jobs(longStreams, longContext-2*more, tokens, false), longStreams); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	r.note(longDecode, longStreams*more/(took[1]-took[0]).Seconds())
	return nil
}

func (r *round) captions(ctx context.Context) error {
	if !r.work.has("captions") {
		return nil
	}
	list := r.jobs(r.work.photos, 4, 32, true)
	for i := range list {
		list[i].batch = true
	}
	_, rate, err := r.together(ctx, list, 8)
	if err != nil {
		return err
	}
	r.note("captions/s, 8 in flight", rate)
	r.note("peak memory after captions, MB", peakMB(r.pid))
	return nil
}

// text is n words that are one token each in common vocabularies.
func text(rng *rand.Rand, n int) string {
	words := []string{"the", "file", "is", "in", "name", "of", "and", "with", "return", "code", "this", "that", "from",
		"when", "list", "data"}
	var s strings.Builder
	for range n {
		s.WriteString(" " + words[rng.IntN(len(words))])
	}
	return s.String()
}

// photo is an image of 512×512 pixels with soft structure, different each time.
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

// ticks of the counters in /proc are hundredths of a second on every Linux that Go runs on.
const ticks = 100

// machineSeconds is the processor time all programs have used.
func machineSeconds() float64 {
	stat, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(stat), "\n")
	return seconds(strings.Fields(line), 1, 2, 3, 6, 7) // user, nice, system, irq, softirq
}

// processSeconds is the processor time one program has used.
func processSeconds(pid int) float64 {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ") // after the program's name
	return seconds(strings.Fields(rest), 11, 12)  // user, system
}

func seconds(fields []string, which ...int) (s float64) {
	for _, i := range which {
		if i < len(fields) {
			n, _ := strconv.ParseFloat(fields[i], 64)
			s += n / ticks
		}
	}
	return s
}
