package server_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/mmserve/mmserve/client"
	"github.com/mmserve/mmserve/internal/constrain"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/racetest"
	pb "github.com/mmserve/mmserve/proto/mmserve/v1"
	"github.com/mmserve/mmserve/vision"
)

const canary = "Xq7canary"

// canaries are texts that are valid in some fields and wrong in others, each in another way.
var canaries = []string{
	canary,
	canary + " zebra",
	strings.Repeat(canary, 100),
	"(" + canary,
	"(?P<" + canary + ">a)[" + canary + "-a]",
	`\p{` + canary + `}`,
	`{"` + canary + `":1,"` + canary + `":2}`,
	`{"a":` + canary + `}`,
	`{"type":"` + canary + `","` + canary + `":{}}`,
	`{"properties":{"` + canary + `":{"pattern":"(` + canary + `","type":5}},` +
		`"required":["` + canary + `","` + canary + `"]}`,
	`{"$ref":"#/` + canary + `","const":"` + canary + `","minLength":"` + canary + `"}`,
	`{"patternProperties":{"(` + canary + `":{"$ref":"` + canary + `"}},"format":["` + canary + `"]}`,
	`{"type":"string","enum":["` + canary + `"],"minLength":99}`,
	"\x89PNG\r\n\x1a\n\x00\x00\x00\x09" + canary,
	"GIF89a" + canary, "P6\n" + canary + " 1 255\n", "BM" + strings.Repeat(canary, 8),
	"RIFF\x10\x00\x00\x00WEBPVP8 " + canary,
	"II*\x00\x08\x00\x00\x00\x05\x00" + strings.Repeat(canary, 20), "\xff\xd8\xff\xe0\x00\x10" + canary,
	"\x00\x00\x00\x18ftyp" + canary, "<svg>" + canary,
}

// named are the fields whose valid values name a request for operators, who find it by them in logs and traces.
var named = map[protoreflect.Name]bool{"request_id": true, "tenant": true}

// leaves gives the paths of all string and bytes fields below d.
func leaves(
	d protoreflect.MessageDescriptor, path []protoreflect.FieldDescriptor,
) (all [][]protoreflect.FieldDescriptor) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		at := append(path[:len(path):len(path)], f)
		switch {
		case f.Kind() == protoreflect.StringKind || f.Kind() == protoreflect.BytesKind:
			all = append(all, at)
		case f.Message() != nil && !f.IsMap():
			all = append(all, leaves(f.Message(), at)...)
		}
	}
	return all
}

// put sets the field at path to text.
func put(m protoreflect.Message, path []protoreflect.FieldDescriptor, text string) {
	f := path[0]
	if len(path) > 1 {
		if f.IsList() {
			put(m.Mutable(f).List().AppendMutable().Message(), path[1:], text)
		} else {
			put(m.Mutable(f).Message(), path[1:], text)
		}
		return
	}
	value := protoreflect.ValueOfString(text)
	if f.Kind() == protoreflect.BytesKind {
		value = protoreflect.ValueOfBytes([]byte(text))
	}
	if f.IsList() {
		m.Mutable(f).List().Append(value)
	} else {
		m.Set(f, value)
	}
}

// TestCanary holds that what callers write occurs in no error, log line or span, whichever field it is in, the
// request being valid or not.
func TestCanary(t *testing.T) {
	m := tinyVLM(t)
	compiler, err := constrain.NewCompiler(m.Prompter.Tokenizer, m.EOS)
	if err != nil {
		t.Fatal(err)
	}
	m.Compiler = func() (*constrain.Compiler, error) { return compiler, nil }
	m.Prompter.Preprocessor = prepares{prepare: func(ctx context.Context, data []byte, l vision.Limits,
		_ bool) (*vision.Image, error) {
		h, err := imaging.ReadHeader(ctx, data, imaging.Limits{})
		if err != nil {
			return nil, err
		}
		if _, err = h.Decode(ctx); err != nil {
			return nil, err
		}
		return &vision.Image{Digest: sha256.Sum256(data), Width: h.Width, Height: h.Height, Size: 64}, nil
	}}
	f, spans := startTraced(t, m, newChain(4, 430, 4), 100)
	paths, sent := leaves((&pb.GenerateRequest{}).ProtoReflect().Descriptor(), nil), 0
	tried := 0
	if len(paths) < 10 {
		t.Fatalf("%d fields have text, want at least 10", len(paths))
	}
	for _, path := range paths {
		for _, text := range canaries {
			if last := path[len(path)-1]; last.Kind() == protoreflect.StringKind && strings.ToValidUTF8(text, "") != text {
				continue // the client's own encoder refuses it
			} else if named[last.Name()] && !strings.Contains(text, " ") {
				text += " " // no valid name
			}
			if tried++; racetest.Enabled && tried%10 != 0 {
				continue // make test runs this without the race detector, too
			}
			for _, priority := range []pb.Priority{0, 99} { // 99 is wrong, beside the canary
				in := client.Prompt(client.Text("a"))
				in.Priority = priority
				put(in.ProtoReflect(), path, text)
				for _, message := range in.GetChat().GetMessages() {
					message.Role = pb.Role_ROLE_USER
				}
				_, unary := f.Generate(t.Context(), proto.CloneOf(in))
				_, _, _, stream := collect(t.Context(), f.Client, in)
				sent += 2
				for _, err := range []error{unary, stream} {
					st := status.Convert(err)
					shown := fmt.Sprint(err, prototext.Format(st.Proto()), st.Details())
					if strings.Contains(shown, canary) {
						t.Errorf("%s = %.80q: the error quotes it: %.300s", path[len(path)-1].FullName(), text, shown)
					}
				}
			}
		}
	}
	for _, line := range strings.Split(f.log.String(), "\n") {
		if strings.Contains(line, canary) {
			t.Errorf("a log line quotes it: %.300s", line)
		}
	}
	for _, s := range ended(t, spans, sent) {
		if text := fmt.Sprint(s.Name(), s.Attributes(), s.Events(), s.Status()); strings.Contains(text, canary) {
			t.Errorf("a span quotes it: %.300s", text)
		}
	}
}
