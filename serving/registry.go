package serving

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/internal/ort"
)

// What Load and Unload refuse.
var (
	// ErrName says that a name cannot be a model's.
	ErrName = errors.New("want 1 to 128 printable ASCII characters without spaces, slashes and equals signs")
	// ErrMemory says that a model takes more memory than is left.
	ErrMemory = errors.New("the memory does not suffice")
	// ErrUnknown says that no model has the name.
	ErrUnknown = errors.New("no such model")
	// ErrLast says that the only model stays: there is always a default.
	ErrLast = errors.New("it is the only model: load another one first, or swap it")
	// ErrClosed says that the registry takes no more models.
	ErrClosed = errors.New("the server is shutting down")
)

// DefaultDrainTime is how long the requests of a model that is taken out may go on.
const DefaultDrainTime = 10 * time.Minute

// RegistryOptions tune a Registry. The zero value works.
type RegistryOptions struct {
	// Config is what models are opened with; Name and Dir are each model's own.
	Config Config
	// Memory is what all models together may take of the process's memory, and of a device's. 0: what the process may
	// use, and Config.DeviceMemory. A model that is alone is not measured against the first.
	Memory Memory
	// DrainTime is how long the requests of a model that is taken out may go on; DefaultDrainTime if 0.
	DrainTime time.Duration
}

// Registry holds the deployments of a process by their names. A request takes one and gives it back at its end; what
// is taken out goes on until then. Its methods may be called from any goroutine.
type Registry struct {
	config    Config
	budget    Memory
	drainTime time.Duration
	opening   chan struct{} // has room for the one Load that opens a model
	lost      chan error    // has room for the first loss

	mu      sync.Mutex
	list    []*place // the first is the default
	held    Memory   // of all that are open, taken out or not
	closed  bool
	closing sync.WaitGroup // deployments that are open
}

// place is a deployment and who uses it. Its fields are guarded by Registry.mu.
type place struct {
	*Deployment
	users   int
	retired bool
	idle    chan struct{} // closed when it is retired and has no users
	gone    chan struct{} // closed when its memory was given back
	err     error         // of its end, once gone
}

// NewRegistry returns a registry without models.
func NewRegistry(o RegistryOptions) *Registry {
	r := &Registry{
		config: o.Config.withDefaults(), budget: o.Memory, drainTime: o.DrainTime,
		opening: make(chan struct{}, 1), lost: make(chan error, 1),
	}
	if r.drainTime == 0 {
		r.drainTime = DefaultDrainTime
	}
	if r.budget.Host == 0 {
		r.budget.Host = int64(host.ReadMemory().Limit)
	}
	if r.budget.Device == 0 {
		r.budget.Device = deviceBudget(r.config)
	}
	return r
}

// Single returns a registry of one deployment, which takes no others.
func Single(d *Deployment) *Registry {
	r := NewRegistry(RegistryOptions{})
	r.add(d)
	return r
}

// Load opens the model in dir, empty for the embedded one, and has requests find it under name, empty for the
// folder's. A model that had the name is swapped: it answers until the new one does, then finishes what it has begun,
// for at most the drain time, and is closed. An error changes nothing. One model is opened at a time; others wait
// until ctx ends.
func (r *Registry) Load(ctx context.Context, name, dir string) (*Deployment, error) {
	if name != "" && !ValidModelName(name) {
		return nil, fmt.Errorf("name: %w", ErrName)
	}
	select {
	case r.opening <- struct{}{}:
		defer func() { <-r.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if len(r.Names()) > 0 { // models come and go
		ort.ReturnFreed()
	}
	c := r.config
	var err error
	if c.disk == nil {
		if c.disk, err = c.openDisk(); err != nil {
			return nil, err
		}
		r.config.disk = c.disk
	}
	if !r.drafts(name) {
		c.DraftDir = ""
	}
	c.Name, c.Dir, c.reserve, c.unreserve = name, dir, r.reserve, r.release
	c.deviceHeld = func() int64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.held.Device
	}
	d, err := Open(ctx, c)
	if err != nil {
		return nil, err
	}
	old, err := r.add(d)
	if err != nil {
		return nil, errors.Join(err, r.giveUp(d))
	}
	if old != nil {
		r.config.Logger.Info("model swapped", "model", d.Model.Name, "digest", d.Model.Digest)
	}
	return d, nil
}

// drafts says whether a model that is loaded under a name gets the draft model: the first does, and what it is
// swapped for.
func (r *Registry) drafts(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index(name)
	return len(r.list) == 0 || i >= 0 && r.list[i].draft.model != nil
}

// giveUp closes a deployment that no request has seen.
func (r *Registry) giveUp(d *Deployment) error {
	err := d.free()
	r.release(d.Memory)
	return err
}

// reserve counts what a model will take, or refuses.
func (r *Registry) reserve(m Memory) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	if r.held.Host > 0 {
		if left := r.budget.Host - r.held.Host; m.Host > left {
			return fmt.Errorf("%w: it takes %s with its KV cache (--kv-cache-bytes), %s of %s are left beside the models that are open",
				ErrMemory, host.FormatBytes(m.Host), host.FormatBytes(max(0, left)), host.FormatBytes(r.budget.Host))
		}
		if left := int64(host.ReadMemory().Available); left > 0 && m.weights > left {
			return fmt.Errorf("%w: its weights take %s, the machine has %s left", ErrMemory, host.FormatBytes(m.weights), host.FormatBytes(left))
		}
	}
	r.held.Host += m.Host
	r.held.Device += m.Device
	return nil
}

// release stops counting what a model took, and returns it to the system.
func (r *Registry) release(m Memory) {
	r.mu.Lock()
	r.held.Host -= m.Host
	r.held.Device -= m.Device
	r.mu.Unlock()
	ort.ReleaseMemory()
}

// add has requests find d, which replaces the deployment of its name.
func (r *Registry) add(d *Deployment) (old *place, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	p := &place{Deployment: d, idle: make(chan struct{}), gone: make(chan struct{})}
	if i := r.index(d.Model.Name); i >= 0 {
		old, r.list[i] = r.list[i], p
		r.retire(old)
	} else {
		r.list = append(r.list, p)
	}
	r.closing.Add(1)
	if p.ended != nil {
		go r.watch(p)
	}
	return old, nil
}

// watch tells of a deployment that ends while requests still find it: its device is lost.
func (r *Registry) watch(p *place) {
	<-p.Ended()
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.retired {
		return
	}
	select {
	case r.lost <- p.Err():
	default:
	}
}

// Lost gives the error of a deployment that has ended by itself: its device is lost. Only the first is told.
func (r *Registry) Lost() <-chan error { return r.lost }

// index finds a name; -1 if there is none. The caller holds mu.
func (r *Registry) index(name string) int {
	return slices.IndexFunc(r.list, func(p *place) bool { return p.Model.Name == name })
}

// retire has p closed when it has no users. The caller holds mu, and has taken it out of the list.
func (r *Registry) retire(p *place) {
	p.retired = true
	if p.users == 0 {
		close(p.idle)
	}
	go r.end(p)
}

// end waits for p's users, and closes it.
func (r *Registry) end(p *place) {
	defer r.closing.Done()
	late := time.NewTimer(r.drainTime)
	defer late.Stop()
	select {
	case <-p.idle:
	case <-late.C:
		p.cut()
	case <-p.Cutting().Done():
	}
	<-p.idle
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	p.err = p.Close(ctx)
	r.release(p.Memory)
	if p.err != nil {
		r.config.Logger.Warn("a model was closed", "model", p.Model.Name, "error", p.err)
	} else {
		r.config.Logger.Info("model closed", "model", p.Model.Name, "digest", p.Model.Digest)
	}
	close(p.gone)
}

// Take gives the deployment that a request names, or the default where it names none, or one that is not there: found
// is false then. It stays open until release is called, which is once. d is nil where there are no models.
func (r *Registry) Take(name string) (d *Deployment, found bool, release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := 0
	if name != "" {
		i = r.index(name)
	}
	if found = i >= 0; !found {
		i = 0
	}
	if len(r.list) == 0 {
		return nil, false, func() {}
	}
	p := r.list[i]
	p.users++
	return p.Deployment, found, func() { r.leave(p) }
}

func (r *Registry) leave(p *place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.users--
	if p.retired && p.users == 0 {
		close(p.idle)
	}
}

// Each calls do for every model, the default first. They stay open meanwhile; do must not call the registry.
func (r *Registry) Each(do func(*Deployment)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.list {
		do(p.Deployment)
	}
}

// Names are those of the models, the default first.
func (r *Registry) Names() (names []string) {
	r.Each(func(d *Deployment) { names = append(names, d.Model.Name) })
	return names
}

// Unload takes a model out and waits until it has finished what it has begun and its memory was given back, or until
// ctx ends: it goes on by itself then. The only model stays.
func (r *Registry) Unload(ctx context.Context, name string) error {
	p, err := r.takeOut(name)
	if err != nil {
		return err
	}
	select {
	case <-p.gone:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Registry) takeOut(name string) (*place, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.index(name)
	switch {
	case i < 0:
		return nil, fmt.Errorf("%w; there are %s", ErrUnknown, strings.Join(r.names(), ", "))
	case len(r.list) == 1:
		return nil, ErrLast
	}
	p := r.list[i]
	r.list = slices.Delete(r.list, i, i+1)
	r.retire(p)
	return p, nil
}

// names is Names for a caller that holds mu.
func (r *Registry) names() (names []string) {
	for _, p := range r.list {
		names = append(names, p.Model.Name)
	}
	return names
}

// Drain has every engine take no more requests, and waits until those it has have ended, or ctx has.
func (r *Registry) Drain(ctx context.Context) error {
	r.mu.Lock()
	list := slices.Clone(r.list)
	r.mu.Unlock()
	var errs []error
	for _, p := range list {
		errs = append(errs, p.Engine.Drain(ctx))
	}
	return errors.Join(errs...)
}

// Close takes all models out and waits until they are closed. Requests that are still open when ctx ends are cut.
func (r *Registry) Close(ctx context.Context) error {
	r.mu.Lock()
	list := r.list
	r.list, r.closed = nil, true
	for _, p := range list {
		r.retire(p)
		defer context.AfterFunc(ctx, p.cut)()
	}
	r.mu.Unlock()
	r.closing.Wait()
	var errs []error
	for _, p := range list {
		errs = append(errs, p.err)
	}
	return errors.Join(append(errs, r.closeDisk(ctx))...)
}

// closeDisk lets go of the folder of patch embeddings, once no model is being opened.
func (r *Registry) closeDisk(ctx context.Context) error {
	select {
	case r.opening <- struct{}{}:
		defer func() { <-r.opening }()
	case <-ctx.Done(): // it goes with the process
		return nil
	}
	if r.config.disk == nil {
		return nil
	}
	disk := r.config.disk
	r.config.disk, r.config.EncoderCacheDir = nil, ""
	return disk.Close()
}

// ValidModelName says whether requests, metrics and paths can carry a name.
func ValidModelName(name string) bool {
	if len(name) < 1 || len(name) > 128 || strings.Trim(name, ".") == "" {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == '/' || c == '\\' || c == '=' {
			return false
		}
	}
	return true
}
