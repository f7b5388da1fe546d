package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/cmd/internal/attack"
	"github.com/mmserve/mmserve/internal/racetest"
	"github.com/mmserve/mmserve/internal/socket/sockettest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
)

// mostRSS is how much of what a server held before bad requests came it may hold afterwards. After attacks, some of
// which are real work in unusual sizes and all at once, the C heap keeps more: 1.04 to 1.09 times was measured.
const mostRSS, mostRSSAfterAttacks = 1.05, 1.15

// Every bad request is refused by its own fault. Once they and the attacks are over, the server gives the memory back
// that they took, and answers as before.
func TestMemoryAfterAttacks(t *testing.T) {
	if racetest.Enabled {
		t.Skip("memory is not the server's own; make test has it once more")
	}
	addr := freePair(t)
	p := startServe(t, addr, nil, "--http-listen", attack.HTTPAddr(addr), "--slots=4")
	p.logged("msg=serving")
	c, err := client.Dial(addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 24 {
		honest(t, c, attack.HTTPAddr(addr), i)
	}
	fill(t, addr)
	want := honest(t, c, attack.HTTPAddr(addr), 0)
	// A large message, whose memory is given back with all that the collector kept: what is left is what the server needs.
	large := client.ImageBytes(append(sample(t, 0), make([]byte, 60<<20)...))
	if _, err := c.Generate(t.Context(), client.Chat(client.User(large, client.Text("Describe the image.")))); err != nil {
		t.Fatal(err)
	}
	before := p.settled(t)

	grpc, web := badRequests(t), badBodies()
	if n := len(grpc) + len(web); n < 100 {
		t.Errorf("%d bad requests, want 100", n)
	}
	for _, b := range grpc {
		refused(t, c, b)
	}
	for _, b := range web {
		b.post(t, attack.HTTPAddr(addr))
	}
	between := p.settled(t)
	attackAll(t, addr)
	for i := range 8 {
		honest(t, c, attack.HTTPAddr(addr), i)
	}
	after := p.settled(t)
	t.Logf("%.1f MB, %.1f MB after %d bad requests, %.1f MB after %d attacks", before, between, len(grpc)+len(web), after,
		len(attack.List()))
	if between > before*mostRSS || after > before*mostRSSAfterAttacks {
		t.Errorf("%.1f MB before, then %.1f and %.1f MB: want at most %.2f and %.2f times", before, between, after, mostRSS,
			mostRSSAfterAttacks)
	}
	if got := honest(t, c, attack.HTTPAddr(addr), 0); got != want {
		t.Errorf("an honest answer afterwards is %q, want %q", got, want)
	}
	if strings.Contains(p.log.String(), "panic") {
		t.Error("a panic in the log")
	}
}

// freePair is an address that nobody listens on, nor on the next port.
func freePair(t *testing.T) string {
	t.Helper()
	for range 100 {
		addr := sockettest.FreeAddress(t)
		if lis, err := net.Listen("tcp", attack.HTTPAddr(addr)); err == nil {
			lis.Close()
			return addr
		}
	}
	t.Fatal("no two free ports side by side")
	return ""
}

// honest asks something over gRPC and the same over HTTP, and gives the answer.
func honest(t *testing.T, c *client.Client, web string, i int) string {
	t.Helper()
	image := sample(t, i%8)
	in := client.Chat(client.User(client.ImageBytes(image), client.Text("Describe the image.")))
	out, err := c.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{"messages": []any{map[string]any{"role": "user", "content": []any{
		map[string]any{"type": "image_url", "image_url": map[string]any{"url": image}}, // a slice of bytes is base64
		map[string]any{"type": "text", "text": "Describe the image."},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post("http://"+web+"/v1/chat/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if quoted, _ := json.Marshal(out.GetText()); err != nil || resp.StatusCode != 200 || !bytes.Contains(text, quoted) {
		t.Fatalf("HTTP answers %d %s %v, gRPC %q", resp.StatusCode, text, err, out.GetText())
	}
	return out.GetText()
}

// fill has the server do at once all that it does, every slot filled to the end of the context: what that takes is the
// server's own, once it has been used.
func fill(t *testing.T, addr string) {
	t.Helper()
	var group errgroup.Group
	for i := range 32 {
		words := client.Text(strings.Repeat(fmt.Sprintf("red %d ", i), 80))
		in := client.Chat(client.User(client.ImageBytes(sample(t, i%8)), client.ImageBytes(sample(t, (i+3)%8)), words))
		switch i % 4 {
		case 0:
			in = client.Chat(client.User(words))
			in.IgnoreEos, in.Logprobs, in.TopLogprobs = true, true, 20
		case 1:
			in.Constraint = &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: `{"enum": ["red", "blue"]}`}}
		}
		in.MaxTokens = proto.Uint32(100)
		group.Go(func() error {
			c, err := client.Dial(addr)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Generate(t.Context(), in)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
}

// settled waits until the process holds the same for two seconds, and gives its resident memory in MB.
func (p *served) settled(t *testing.T) float64 {
	t.Helper()
	least, last := math.Inf(1), time.Now()
	for began := time.Now(); time.Since(last) < 2*time.Second && time.Since(began) < 30*time.Second; {
		if now := p.resident(t); now < least*0.99 {
			least, last = now, time.Now()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return p.resident(t)
}

func (p *served) resident(t *testing.T) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Skip("no /proc, or the server died: ", err)
	}
	var kB float64
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	if _, err := fmt.Sscanf(rest, "%f", &kB); err != nil {
		t.Fatalf("%v; the server may have died:\n%s", err, p.log)
	}
	return kB / 1000
}

// attackAll does every attack once, some at a time. An attacker that holds on leaves after three seconds.
func attackAll(t *testing.T, addr string) {
	t.Helper()
	var group sync.WaitGroup
	places := make(chan struct{}, 6)
	for _, a := range attack.List() {
		group.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			ctx, leave := context.WithTimeout(t.Context(), 3*time.Second)
			defer leave()
			t.Logf("%s: %.100s", a.Name, a.Once(ctx, addr))
		})
	}
	group.Wait()
}

// bad is a request and how it has to be refused.
type bad struct {
	name  string
	in    *pb.GenerateRequest
	code  codes.Code
	field string
}

func refused(t *testing.T, c *client.Client, b bad) {
	t.Helper()
	_, err := c.Generate(t.Context(), b.in)
	st := status.Convert(err)
	var fields []string
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range r.GetFieldViolations() {
				fields = append(fields, v.GetField())
			}
		}
	}
	if st.Code() != b.code || b.field != "" && !slices.Contains(fields, b.field) {
		t.Errorf("%s: %v %q, fields %q; want %v and %q", b.name, st.Code(), st.Message(), fields, b.code, b.field)
	}
}

// badRequests are requests beyond the edges of each field.
func badRequests(t *testing.T) (list []bad) {
	add := func(name, field string, change func(*pb.GenerateRequest)) {
		in := client.Chat(client.User(client.Text("red")))
		in.Sampling = &pb.Sampling{}
		change(in)
		list = append(list, bad{name, in, codes.InvalidArgument, field})
	}
	list = append(list,
		bad{"another model", &pb.GenerateRequest{Model: "gpt"}, codes.NotFound, ""},
		bad{"no input", &pb.GenerateRequest{}, codes.InvalidArgument, "input"},
	)
	badNumbers(add)
	badTexts(add)
	badImages(t, add)
	return list
}

func badNumbers(add func(name, field string, change func(*pb.GenerateRequest))) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, f := range []struct {
		field string
		set   func(*pb.Sampling, *float32)
		wrong []float32
	}{
		{"temperature", func(s *pb.Sampling, x *float32) { s.Temperature = x }, []float32{-1, 2.1, nan, inf}},
		{"top_p", func(s *pb.Sampling, x *float32) { s.TopP = x }, []float32{0, -1, 1.1, nan, inf}},
		{"min_p", func(s *pb.Sampling, x *float32) { s.MinP = x }, []float32{-1, 1.1, nan, inf}},
		{"typical_p", func(s *pb.Sampling, x *float32) { s.TypicalP = x }, []float32{0, -1, 1.1, nan}},
		{"repetition_penalty", func(s *pb.Sampling, x *float32) { s.RepetitionPenalty = x }, []float32{0, -1, 11, nan}},
		{"presence_penalty", func(s *pb.Sampling, x *float32) { s.PresencePenalty = x }, []float32{-2.1, 2.1, nan}},
		{"frequency_penalty", func(s *pb.Sampling, x *float32) { s.FrequencyPenalty = x }, []float32{-2.1, 2.1, nan}},
	} {
		for _, x := range f.wrong {
			add(fmt.Sprintf("%s %v", f.field, x), "sampling."+f.field, func(in *pb.GenerateRequest) { f.set(in.Sampling, &x) })
		}
	}
	for _, x := range []float32{-101, 101, nan, inf} {
		add(fmt.Sprintf("a bias of %v", x), "sampling.logit_bias[5]", func(in *pb.GenerateRequest) {
			in.Sampling.LogitBias = map[uint32]float32{5: x}
		})
	}
	for _, n := range []uint32{0, 512, 1 << 31, math.MaxUint32} {
		add(fmt.Sprintf("max_tokens %d", n), "max_tokens", func(in *pb.GenerateRequest) { in.MaxTokens = &n })
	}
	for _, n := range []uint32{512, math.MaxUint32} {
		add(fmt.Sprintf("min_tokens %d", n), "min_tokens", func(in *pb.GenerateRequest) { in.MinTokens = n })
	}
	for _, n := range []uint32{17, 1 << 20, math.MaxUint32} {
		add(fmt.Sprintf("n %d", n), "n", func(in *pb.GenerateRequest) { in.N = n })
	}
	for _, n := range []uint32{21, math.MaxUint32} {
		add(fmt.Sprintf("top_logprobs %d", n), "top_logprobs", func(in *pb.GenerateRequest) {
			in.Logprobs, in.TopLogprobs = true, n
		})
	}
	add("top_logprobs alone", "top_logprobs", func(in *pb.GenerateRequest) { in.TopLogprobs = 2 })
	add("priority", "priority", func(in *pb.GenerateRequest) { in.Priority = 99 })
	add("stop ids", "stop_token_ids", func(in *pb.GenerateRequest) { in.StopTokenIds = make([]uint32, 17) })
	add("a stop id", "stop_token_ids[0]", func(in *pb.GenerateRequest) { in.StopTokenIds = []uint32{math.MaxUint32} })
}

func badTexts(add func(name, field string, change func(*pb.GenerateRequest))) {
	chat := func(m ...*pb.Message) func(*pb.GenerateRequest) {
		return func(in *pb.GenerateRequest) { in.Input = client.Chat(m...).GetInput() }
	}
	prompt := func(p ...*pb.Part) func(*pb.GenerateRequest) {
		return func(in *pb.GenerateRequest) { in.Input = client.Prompt(p...).GetInput() }
	}
	constraint := func(c *pb.Constraint) func(*pb.GenerateRequest) {
		return func(in *pb.GenerateRequest) { in.Constraint = c }
	}
	ids := func(list ...uint32) *pb.Part {
		return &pb.Part{Content: &pb.Part_TokenIds{TokenIds: &pb.TokenIds{Ids: list}}}
	}
	text := client.Text("red")
	for _, name := range []string{strings.Repeat("a", 129), "a b", "a\n", "é", "\x00"} {
		add("request_id", "request_id", func(in *pb.GenerateRequest) { in.RequestId = name })
		add("tenant", "tenant", func(in *pb.GenerateRequest) { in.Tenant = name })
	}
	add("no messages", "chat.messages", chat())
	add("no parts", "chat.messages[0].parts", chat(client.User()))
	add("an empty part", "chat.messages[0].parts[0]", chat(client.User(&pb.Part{})))
	add("no role", "chat.messages[0].role", chat(&pb.Message{Parts: []*pb.Part{text}}))
	add("a role", "chat.messages[0].role", chat(&pb.Message{Role: 9, Parts: []*pb.Part{text}}))
	add("ends with the assistant", "chat.messages[0].role", chat(client.Assistant(text)))
	add("ids in a chat", "chat.messages[0].parts[0].token_ids", chat(client.User(ids(5))))
	add("a long chat", "input", chat(client.User(client.Text(strings.Repeat("red ", 1000)))))
	add("continues the user's", "chat.continue_final_message", func(in *pb.GenerateRequest) {
		in.GetChat().ContinueFinalMessage = true
	})
	add("an empty prompt", "prompt.parts", prompt())
	add("no ids", "prompt.parts[0].token_ids.ids", prompt(ids()))
	add("an id", "prompt.parts[0].token_ids.ids[0]", prompt(ids(math.MaxUint32)))
	add("an image's id", "prompt.parts[0].token_ids.ids[0]", prompt(ids(7)))
	add("stops", "stop", func(in *pb.GenerateRequest) { in.Stop = make([]string, 17) })
	add("an empty stop", "stop[0]", func(in *pb.GenerateRequest) { in.Stop = []string{""} })
	add("a long stop", "stop[0]", func(in *pb.GenerateRequest) { in.Stop = []string{strings.Repeat("a", 257)} })
	add("no constraint", "constraint", constraint(&pb.Constraint{}))
	add("no choices", "constraint.choices.texts",
		constraint(&pb.Constraint{Kind: &pb.Constraint_Choices{Choices: &pb.Choices{}}}))
	for _, expression := range []string{"(", "a{1,100000}", `(?=a)`, `\1`} {
		add("regex "+expression, "constraint.regex",
			constraint(&pb.Constraint{Kind: &pb.Constraint_Regex{Regex: expression}}))
	}
	for _, schema := range []string{"", "{", "[]", `{"type":"no"}`, `{"$ref":"#/no"}`, `{"$ref":"https://example.com"}`} {
		add("schema "+schema, "constraint.json_schema",
			constraint(&pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}))
	}
	add("ignore_eos with a constraint", "ignore_eos", func(in *pb.GenerateRequest) {
		in.IgnoreEos, in.Constraint = true, &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: "a"}}
	})
}

func badImages(t *testing.T, add func(name, field string, change func(*pb.GenerateRequest))) {
	const field = "chat.messages[0].parts[0].image"
	image := func(img *pb.Image) func(*pb.GenerateRequest) {
		return func(in *pb.GenerateRequest) {
			part := &pb.Part{Content: &pb.Part_Image{Image: img}}
			in.Input = client.Chat(client.User(part, client.Text("what is it?"))).GetInput()
		}
	}
	data := func(name string, file []byte) { add(name, field+".data", image(&pb.Image{Data: file})) }
	whole := sample(t, 0)
	data("no image", nil)
	data("a text", []byte("this is no image"))
	data("half an image", whole[:len(whole)/2])
	data("a huge header", hugePNG())
	data("a bomb", read(t, "decode", "pillow", "decompression_bomb.gif"))
	data("half a JPEG", read(t, "exif", "orientation_6.jpg")[:1000])
	data("an SVG", []byte(`<svg xmlns="http://www.w3.org/2000/svg"/>`))
	data("a PDF", []byte("%PDF-1.7\n"))
	data("a HEIC", []byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heicmif1"))
	data("a JPEG XL", []byte("\x00\x00\x00\x0cJXL \r\n\x87\n"))
	add("detail", field+".detail", image(&pb.Image{Data: whole, Detail: 9}))
	add("two sources", field, image(&pb.Image{Data: whole, Url: "https://example.com/a.png"}))
	for _, url := range []string{"https://example.com/a.png", "file:///etc/passwd", "gopher://127.0.0.1", "http://[::1]/", "x"} {
		add("url "+url, field+".url", image(&pb.Image{Url: url}))
	}
	add("a digest", field+".digest", image(&pb.Image{Digest: "sha256:00"}))
	add("17 images", "input", func(in *pb.GenerateRequest) {
		part := &pb.Part{Content: &pb.Part_Image{Image: &pb.Image{Data: whole}}}
		in.Input = client.Chat(client.User(slices.Repeat([]*pb.Part{part}, 17)...)).GetInput()
	})
}

// badBody is a body of a chat over HTTP, the status that it has to be refused with, and what the error names.
type badBody struct {
	body   string
	status int
	param  string
}

func badBodies() []badBody {
	list := []badBody{
		{"", 400, ""}, {"{", 400, ""}, {"[]", 400, ""}, {`{"a":1,"a":2}`, 400, ""}, {"{\"a\":\"\xff\"}", 400, ""},
		{`{}`, 400, "messages"}, {`{"messages":[]}`, 400, "messages"}, {`{"messages":{}}`, 400, "messages"},
		{`{"messages":[{}]}`, 400, "messages[0].role"},
		{`{"messages":[{"role":"x","content":"a"}]}`, 400, "messages[0].role"},
		{`{"messages":[{"role":"user","content":[{"type":"x"}]}]}`, 400, "messages[0].content[0].type"},
		{`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x y"}}]}]}`, 400,
			"messages[0].content[0].image_url.url"},
	}
	for field, values := range map[string][]string{
		"temperature": {"9", "-1", `"1"`}, "top_p": {"0", "2"}, "n": {"0", "17", "1e9"}, "max_tokens": {"0", "1e30", "-1"},
		"stop": {"[1]", `[""]`}, "logit_bias": {"[]"}, "top_logprobs": {"21"}, "tools": {"{}"},
		"presence_penalty": {"3"}, "frequency_penalty": {"-3"}, "stream": {"1"}, "seed": {`"a"`},
		"response_format": {`{"type":"xml"}`},
	} {
		for _, v := range values {
			param := field
			switch {
			case v == "[1]" || v == `[""]`:
				param = "stop[0]"
			case field == "response_format":
				param = "response_format.type"
			}
			list = append(list, badBody{
				fmt.Sprintf(`{"messages":[{"role":"user","content":"red"}],"logprobs":true,%q:%s}`, field, v), 400, param})
		}
	}
	return list
}

func (b badBody) post(t *testing.T, web string) {
	t.Helper()
	resp, err := http.Post("http://"+web+"/v1/chat/completions", "application/json", strings.NewReader(b.body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e struct {
		Error struct{ Message, Param string } `json:"error"`
	}
	err = json.NewDecoder(resp.Body).Decode(&e)
	if err != nil || resp.StatusCode != b.status || e.Error.Message == "" || e.Error.Param != b.param {
		t.Errorf("%s: %d %+v %v; want %d and %q", b.body, resp.StatusCode, e, err, b.status, b.param)
	}
}
