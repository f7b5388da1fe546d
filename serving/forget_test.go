package serving_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/mmserve/mmserve/internal/media"
	"github.com/mmserve/mmserve/model/modeltest"
	"github.com/mmserve/mmserve/serving"
)

// taken are the patch embeddings that were taken out of a deployment's cache.
type taken struct {
	mu   sync.Mutex
	list [][]float32
}

// watch has d's tell what is taken out.
func (k *taken) watch(d *serving.Deployment) {
	forget := d.Model.Forget
	d.Model.Forget = func(tenant string, file [32]byte) [][]float32 {
		gone := forget(tenant, file)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.list = append(k.list, gone...)
		return gone
	}
}

// values counts them, and those that are not zero.
func (k *taken) values() (all, left int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, p := range k.list {
		for _, v := range p {
			all++
			if v != 0 {
				left++
			}
		}
	}
	return all, left
}

// startSink does something at the start of an answer.
type startSink struct {
	kept
	do func()
}

func (s *startSink) Start(in *serving.Start) error {
	s.do()
	return s.kept.Start(in)
}

// What models keep of a deleted image goes: its patch embeddings are zeros, and no prefix with it is cached. Other
// tenants', and other images, stay.
func TestDeleteMedia(t *testing.T) {
	modeltest.StartLibrary(t)
	d := openDeployment(t, serving.Config{Threads: 1, Slots: 6, EncoderCacheBytes: 1 << 20})
	var gone taken
	gone.watch(d)
	store := media.New(media.Options{Bytes: 1 << 20, TTL: time.Hour})
	defer store.Close()
	s := service(d, serving.ServiceOptions{Media: store})
	var files []string
	for _, name := range []string{"sample0.png", "sample1.png"} {
		data, err := os.ReadFile(filepath.Join("..", "model", "tiny-vlm", "samples", name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, string(data))
	}
	ask := func(tenant string, part serving.Part) serving.Usage {
		t.Helper()
		in, k := prompt(part, serving.Part{Text: "what is it?"}), kept{}
		in.Tenant = tenant
		if err := s.Generate(t.Context(), in, &k); err != nil {
			t.Fatal(err)
		}
		return k.finish.Usage
	}
	cached := func(when, tenant string, part serving.Part, want bool) {
		t.Helper()
		u := ask(tenant, part)
		if (u.CachedImage == u.Image) != want || (u.Cached > u.Image) != want || u.Image == 0 {
			t.Errorf("%s, tenant %s: %+v; want it cached: %v", when, tenant, u, want)
		}
	}
	m, err := upload(s, serving.UploadHeader{Tenant: "a"}, []byte(files[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true} {
		cached("at first", "a", byDigest(m.Digest), want)
		cached("at first", "b", image(files[0]), want)
		cached("at first", "a", image(files[1]), want)
	}

	out, err := s.DeleteMedia(t.Context(), "a", m.Digest)
	if err != nil || !out.Existed || out.InUse {
		t.Fatalf("%+v, %v", out, err)
	}
	all, left := gone.values()
	if all == 0 || left > 0 {
		t.Errorf("%d of %d values of the patch embeddings are left", left, all)
	}
	cached("deleted", "b", image(files[0]), true)
	cached("deleted", "a", image(files[1]), true)
	cached("deleted", "a", image(files[0]), false)

	// While a request has it.
	in := prompt(image(files[0]), serving.Part{Text: "what is it?"})
	in.Tenant = "a"
	k := startSink{do: func() {
		out, err := s.DeleteMedia(t.Context(), "a", m.Digest)
		if err != nil || out.Existed || !out.InUse {
			t.Errorf("in use: %+v, %v", out, err)
		}
		if n, left := gone.values(); n == all || left == 0 {
			t.Errorf("in use: %d of %d values are left", left, n)
		}
	}}
	if err := s.Generate(t.Context(), in, &k); err != nil || k.text == "" {
		t.Errorf("the answer is %q, %v", k.text, err)
	}
	s.Overwritten()
	if out, err := s.DeleteMedia(t.Context(), "a", m.Digest); err != nil || out.Existed || out.InUse {
		t.Errorf("again: %+v, %v", out, err)
	}
	if _, left = gone.values(); left > 0 {
		t.Errorf("%d values are left after the last request", left)
	}
	cached("after the last request", "a", image(files[0]), false)
	cached("after the last request", "b", image(files[0]), true)
}

// Deleting counts against the rate of requests, names its fields, and needs no store.
func TestDeleteMediaRefused(t *testing.T) {
	s, _ := tiny(t)
	_, err := s.DeleteMedia(t.Context(), "a b", digestOf(nil))
	wantError(t, "a tenant that is none", err, serving.Invalid, "tenant")
	_, err = s.DeleteMedia(t.Context(), "a", "sha256:0")
	wantError(t, "a digest that is none", err, serving.Invalid, "digest")
	if out, err := s.DeleteMedia(t.Context(), "a", digestOf(nil)); err != nil || out != (serving.Deleted{}) {
		t.Errorf("without a store: %+v, %v", out, err)
	}
	rate := 0.001
	q, err := serving.NewQuotas(serving.QuotaConfig{Default: serving.Quota{RequestsPerSecond: &rate}})
	if err != nil {
		t.Fatal(err)
	}
	s, _ = tinyOptions(t, serving.ServiceOptions{Quotas: q})
	_, err = s.DeleteMedia(t.Context(), "a", digestOf(nil))
	if err == nil {
		_, err = s.DeleteMedia(t.Context(), "a", digestOf(nil))
	}
	wantError(t, "a second one", err, serving.Exhausted, "")
}
