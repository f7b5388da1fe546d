package serving

import (
	"slices"
	"testing"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder/decodertest"
	"github.com/mmserve/mmserve/internal/auth"
)

// modelsNamed is a service of models over engines with one slot each and no place to wait.
func modelsNamed(names ...string) *Service {
	r := NewRegistry(RegistryOptions{Config: Config{Logger: quietly()}})
	for _, name := range names {
		e := batching.New(decodertest.NewHash(1, 8, 8), batching.Options{})
		if _, err := r.add(Run(Model{Name: name}, e)); err != nil {
			panic(err)
		}
	}
	return NewService(r, ServiceOptions{Logger: quietly()})
}

// limited is who may ask some models alone.
func limited(role auth.Role, models ...string) *auth.Identity {
	return &auth.Identity{ID: "key", Role: role, Models: models}
}

// A caller's default is the first model that it may ask; what it names is taken at its word, and permit judges it.
func TestDefaultModelOfCallers(t *testing.T) {
	s := modelsNamed("a", "b", "c")
	for _, c := range []struct {
		id          *auth.Identity
		named, want string
	}{
		{nil, "", "a"}, {nil, "b", "b"}, {nil, "none", "a"},
		{&auth.Identity{}, "", "a"}, {&auth.Identity{}, "c", "c"},
		{limited(auth.User, "c", "b"), "", "b"}, {limited(auth.User, "c"), "", "c"}, {limited(auth.User, "c"), "b", "b"},
		{limited(auth.User, "none"), "", "a"}, {limited(auth.User, []string{}...), "", "a"},
	} {
		d, release := s.models.takeOf(c.id, c.named)
		if d.Model.Name != c.want {
			t.Errorf("%+v gets %q for %q, want %q", c.id, d.Model.Name, c.named, c.want)
		}
		release()
	}
	for _, c := range []struct {
		id   *auth.Identity
		want []string
	}{
		{nil, []string{"a", "b", "c"}}, {&auth.Identity{}, []string{"a", "b", "c"}},
		{limited(auth.User, "c", "a"), []string{"a", "c"}}, {limited(auth.User, "none"), nil},
	} {
		var each []string
		s.models.EachOf(WithCaller(t.Context(), Caller{Identity: c.id}), func(d *Deployment) {
			each = append(each, d.Model.Name)
		})
		if names := s.models.namesOf(c.id); !slices.Equal(names, c.want) || !slices.Equal(each, c.want) {
			t.Errorf("%+v sees %v and %v, want %v", c.id, names, each, c.want)
		}
	}
}

// Before a request has come its caller is refused if it may ask no model that is served.
func TestPermits(t *testing.T) {
	s, none := modelsNamed("a", "b"), modelsNamed()
	for _, c := range []struct {
		s    *Service
		id   *auth.Identity
		want Kind
	}{
		{s, nil, OK}, {s, &auth.Identity{}, OK}, {s, limited(auth.User, "b"), OK}, {s, limited(auth.User, "a"), OK},
		{s, limited(auth.User, "c"), PermissionDenied}, {s, limited(auth.User, []string{}...), PermissionDenied},
		{none, limited(auth.User, "c"), OK}, {none, nil, OK},
	} {
		if err := c.s.permitAny(c.id); KindOf(err) != c.want {
			t.Errorf("%+v: %v, want %v", c.id, err, c.want)
		}
	}
	if err := none.models.NoModel("model"); KindOf(err) != Unavailable {
		t.Errorf("where there are no models: %v", err)
	}
	if err := s.models.NoModel("model"); KindOf(err) != PermissionDenied {
		t.Errorf("where there are models for others: %v", err)
	}
	for _, c := range []struct {
		id    *auth.Identity
		model string
		want  Kind
	}{
		{nil, "a", OK}, {limited(auth.User, "a"), "a", OK}, {limited(auth.User, "a"), "b", PermissionDenied},
		{&auth.Identity{Role: auth.User - 1}, "a", PermissionDenied}, {&auth.Identity{Role: auth.User + 1}, "a", OK},
	} {
		if err := permit(WithCaller(t.Context(), Caller{Identity: c.id}), c.model); KindOf(err) != c.want {
			t.Errorf("%+v and %s: %v, want %v", c.id, c.model, err, c.want)
		}
	}
}

// A server is full when all its models are, and never without any.
func TestFull(t *testing.T) {
	s := modelsNamed("a", "b")
	if s.full() || modelsNamed().full() {
		t.Error("full without a request")
	}
	var tickets []*batching.Ticket
	s.models.Each(func(d *Deployment) {
		list, err := d.Engine.AcquireFor(batching.Claim{Priority: batching.PriorityInteractive, Answers: d.Engine.Places()})
		if err != nil {
			t.Fatal(err)
		}
		tickets = append(tickets, list...)
	})
	if !s.full() {
		t.Error("not full with every place of both taken")
	}
	tickets[0].Release()
	if s.full() {
		t.Error("full with a place in one of two")
	}
	if _, _, err := s.Admit(t.Context()); err != nil {
		t.Error(err)
	}
}
