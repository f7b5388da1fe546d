package serving_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	goimage "image"
	"image/png"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/imaging"
	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/serving"
	"github.com/mmserve/mmserve/vision"
)

// pngFile is an image of one colour.
func pngFile(t testing.TB, side int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, goimage.NewGray(goimage.Rect(0, 0, side, side))); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }

// upload sends a file in chunks.
func upload(s *serving.Service, h serving.UploadHeader, data []byte) (*serving.Media, error) {
	u, err := s.UploadMedia(context.Background(), h)
	if err != nil {
		return nil, err
	}
	defer u.Abort()
	for len(data) > 0 && err == nil && u.Kept == nil {
		n := min(len(data), 40)
		err = u.Write(data[:n])
		data = data[n:]
	}
	return u.Finish(context.Background(), err)
}

func byDigest(d string) serving.Part { return serving.Part{Image: &serving.Image{Digest: d}} }

// wantError holds that an error is of a kind and about one field.
func wantError(t *testing.T, what string, err error, kind serving.Kind, field string) {
	t.Helper()
	var told *serving.Error
	if !errors.As(err, &told) || told.Kind != kind {
		t.Errorf("%s: %v, want %v", what, err, kind)
		return
	}
	if field != "" && (len(told.Violations) != 1 || told.Violations[0].Field != field) {
		t.Errorf("%s: violations %v, want one of %q", what, told.Violations, field)
	}
}

// An upload stands for its bytes in its tenant's requests, and in nobody else's.
func TestUpload(t *testing.T) {
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s, _ := tinyOptions(t, serving.ServiceOptions{Media: store})
	data := pngFile(t, 32)
	n := uint64(len(data))
	m, err := upload(s, serving.UploadHeader{Tenant: "a", Size: &n, Digest: digestOf(data), Type: "image/png"}, data)
	if err != nil {
		t.Fatal(err)
	}
	if m.Digest != digestOf(data) || m.Type != "image/png" || m.Bytes != int64(len(data)) || !m.Expires.After(time.Now()) {
		t.Errorf("uploaded %+v", m)
	}
	ask := func(tenant string, parts ...serving.Part) (string, error) {
		in, k := prompt(append(parts, serving.Part{Text: "a small"})...), kept{}
		in.Tenant = tenant
		err := s.Generate(t.Context(), in, &k)
		return fmt.Sprint(k.text, k.finish.Usage.Image), err
	}
	want, err := ask("a", image(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := ask("a", byDigest(m.Digest)); err != nil || got != want {
			t.Errorf("by digest %q, %v; with the bytes %q", got, err, want)
		}
	}
	for _, other := range []string{"b", ""} {
		_, foreign := ask(other, byDigest(m.Digest))
		wantError(t, "another tenant's digest", foreign, serving.NotFound, "prompt.parts[0].image.digest")
		_, absent := ask(other, byDigest(digestOf([]byte("nothing"))))
		if absent == nil || foreign == nil || foreign.Error() != absent.Error() {
			t.Errorf("a digest of another's says %v, one of nobody's %v", foreign, absent)
		}
		if list, err := s.HasMedia(t.Context(), other, []string{m.Digest}); err != nil || list[0] != nil {
			t.Errorf("another tenant has it: %v, %v", list, err)
		}
		if d, err := s.DeleteMedia(t.Context(), other, m.Digest); d.Existed || err != nil {
			t.Errorf("another tenant deletes it: %+v, %v", d, err)
		}
	}
	sent, err := s.UploadMedia(t.Context(), serving.UploadHeader{Tenant: "a", Digest: m.Digest})
	if err != nil || sent.Kept == nil || sent.Kept.Digest != m.Digest || sent.Kept.Type != "image/png" {
		t.Errorf("a file that is there: %+v, %v", sent, err)
	}
	foreign, err := s.UploadMedia(t.Context(), serving.UploadHeader{Tenant: "b", Digest: m.Digest})
	if err != nil || foreign.Kept != nil {
		t.Errorf("another tenant is told of it: %+v, %v", foreign, err)
	}
	foreign.Abort()
	asB := serving.WithCaller(t.Context(), serving.Caller{Tenant: "b"})
	_, err = s.HasMedia(asB, "a", nil)
	wantError(t, "another tenant by its name", err, serving.Invalid, "tenant")
	_, err = s.DeleteMedia(asB, "a", m.Digest)
	wantError(t, "another tenant by its name", err, serving.Invalid, "tenant")
	_, err = s.UploadMedia(asB, serving.UploadHeader{Tenant: "a", Digest: m.Digest})
	wantError(t, "another tenant by its name", err, serving.Invalid, "header.tenant")
	if list, err := s.HasMedia(asB, "", []string{m.Digest}); err != nil || list[0] != nil {
		t.Errorf("a credential's tenant has it: %v, %v", list, err)
	}
	list, err := s.HasMedia(t.Context(), "a", []string{digestOf(nil), m.Digest})
	if err != nil || list[0] != nil || list[1] == nil || list[1].Digest != m.Digest {
		t.Errorf("has %v, %v", list, err)
	}
	if d, err := s.DeleteMedia(t.Context(), "a", m.Digest); !d.Existed || d.InUse || err != nil {
		t.Errorf("deleting: %+v, %v", d, err)
	}
	_, err = ask("a", byDigest(m.Digest))
	wantError(t, "a deleted digest", err, serving.NotFound, "prompt.parts[0].image.digest")
	if u := store.Usage(); u.Bytes != 0 {
		t.Errorf("requests left %+v in use", u)
	}
}

// A request that fails after it took an upload into use lets go of it.
func TestUploadIsReleased(t *testing.T) {
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s, e := tinyOptions(t, serving.ServiceOptions{Media: store})
	data := pngFile(t, 8)
	m, err := upload(s, serving.UploadHeader{}, data)
	if err != nil {
		t.Fatal(err)
	}
	good := byDigest(m.Digest)
	_ = s.Generate(t.Context(), prompt(good, image("broken")), &kept{})
	_ = s.Generate(t.Context(), prompt(good, byDigest(digestOf(nil))), &kept{})
	_ = s.Generate(t.Context(), prompt(good), &kept{fail: "start"})
	idle(t, e)
	for {
		ticket, err := e.Acquire()
		if err != nil {
			break
		}
		defer ticket.Release()
	}
	wantError(t, "with every slot taken", s.Generate(t.Context(), prompt(good), &kept{}), serving.Exhausted, "")
	if _, err := s.DeleteMedia(t.Context(), "", m.Digest); err != nil || store.Usage().Bytes != 0 {
		t.Errorf("%v; %+v is still in use", err, store.Usage())
	}
}

// Each mistake names its field, and leaves nothing.
func TestUploadErrors(t *testing.T) {
	store := media.New(media.Options{Bytes: 1 << 20, TenantBytes: 100_000, TTL: time.Hour})
	defer store.Close()
	s, _ := tinyOptions(t, serving.ServiceOptions{Media: store})
	data := pngFile(t, 32)
	n := uint64(len(data))
	size := func(n uint64) *uint64 { return &n }
	heic := append([]byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"), make([]byte, 1000)...)
	big := slices.Concat(data, make([]byte, 200_000))
	for name, c := range map[string]struct {
		header serving.UploadHeader
		data   []byte
		field  string
	}{
		"a size of nothing":   {serving.UploadHeader{Size: size(0)}, data, "header.size"},
		"a size beyond all":   {serving.UploadHeader{Size: size(1 << 63)}, data, "header.size"},
		"a size beyond share": {serving.UploadHeader{Size: size(100_000)}, data, "header.size"},
		"fewer bytes":         {serving.UploadHeader{Size: size(n + 1)}, data, "header.size"},
		"more bytes":          {serving.UploadHeader{Size: size(n - 1)}, data, "chunk"},
		"bytes beyond share":  {serving.UploadHeader{}, big, "chunk"},
		"no bytes":            {serving.UploadHeader{}, nil, "chunk"},
		"another digest":      {serving.UploadHeader{Digest: digestOf(nil)}, data, "header.digest"},
		"no digest":           {serving.UploadHeader{Digest: "sha256:1"}, data, "header.digest"},
		"no tenant's name":    {serving.UploadHeader{Tenant: "a b"}, data, "header.tenant"},
		"no request's id":     {serving.UploadHeader{ID: "a b"}, data, "header.request_id"},
		"another type":        {serving.UploadHeader{Type: "image/jpeg"}, data, "header.media_type"},
		"no type":             {serving.UploadHeader{Type: "/"}, data, "header.media_type"},
		"no image":            {serving.UploadHeader{}, []byte("no image"), "chunk"},
		"HEIC":                {serving.UploadHeader{Size: size(1000)}, heic[:100], "chunk"},
		"a broken header":     {serving.UploadHeader{}, data[:20], "chunk"},
	} {
		_, err := upload(s, c.header, c.data)
		wantError(t, name, err, serving.Invalid, c.field)
		if name == "HEIC" && (err == nil || !strings.Contains(err.Error(), "HEIC")) {
			t.Errorf("HEIC is not named: %v", err)
		}
		if u := store.Usage(); u.Bytes != 0 || u.Files != 0 {
			t.Errorf("%s: %+v is left", name, u)
		}
	}
	m := tinyModel(t)
	m.Prompter.Limits = vision.DefaultLimits()
	m.Prompter.Limits.MaxPixels = 32*32 - 1
	small, _ := run(t, m, decodertest.NewHash(1, contextLen, vocab), serving.ServiceOptions{Media: store})
	_, err := upload(small, serving.UploadHeader{}, data)
	wantError(t, "more pixels than the model's limits allow", err, serving.Invalid, "chunk")
	_, err = s.HasMedia(t.Context(), "a", []string{digestOf(nil), "x"})
	wantError(t, "a false digest", err, serving.Invalid, "digests[1]")

	off, _ := tiny(t)
	_, err = off.UploadMedia(t.Context(), serving.UploadHeader{})
	wantError(t, "an upload where they are off", err, serving.FailedPrecondition, "")
	_, err = off.HasMedia(t.Context(), "", nil)
	wantError(t, "a question where they are off", err, serving.FailedPrecondition, "")
	for name, c := range map[string]struct {
		s     *serving.Service
		image serving.Image
		field string
	}{
		"a digest where uploads are off": {off, serving.Image{Digest: digestOf(nil)}, "prompt.parts[0].image.digest"},
		"a false digest":                 {s, serving.Image{Digest: "sha256:"}, "prompt.parts[0].image.digest"},
		"bytes and a digest":             {s, serving.Image{Data: data, Digest: digestOf(data)}, "prompt.parts[0].image"},
		"nothing":                        {s, serving.Image{}, "prompt.parts[0].image.data"},
	} {
		err := c.s.Generate(t.Context(), prompt(serving.Part{Image: &c.image}), &kept{})
		wantError(t, name, err, serving.Invalid, c.field)
	}
}

// Each upload leaves one line in the log, whatever becomes of it, with what its caller may choose only where it is a
// name.
func TestUploadsAreLogged(t *testing.T) {
	var log bytes.Buffer
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "total_ms" {
			return slog.Attr{}
		}
		return a
	}
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s, _ := tinyOptions(t, serving.ServiceOptions{
		Media: store, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: drop})),
	})
	data := pngFile(t, 8)
	line := func(want string) {
		t.Helper()
		if got := strings.TrimSuffix(log.String(), "\n"); got != want && !regexp.MustCompile("^"+want+"$").MatchString(got) {
			t.Errorf("the log has\n%s\nwant\n%s", got, want)
		}
		log.Reset()
	}
	_, _ = upload(s, serving.UploadHeader{ID: "mine", Tenant: "acme"}, data)
	line(fmt.Sprintf("level=INFO msg=upload id=mine code=OK tenant=acme bytes=%d", len(data)))
	_, _ = upload(s, serving.UploadHeader{ID: "mine", Digest: digestOf(data), Tenant: "acme"}, data)
	line("level=INFO msg=upload id=mine code=OK tenant=acme")
	_, _ = upload(s, serving.UploadHeader{}, data)
	line(fmt.Sprintf("level=INFO msg=upload id=[A-Z2-7]{26} code=OK bytes=%d", len(data)))
	_, _ = upload(s, serving.UploadHeader{ID: "two words", Tenant: "a b"}, data)
	line("level=INFO msg=upload id=[A-Z2-7]{26} code=InvalidArgument")
	u, err := s.UploadMedia(t.Context(), serving.UploadHeader{ID: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Finish(t.Context(), errors.New("a fault")); serving.KindOf(err) != serving.Internal {
		t.Errorf("%v, want a fault of the server's", err)
	}
	line(`level=ERROR msg=upload id=mine code=Internal error="a fault" bytes=0`)
	asB := serving.WithCaller(t.Context(), serving.Caller{Tenant: "b"})
	if err := s.RefuseUpload(asB, errSink); !errors.Is(err, errSink) {
		t.Errorf("%v, want the edge's", err)
	}
	line("level=INFO msg=upload id=[A-Z2-7]{26} code=Unavailable tenant=b")
}

// Sizes of uploads at their borders, and the number of bytes after which a format is known.
func TestUploadsAtTheirBorders(t *testing.T) {
	store := media.New(media.Options{Bytes: 8 << 20, TTL: time.Hour})
	defer store.Close()
	s, _ := tinyOptions(t, serving.ServiceOptions{Media: store})
	begin := func(h serving.UploadHeader) *serving.Upload {
		t.Helper()
		u, err := s.UploadMedia(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(u.Abort)
		return u
	}
	heic := append([]byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"), make([]byte, 100)...)
	u := begin(serving.UploadHeader{})
	if err := u.Write(heic[:63]); err != nil {
		t.Errorf("63 bytes: %v", err)
	}
	wantError(t, "the 64th byte of HEIC", u.Write(heic[63:64]), serving.Invalid, "chunk")
	if err := u.Write(heic[64:70]); err != nil {
		t.Errorf("what is known is looked at again: %v", err)
	}
	png := append(pngFile(t, 8), make([]byte, serving.MaxChunk+1)...)
	if err := begin(serving.UploadHeader{}).Write(png[:serving.MaxChunk]); err != nil {
		t.Errorf("the largest chunk: %v", err)
	}
	wantError(t, "a larger chunk", begin(serving.UploadHeader{}).Write(png[:serving.MaxChunk+1]), serving.Invalid, "chunk")
	most := uint64(min(store.Largest(), imaging.DefaultLimits().MaxBytes))
	for _, n := range []uint64{1, most} {
		begin(serving.UploadHeader{Size: &n}).Abort()
	}
	more := most + 1
	_, err := s.UploadMedia(t.Context(), serving.UploadHeader{Size: &more})
	wantError(t, "a byte more than the largest", err, serving.Invalid, "header.size")
	for n, size := range map[int]uint64{10: 10, 11: 10} {
		err := begin(serving.UploadHeader{Size: &size}).Write(png[:n])
		if n == 10 && err != nil {
			t.Errorf("all bytes: %v", err)
		} else if n == 11 {
			wantError(t, "a byte more than was said", err, serving.Invalid, "chunk")
		}
	}
}
