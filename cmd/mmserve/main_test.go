package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// mmserve runs a command as its user types it.
func mmserve(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, &out, &errs)
	return status, out.String(), errs.String()
}

func TestCaptionSamples(t *testing.T) {
	code, out, errs := mmserve(t, "caption")
	if code != 0 {
		t.Fatalf("status %d: %s", code, errs)
	}
	for _, want := range []string{
		"sample0.png: A large orange star in the center on a beige background.\n",
		"sample5.png: A large yellow ring at the top and a large cyan number 4 at the bottom on a navy background.\n",
		"image tokens", "Try next",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

func TestCommandLineErrors(t *testing.T) {
	empty := t.TempDir()
	file := filepath.Join(empty, "notes.txt")
	if err := os.WriteFile(file, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"fly"}, 2, "unexpected argument fly"},
		{[]string{"serve", "--max-images", "many"}, 2, "--max-images"},
		{[]string{"caption", "--precision", "fp8"}, 2, "must be one of"},
		{[]string{"caption", "--prefill-chunk", "0"}, 2, "--prefill-chunk 0: want 1 or more"},
		{[]string{"model", "inspect", empty}, 1, "no config.json"},
		{[]string{"model", "inspect", file}, 1, "is a file"},
		{[]string{"model", "inspect", filepath.Join(empty, "none")}, 1, "no model folder"},
		{[]string{"caption", "--model", empty}, 1, "name at least one image"},
		{[]string{"--ort-lib", file + "x", "doctor"}, 1, ""},
	} {
		code, out, errs := mmserve(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: status %d, %q %q; want %d, %q", c.args, code, out, errs, c.code, c.want)
		}
	}
}

func TestDoctor(t *testing.T) {
	code, out, errs := mmserve(t, "doctor")
	if code != 0 || !strings.Contains(out, "cpu works (ran a graph)") ||
		!strings.Contains(out, "kernels     "+kernels.Instructions()+"\n") || !strings.Contains(out, "tiny-vlm (idefics3), 1.8 M parameters") {
		t.Errorf("status %d: %s%s", code, out, errs)
	}
	code, out, _ = mmserve(t, "doctor", "--model", t.TempDir())
	if code != 1 || !strings.Contains(out, "FAILED: ") {
		t.Errorf("broken model: status %d: %s", code, out)
	}
	code, out, _ = mmserve(t, "doctor", "--slots", "0")
	if code != 1 || !strings.Contains(out, "FAILED: --slots 0: want 1 or more") {
		t.Errorf("no slots: status %d: %s", code, out)
	}
}

// Copies of a good folder with one thing wrong each.
func TestBrokenModelFolders(t *testing.T) {
	good := filepath.Join("..", "..", "model", "tiny-vlm")
	for _, c := range []struct {
		name  string
		spoil func(dir string) error
		want  string
	}{
		{"no tokenizer", func(d string) error { return os.Remove(filepath.Join(d, "tokenizer.json")) }, "no tokenizer.json"},
		{"no weights", func(d string) error { return os.Remove(filepath.Join(d, "model.safetensors")) },
			"no model.safetensors"},
		{"truncated weights", func(d string) error { return os.Truncate(filepath.Join(d, "model.safetensors"), 1_000_000) },
			"model.safetensors: truncated"},
		{"wrong shape", replaceIn("config.json", `"intermediate_size": 384`, `"intermediate_size": 385`), "want [385 128] by config.json"},
		{"unsupported type", replaceIn("config.json", `"model_type": "idefics3"`, `"model_type": "gpt5v"`), `model_type "gpt5v" is not supported; supported are `},
		{"broken json", replaceIn("config.json", `"architectures"`, `architectures`), "config.json: line 2: invalid character"},
		{"broken template", replaceIn("chat_template.jinja", `{% endfor %}`, ``), "chat template"},
		{"wrong image token", replaceIn("config.json", `"image_token_id": 7`, `"image_token_id": 8`), "the image token is 8"},
		{"odd head", replaceIn("config.json", `"head_dim": 32`, `"head_dim": 24`), "multiple of 16"},
		{"scaled rope", replaceIn("config.json", `"rope_scaling": null`, `"rope_scaling": {"type": "su"}`), `rope type "su" is not supported`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(good)); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			code, _, errs := mmserve(t, "caption", "--model", dir, filepath.Join(good, "samples", "sample0.png"))
			if code != 1 || !strings.Contains(errs, c.want) {
				t.Errorf("status %d: %s\nwant %q", code, errs, c.want)
			}
		})
	}
}

func replaceIn(file, from, to string) func(dir string) error {
	return func(dir string) error {
		p := filepath.Join(dir, file)
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if !bytes.Contains(b, []byte(from)) {
			return fmt.Errorf("%s has no %q", file, from)
		}
		return os.WriteFile(p, bytes.Replace(b, []byte(from), []byte(to), 1), 0o600)
	}
}

func TestVerifyCommand(t *testing.T) {
	dir := filepath.Join("..", "..", "testdata", "tiny-hf", "smolvlm")
	code, out, errs := mmserve(t, "model", "verify", dir, "--references", filepath.Join(dir, "gold.safetensors"))
	if code != 0 || !strings.Contains(out, "1 cases, 0 missed") || !strings.Contains(out, "0 unused") {
		t.Errorf("status %d: %s%s", code, out, errs)
	}
	code, out, _ = mmserve(t, "model", "verify", dir, "--gold", filepath.Join(dir, "gold.safetensors"),
		"--tolerance", "1e-9")
	if code != 1 || !strings.Contains(out, "OFF BY") {
		t.Errorf("tolerance 1e-9: status %d: %s", code, out)
	}
}

// A folder's own gold cases: recorded, checked before serving, and what drift does.
func TestSelfTest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "drifty")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "model", "tiny-vlm"))); err != nil {
		t.Fatal(err)
	}
	gold := filepath.Join(dir, "mmserve-gold.jsonl")
	if err := os.Remove(gold); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := mmserve(t, "model", "verify", dir); code != 3 || !strings.Contains(out, "no reference values") {
		t.Errorf("without gold: status %d: %s%s", code, out, errs)
	}
	cache := t.TempDir()
	for _, args := range [][]string{{}, {"--precision", "int8"}} {
		code, out, errs := mmserve(t,
			append([]string{"model", "verify", dir, "--write-references", "--cache-dir", cache}, args...)...)
		if code != 0 || !strings.Contains(out, "recorded 4 cases") || !strings.Contains(out, " 0 missed") {
			t.Fatalf("write %v: status %d: %s%s", args, code, out, errs)
		}
	}
	if code, out, errs := mmserve(t, "model", "verify", dir); code != 0 || !strings.Contains(out, "8 cases, 0 missed") {
		t.Errorf("verify: status %d: %s%s", code, out, errs)
	}
	sample := filepath.Join(dir, "samples", "sample0.png")
	if code, _, errs := mmserve(t, "caption", "--model", dir, sample); code != 0 {
		t.Fatalf("caption: status %d: %s", code, errs)
	}
	serve := []string{"serve", "--listen", "127.0.0.1:0", "--model", dir, "--precision", "fp32"}
	for _, c := range []struct {
		name  string
		spoil func() (undo func() error, err error)
		want  []string
	}{
		{"weights", func() (func() error, error) {
			return spoil(filepath.Join(dir, "model.safetensors"), 3_000_000, make([]byte, 200_000))
		},
			[]string{"8 cases", "MISS  image 1, fp32", "logprobs OFF BY"}},
		{"template", func() (func() error, error) { return spoil(filepath.Join(dir, "chat_template.jinja"), 0, []byte(" ")) },
			[]string{"MISS  image 1, fp32", "prompt_text 0.0% AGREE"}},
		{"image", func() (func() error, error) {
			return spoil(gold, 0, []byte(`{"id": "lost", "images": ["samples/none.png"], "prompt": [{"type": "image"}]}`+"\n"))
		}, []string{"1 of ", "MISS lost", "samples/none.png"}},
		{"outside", func() (func() error, error) {
			return spoil(gold, 0, []byte(`{"id": "out", "images": ["../../secret.png"], "prompt": [{"type": "image"}]}`+"\n"))
		}, []string{"MISS out", "invalid"}},
		{"file", func() (func() error, error) { return spoil(gold, 0, []byte("[]\n")) }, []string{"mmserve-gold.jsonl, line 1"}},
	} {
		undo, err := c.spoil()
		if err != nil {
			t.Fatal(err)
		}
		code, _, errs := mmserve(t, serve...)
		for _, want := range append(c.want, "self-test") {
			if code != 1 || !strings.Contains(errs, want) {
				t.Errorf("%s: status %d: %s\nwant %q", c.name, code, errs, want)
			}
		}
		if code, _, errs := mmserve(t, "caption", "--no-self-test", "--model", dir, sample); c.name != "template" &&
			code != 0 {
			t.Errorf("%s, --no-self-test: status %d: %s", c.name, code, errs)
		}
		if err := undo(); err != nil {
			t.Fatal(err)
		}
	}
}

// spoil overwrites a file from a place on, or where that is 0 puts data before what is there.
func spoil(file string, at int, data []byte) (undo func() error, err error) {
	was, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	now := append(append([]byte(nil), data...), was...)
	if at > 0 {
		now = append([]byte(nil), was...)
		copy(now[at:], data)
	}
	return func() error { return os.WriteFile(file, was, 0o600) }, os.WriteFile(file, now, 0o600)
}

// A checkpoint made up from a bare config.json of each family is inspected, recorded, verified and served.
func TestInit(t *testing.T) {
	families, err := filepath.Glob(filepath.Join("..", "..", "testdata", "tiny-hf", "*"))
	if err != nil || len(families) < 7 {
		t.Fatalf("%v %v", families, err)
	}
	types := []string{"f32", "bf16", "f16"}
	for i, from := range families {
		t.Run(filepath.Base(from), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "made")
			dtype := types[i%len(types)]
			args := []string{
				"model", "init", "--config", filepath.Join(from, "config.json"), "--out", dir, "--dtype", dtype, "--seed", "7",
			}
			if code, out, errs := mmserve(t, args...); code != 0 || !strings.Contains(out, "stored as "+strings.ToUpper(dtype)) {
				t.Fatalf("init: status %d: %s%s", code, out, errs)
			}
			if code, _, errs := mmserve(t, args...); code != 1 || !strings.Contains(errs, "is not empty") {
				t.Errorf("init again: status %d: %s", code, errs)
			}
			if code, out, errs := mmserve(t, "model", "inspect", dir); code != 0 || !strings.Contains(out, "parameters") {
				t.Errorf("inspect: status %d: %s%s", code, out, errs)
			}
			if code, out, errs := mmserve(t, "model", "verify", dir, "--write-gold"); code != 0 ||
				!strings.Contains(out, "recorded") || !strings.Contains(out, " 0 unused") ||
				!strings.Contains(out, " 0 missed") ||
				filepath.Base(from) == "idefics3" && !strings.Contains(out, "image 1 in tiles, fp32  prompt_text equal  prompt_ids equal  pixel_values ≤0.0e+00\n") {
				t.Errorf("verify: status %d: %s%s", code, out, errs)
			}
			sample0 := filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png")
			if code, _, errs := mmserve(t, "caption", "--model", dir, "--max-tokens", "6", "--prompt", "what is it?",
				sample0); code != 0 {
				t.Errorf("caption: status %d: %s", code, errs)
			}
		})
	}
	dummy := []string{
		"caption", "--model", filepath.Join("..", "..", "testdata", "tiny-hf", "idefics3", "config.json"),
		"--load-format", "dummy", "--max-tokens", "8",
	}
	if code, _, errs := mmserve(t,
		append(dummy, filepath.Join("..", "..", "model", "tiny-vlm", "samples", "sample0.png"))...); code != 0 {
		t.Errorf("caption --load-format dummy: status %d: %s", code, errs)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--out", t.TempDir()}, 2, "--config"},
		{[]string{"--config", "none.json", "--out", t.TempDir()}, 1, "none.json"},
		{[]string{"--config", families[0], "--out", t.TempDir(), "--dtype", "f64"}, 2, "f32"},
		{[]string{"--config", filepath.Join("..", "..", "package.json"), "--out", t.TempDir()}, 1, `package.json: model_type "" is not supported`},
	} {
		if code, _, errs := mmserve(t, append([]string{"model", "init"}, c.args...)...); code != c.code ||
			!strings.Contains(errs, c.want) {
			t.Errorf("%v: status %d: %s\nwant %d, %s", c.args, code, errs, c.code, c.want)
		}
	}
}

// startServer runs `mmserve serve` in this process and gives a client of it.
func startServer(t *testing.T, args ...string) *client.Client {
	t.Helper()
	c, err := client.Dial(serveAt(t, args...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serveAt runs `mmserve serve` in this process until the test ends, and says where.
func serveAt(t *testing.T, args ...string) string {
	t.Helper()
	addr := sockettest.FreeAddress(t)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, append([]string{"--log-level", "error", "serve", "--listen", addr, "--admin-address", ""}, args...),
			io.Discard, os.Stderr)
	}()
	t.Cleanup(func() {
		stop()
		if code := <-done; code != 0 {
			t.Errorf("serve ended with status %d", code)
		}
	})
	c, err := client.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for began := time.Now(); time.Since(began) < 5*time.Minute; { // a driver may compile for a minute
		if _, err = c.Generate(t.Context(), &pb.GenerateRequest{}); status.Code(err) == codes.InvalidArgument {
			return addr
		}
		select {
		case code := <-done:
			done <- code
			t.Fatalf("serve ended with status %d before it served", code)
		case <-time.After(50 * time.Millisecond): // the process is starting: there is nothing to wait on but its port
		}
	}
	t.Fatalf("the server did not come up: %v", err)
	return ""
}

func sample(t *testing.T, n int) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "model", "tiny-vlm", "samples", fmt.Sprintf("sample%d.png", n)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answer collects a stream.
func answer(t *testing.T, c *client.Client, req *pb.GenerateRequest) (string, *pb.StreamFinish, error) {
	var text strings.Builder
	var last *pb.StreamFinish
	for e, err := range c.Stream(t.Context(), req) {
		if err != nil {
			return text.String(), nil, err
		}
		text.WriteString(e.GetDelta().GetText())
		if f := e.GetFinish(); f != nil {
			last = f
		}
	}
	return text.String(), last, nil
}

// 32 streams at once, of mixed lengths, images and samplers, give what each gives alone.
func TestManyStreamsEqualAlone(t *testing.T) {
	for name, args := range map[string][]string{
		"fp32": nil, "int8": {"--precision", "int8", "--cache-dir", t.TempDir()}, "export": {"--model", exportFolder(t)},
	} {
		t.Run(name, func(t *testing.T) {
			c := startServer(t, append(args, "--slots", "8", "--prefill-chunk", "16")...)
			var requests []*pb.GenerateRequest
			for i := range 32 {
				var parts []*pb.Part
				for j := range i % 3 {
					parts = append(parts, client.ImageBytes(sample(t, (i+j)%8)))
				}
				parts = append(parts,
					client.Text([]string{"Describe the image.", "How many objects are there?", "Count to ten.", "Who are you?"}[i%4]))
				req := client.Chat(client.User(parts...))
				n := uint32(1 + i*3)
				req.MaxTokens = &n
				if i%5 == 4 {
					temperature, seed := float32(1.2), uint64(i)
					req.Sampling = &pb.Sampling{Temperature: &temperature, Seed: &seed}
				}
				requests = append(requests, req)
			}
			alone := make([]string, len(requests))
			for i, r := range requests {
				text, f, err := answer(t, c, r)
				if err != nil {
					t.Fatalf("request %d alone: %v", i, err)
				}
				alone[i] = fmt.Sprint(text, f.GetFinishReason(), f.GetUsage().GetCompletionTokens())
			}
			var wg sync.WaitGroup
			for i, r := range requests {
				wg.Go(func() {
					text, f, err := answer(t, c, r)
					if got := fmt.Sprint(text, f.GetFinishReason(), f.GetUsage().GetCompletionTokens()); err != nil ||
						got != alone[i] {
						t.Errorf("request %d together: %q %v, alone %q", i, got, err, alone[i])
					}
				})
			}
			wg.Wait()
		})
	}
}

// read gives one of the vision package's awkward images.
func read(t *testing.T, name ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"..", "..", "vision", "testdata"}, name...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hugePNG is a PNG header of 20000×20000 pixels with nothing behind it.
func hugePNG() []byte {
	b := []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
	b = binary.BigEndian.AppendUint32(b, 20000)
	b = binary.BigEndian.AppendUint32(b, 20000)
	b = append(b, 8, 2, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[12:]))
	pixels := []byte("IDAT\x78\x9c\x01\x00\x00\xff\xff") // the beginning of them: a header alone is a truncated file
	b = append(binary.BigEndian.AppendUint32(b, uint32(len(pixels)-4)), pixels...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(pixels))
}

// Each bad request is refused by its own fault, and the server answers the next good one.
func TestBadRequests(t *testing.T) {
	c := startServer(t, "--slots", "2")
	text := func(s string) *pb.GenerateRequest { return client.Chat(client.User(client.Text(s))) }
	image := func(b []byte) *pb.GenerateRequest {
		return client.Chat(client.User(client.ImageBytes(b), client.Text("Describe the image.")))
	}
	with := func(r *pb.GenerateRequest, f func(*pb.GenerateRequest)) *pb.GenerateRequest { f(r); return r }
	uint32p := func(n uint32) *uint32 { return &n }
	floatp := func(x float32) *float32 { return &x }
	nan := floatp(0)
	*nan /= *nan
	many := client.Chat(client.User())
	for range 100 {
		m := many.GetChat().Messages[0]
		m.Parts = append(m.Parts, client.ImageBytes(sample(t, 0)))
	}
	for _, k := range []struct {
		name string
		req  *pb.GenerateRequest
		want []string
	}{
		{"truncated PNG", image(sample(t, 0)[:1000]), []string{"chat.messages[0].parts[0].image.data", "png"}},
		{"truncated JPEG", image(read(t, "exif", "orientation_6.jpg")[:1000]), []string{"chat.messages[0].parts[0].image.data", "jpeg"}},
		{"decompression bomb", image(read(t, "decode", "pillow", "decompression_bomb.gif")),
			[]string{"chat.messages[0].parts[0].image.data", "gif"}},
		{"huge header", image(hugePNG()), []string{"20000"}},
		{"text file", image([]byte("this is no picture")), []string{"chat.messages[0].parts[0].image.data"}},
		{"zero bytes", image(nil), []string{"chat.messages[0].parts[0].image.data"}},
		{"100 images", many, []string{"16"}},
		{"no input", &pb.GenerateRequest{}, []string{"input"}},
		{"no messages", client.Chat(), []string{"chat.messages"}},
		{"no parts", client.Chat(client.User()), []string{"parts"}},
		{"unknown role", client.Chat(&pb.Message{Role: 9, Parts: []*pb.Part{client.Text("hi")}}), []string{"role", "9"}},
		{"prompt too long", text(strings.Repeat("one two three ", 500)), []string{"512"}},
		{"max_tokens 0", with(text("hi"), func(r *pb.GenerateRequest) { r.MaxTokens = uint32p(0) }), []string{"max_tokens"}},
		{"max_tokens beyond", with(text("hi"), func(r *pb.GenerateRequest) { r.MaxTokens = uint32p(100000) }),
			[]string{"max_tokens", "100000", "512"}},
		{"NaN temperature", with(text("hi"), func(r *pb.GenerateRequest) { r.Sampling = &pb.Sampling{Temperature: nan} }),
			[]string{"temperature", "NaN"}},
		{"10,000 stops", with(text("hi"), func(r *pb.GenerateRequest) { r.Stop = make([]string, 10000) }),
			[]string{"stop", "10000", "16"}},
	} {
		_, err := c.Generate(t.Context(), k.req)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, want INVALID_ARGUMENT", k.name, err)
			continue
		}
		for _, w := range k.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want it to say %q", k.name, err, w)
			}
		}
	}
	out, err := c.Generate(t.Context(), image(sample(t, 0)))
	if err != nil || !strings.Contains(out.GetText(), "A large orange star in the center") {
		t.Errorf("after all that: %q %v", out.GetText(), err)
	}
	if u := out.GetUsage(); u.GetImageTokens() != 16 || u.GetPromptTokens() != u.GetTextTokens()+16 {
		t.Errorf("usage %v", u)
	}
}
