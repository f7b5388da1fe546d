package server_test

import (
	"context"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mmserve/mmserve/client"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/server"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// What CountTokens says is what Generate reports, and no slot is taken for it.
func TestCountTokens(t *testing.T) {
	m := tinyVLM(t)
	m.Fingerprint = "fp_1"
	f := start(t, m, newChain(1, 430, 4), server.Options{})
	c := pb.NewInferenceServiceClient(f.conn)
	in := question()
	in.RequestId, in.MaxTokens, in.ReturnTokenIds = "r-1", proto.Uint32(9), true
	answer, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	release := holdAll(t, f)
	got, err := c.CountTokens(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	release()
	u := answer.GetUsage()
	want := &pb.CountTokensResponse{
		Id: "r-1", Model: "tiny-vlm", ModelDigest: "sha256:test", SystemFingerprint: "fp_1",
		PromptTokens: u.GetPromptTokens(), TextTokens: u.GetTextTokens(), ImageTokens: imageTokens,
		Context: contextLen, MaxTokens: 9, Fits: true, TokenIds: answer.GetPromptTokenIds(),
		Images: []*pb.ImageLayout{{
			Format: "png", Width: 64, Height: 64, EffectiveWidth: 64, EffectiveHeight: 64, Tiles: 1, Tokens: imageTokens,
		}},
	}
	if !proto.Equal(got, want) || len(got.GetTokenIds()) != int(u.GetPromptTokens()) {
		t.Errorf("got %v, want %v", got, want)
	}
	if log := f.log.String(); !strings.Contains(log, "operation=count_tokens") {
		t.Errorf("the log has no line of it: %s", log)
	}
}

// What does not fit is said so, and what Generate refuses is refused the same.
func TestCountTokensRefusals(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{})
	c := pb.NewInferenceServiceClient(f.conn)
	long := client.Prompt(client.Text(strings.Repeat("a small red circle ", 500)))
	tight := question()
	tight.MaxTokens = proto.Uint32(contextLen - 10)
	for name, in := range map[string]*pb.GenerateRequest{"a long prompt": long, "a long answer": tight} {
		got, err := c.CountTokens(t.Context(), in)
		if err != nil || got.GetFits() || got.GetMaxTokens() != 0 || got.GetPromptTokens() == 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if _, err := f.Generate(t.Context(), in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: Generate says %v", name, err)
		}
	}
	for field, in := range map[string]*pb.GenerateRequest{
		"prompt.parts[0].image.data": client.Prompt(client.ImageBytes([]byte("no image"))),
		"sampling.top_p":             {Input: long.Input, Sampling: &pb.Sampling{TopP: proto.Float32(7)}},
		"input":                      {},
	} {
		_, err := c.CountTokens(t.Context(), in)
		checkViolation(t, err, field, "")
	}
}

// embed reads what EmbedImage gives to its end.
func embed(ctx context.Context, f *fixture, in *pb.EmbedImageRequest) (
	start *pb.EmbedImageStart, patches []float32, largest int, err error,
) {
	stream, err := pb.NewInferenceServiceClient(f.conn).EmbedImage(ctx, in)
	for err == nil {
		var e *pb.EmbedImageResponse
		if e, err = stream.Recv(); err != nil {
			break
		}
		largest = max(largest, proto.Size(e))
		if e.GetStart() != nil {
			start = e.GetStart()
			continue
		}
		if int(e.GetPatches().GetFirst())*int(start.GetDimensions()) != len(patches) {
			return start, patches, largest, errors.New("patches out of order")
		}
		patches = append(patches, e.GetPatches().GetValues()...)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return start, patches, largest, err
}

// wide is tiny-vlm with embeddings of so many values, each a number of its own.
func wide(t testing.TB, dimensions int) (m serving.Model, values []float32) {
	m = tinyVLM(t)
	m.Hidden = dimensions
	values = make([]float32, imageTokens*dimensions)
	for i := range values {
		values[i] = float32(i%1009) / 8
	}
	plain := m.Encode
	m.Encode = func(ctx context.Context, img *vision.Image) ([]float32, bool, error) {
		_, cached, err := plain(ctx, img)
		return values, cached, err
	}
	return m, values
}

// An embedding of any size comes in messages that clients accept, with the mean of all patches first.
func TestEmbedImage(t *testing.T) {
	const dimensions = 100_000 // of 6.4 MB together
	m, values := wide(t, dimensions)
	f := start(t, m, newChain(2, 430, 4), server.Options{})
	in := &pb.EmbedImageRequest{Image: &pb.Image{Data: pngFile(64)}, Tenant: "acme"}
	start, patches, _, err := embed(t.Context(), f, in)
	if err != nil || patches != nil || start.GetDimensions() != dimensions ||
		start.GetImage().GetTokens() != imageTokens || start.GetCached() {
		t.Fatalf("%v, %d values, %v", start.GetImage(), len(patches), err)
	}
	for i, got := range start.GetPooled() {
		sum := 0.0
		for p := range imageTokens {
			sum += float64(values[p*dimensions+i])
		}
		if math.Abs(sum/imageTokens-float64(got)) > 1e-4 {
			t.Fatalf("pooled[%d] is %v, want %v", i, got, sum/imageTokens)
		}
	}
	in.Patches = true
	start, patches, largest, err := embed(t.Context(), f, in)
	if err != nil || !slices.Equal(patches, values) || largest > 1<<20+100 || !start.GetCached() {
		t.Errorf("%d values, messages of up to %d bytes, cached %t, %v", len(patches), largest, start.GetCached(), err)
	}
	in.Tenant = "other"
	if start, _, _, err = embed(t.Context(), f, in); err != nil || start.GetCached() {
		t.Errorf("another tenant is told that the image was sent before: %v, %v", start.GetCached(), err)
	}
}

// Features for later layers are no embeddings: they are neither given nor counted into the mean.
func TestEmbedImageDeepstack(t *testing.T) {
	const dimensions, layers = 40, 3
	m, all := wide(t, dimensions*(1+layers))
	m.Hidden, m.Deepstack = dimensions, layers
	f := start(t, m, newChain(2, 430, 4), server.Options{})
	in := &pb.EmbedImageRequest{Image: &pb.Image{Data: pngFile(64)}, Patches: true}
	start, patches, _, err := embed(t.Context(), f, in)
	if err != nil || start.GetDimensions() != dimensions || len(patches) != imageTokens*dimensions {
		t.Fatalf("%d dimensions, %d values, %v", start.GetDimensions(), len(patches), err)
	}
	for i := range dimensions {
		sum := 0.0
		for p := range imageTokens {
			want := all[p*dimensions*(1+layers)+i]
			if sum += float64(want); patches[p*dimensions+i] != want {
				t.Fatalf("value %d of patch %d is %v, want %v", i, p, patches[p*dimensions+i], want)
			}
		}
		if got := start.GetPooled()[i]; math.Abs(sum/imageTokens-float64(got)) > 1e-4 {
			t.Errorf("pooled[%d] is %v, want %v", i, got, sum/imageTokens)
		}
	}
}

func TestEmbedImageRefusals(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{})
	for field, in := range map[string]*pb.EmbedImageRequest{
		"image":        {},
		"image.data":   {Image: &pb.Image{Data: []byte("no image")}},
		"image.url":    {Image: &pb.Image{Url: "http://localhost/"}},
		"image.digest": {Image: &pb.Image{Digest: "sha256:0"}},
		"image.detail": {Image: &pb.Image{Data: pngFile(8), Detail: 9}},
		"priority":     {Image: &pb.Image{Data: pngFile(8)}, Priority: 9},
		"tenant":       {Image: &pb.Image{Data: pngFile(8)}, Tenant: "a b"},
		"request_id":   {Image: &pb.Image{Data: pngFile(8)}, RequestId: "ö"},
	} {
		_, _, _, err := embed(t.Context(), f, in)
		checkViolation(t, err, field, "")
	}
	_, _, _, err := embed(t.Context(), f, &pb.EmbedImageRequest{Model: "secret", Image: &pb.Image{Data: pngFile(8)}})
	if status.Code(err) != codes.NotFound || strings.Contains(err.Error(), "secret") {
		t.Errorf("another model: %v", err)
	}
	release := holdAll(t, f)
	_, _, _, err = embed(t.Context(), f, &pb.EmbedImageRequest{Image: &pb.Image{Data: pngFile(8)}})
	release()
	if _, retry := client.RetryDelay(err); !retry {
		t.Errorf("without a place: %v, want RESOURCE_EXHAUSTED with RetryInfo", err)
	}
}

// A client that does not take its embedding loses it, and its place is another's.
func TestEmbedImageNotTaken(t *testing.T) {
	m, _ := wide(t, 100_000)
	f := start(t, m, newChain(1, 430, 4), server.Options{ReceiveTimeout: 200 * time.Millisecond})
	in := &pb.EmbedImageRequest{Image: &pb.Image{Data: pngFile(64)}, Patches: true}
	if _, err := pb.NewInferenceServiceClient(f.conn).EmbedImage(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call ends", func() bool { return strings.Contains(f.log.String(), "code=DeadlineExceeded") })
	eventually(t, "its place is free", func() bool { return f.engine.Stats().Accepted == 0 })
}

// A prompt may be tokens, with images between them; they are the model's input as they are.
func TestPromptTokens(t *testing.T) {
	c := newChain(1, 430, 4)
	f := start(t, tinyVLM(t), c, server.Options{})
	in := client.Prompt(tokens(1, 430, 2), client.ImageBytes(pngFile(64)), client.Text("red"), tokens(5))
	in.ReturnTokenIds = true
	got, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	ran := c.prompts[0]
	if n := len(ran); !slices.Equal(ran[:3], []int32{1, 430, 2}) || ran[n-1] != 5 ||
		got.GetUsage().GetImageTokens() != imageTokens {
		t.Errorf("the model ran %v; %v", ran, got.GetUsage())
	}
	told := make([]int32, 0, len(ran))
	for _, id := range got.GetPromptTokenIds() {
		told = append(told, int32(id))
	}
	if !slices.Equal(told, ran) {
		t.Errorf("told %v, ran %v", told, ran)
	}
	again := client.Prompt(&pb.Part{Content: &pb.Part_TokenIds{TokenIds: &pb.TokenIds{Ids: []uint32{1, 2, 3}}}})
	if _, err := f.Generate(t.Context(), again); err != nil || !slices.Equal(c.prompts[1], []int32{1, 2, 3}) {
		t.Errorf("the model ran %v, %v", c.prompts[1], err)
	}
}

func tokens(ids ...uint32) *pb.Part {
	return &pb.Part{Content: &pb.Part_TokenIds{TokenIds: &pb.TokenIds{Ids: ids}}}
}

func TestPromptTokensRefused(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(1, 430, 4), server.Options{})
	const image = 7
	chat := client.Chat(client.User(tokens(1)))
	for field, in := range map[string]*pb.GenerateRequest{
		"prompt.parts[0].token_ids.ids[1]":    client.Prompt(tokens(1, vocab)),
		"prompt.parts[0].token_ids.ids[0]":    client.Prompt(tokens(math.MaxUint32)),
		"prompt.parts[1].token_ids.ids[0]":    client.Prompt(client.ImageBytes(pngFile(64)), tokens(image)),
		"prompt.parts[0].token_ids.ids":       client.Prompt(tokens()),
		"chat.messages[0].parts[0].token_ids": chat,
		"prompt.parts[1].token_ids.ids":       client.Prompt(tokens(1), tokens(make([]uint32, 262144)...)),
		"input":                               client.Prompt(tokens(make([]uint32, contextLen)...)),
	} {
		_, err := f.Generate(t.Context(), in)
		checkViolation(t, err, field, "")
	}
}

// The ids of an answer's tokens are told with their text, whole and in a stream, and what ended it.
func TestTokenIDs(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 430, 529, 441, 4), server.Options{})
	in := question()
	in.ReturnTokenIds = true
	whole, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	choice, all := whole.GetChoices()[0], []uint32{430, 529, 441, 4}
	if !slices.Equal(choice.GetTokenIds(), all) || choice.GetMatchedStopTokenId() != 4 || whole.MatchedStopTokenId == nil {
		t.Errorf("%v", choice)
	}
	start, deltas, finish, err := collect(t.Context(), f.Client, in)
	var ids []uint32
	for _, d := range deltas {
		ids = append(ids, d.GetTokenIds()...)
	}
	if ids = append(ids, finish.GetTokenIds()...); err != nil || !slices.Equal(ids, all) ||
		finish.GetMatchedStopTokenId() != 4 {
		t.Errorf("%v, %v, %v", ids, finish, err)
	}
	if !slices.Equal(start.GetPromptTokenIds(), whole.GetPromptTokenIds()) || len(start.GetPromptTokenIds()) == 0 {
		t.Errorf("the prompt's ids %v, %v", start.GetPromptTokenIds(), whole.GetPromptTokenIds())
	}
	in.StopTokenIds = []uint32{441}
	if whole, err = f.Generate(t.Context(), in); err != nil || whole.GetMatchedStopTokenId() != 441 {
		t.Errorf("%v, %v", whole, err)
	}
	in.StopTokenIds, in.MaxTokens = nil, proto.Uint32(2)
	if whole, err = f.Generate(t.Context(), in); err != nil || whole.MatchedStopTokenId != nil {
		t.Errorf("cut by its length: %v, %v", whole, err)
	}
	in.ReturnTokenIds = false
	if whole, err = f.Generate(t.Context(), in); err != nil || whole.GetChoices()[0].TokenIds != nil ||
		whole.PromptTokenIds != nil {
		t.Errorf("ids that nobody asked for: %v, %v", whole, err)
	}
}

// A stop string is left in the answer where that is asked for, with its tokens.
func TestIncludeStop(t *testing.T) {
	f := start(t, tinyVLM(t), newChain(2, 430, 529, 441, 4), server.Options{})
	in := question()
	in.ReturnTokenIds, in.Logprobs = true, false
	whole, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	in.MaxTokens = proto.Uint32(2)
	two, err := f.Generate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	in.MaxTokens, in.Stop = nil, []string{two.GetText()[len(two.GetText())-3:]}
	without, err := f.Generate(t.Context(), in)
	if err != nil || without.GetText()+in.GetStop()[0] != two.GetText() ||
		slices.Contains(without.GetChoices()[0].GetTokenIds(), 529) {
		t.Errorf("without: %v, %v", without, err)
	}
	in.IncludeStop = true
	with, err := f.Generate(t.Context(), in)
	if err != nil || with.GetText() != two.GetText() || with.GetText() == whole.GetText() ||
		with.GetMatchedStop() != in.GetStop()[0] ||
		!slices.Equal(with.GetChoices()[0].GetTokenIds(), []uint32{430, 529}) || with.MatchedStopTokenId != nil {
		t.Errorf("with: %v, %v", with, err)
	}
}

// What was uploaded is counted and embedded by its digest, for the tenant that uploaded it alone.
func TestCountAndEmbedUploads(t *testing.T) {
	f, c, _ := withMedia(t, server.Options{})
	data := pngFile(64)
	if _, err := send(t, c, pieces(&pb.UploadMediaHeader{Tenant: "a"}, data, 1000)...); err != nil {
		t.Fatal(err)
	}
	for tenant, want := range map[string]codes.Code{"a": codes.OK, "b": codes.NotFound} {
		in := showing(&pb.Image{Digest: digestOf(data)})
		in.Tenant = tenant
		if got, err := c.CountTokens(t.Context(), in); status.Code(err) != want || err == nil &&
			got.GetImageTokens() != imageTokens {
			t.Errorf("tenant %s counts %v, %v", tenant, got, err)
		}
		_, _, _, err := embed(t.Context(), f, &pb.EmbedImageRequest{Tenant: tenant, Image: &pb.Image{Digest: digestOf(data)}})
		if status.Code(err) != want {
			t.Errorf("tenant %s embeds: %v", tenant, err)
		}
	}
}
