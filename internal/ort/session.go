package ort

import (
	"context"
	"errors"
	"reflect"
	"sync"

	"github.com/mmserve/mmserve/internal/host"
	ort "github.com/yalue/onnxruntime_go"
)

// Options say how a session runs its graph.
type Options struct {
	Provider Provider
	// AllowCPUFallback opens a session though the provider leaves work to the processor; see Placement.
	AllowCPUFallback bool
	// Threads is the number of intra-op threads; 0 is one per processor that the process may use.
	Threads int
	// ExternalDir is the folder that external data locations are relative to.
	ExternalDir string
	// Background has the session's threads give way to those of other sessions. Its runs take turns.
	Background bool
	// Opened, unless nil, is told of each session that was opened.
	Opened func(Placement)
}

// Session is a loaded graph. Run may be called by several goroutines at once; a provider that cannot do that makes them
// wait.
type Session struct {
	s          *ort.DynamicAdvancedSession
	background *background // nil but for Options.Background
	turn       *sync.Mutex // held while the provider works; nil where it need not
	placement  Placement
	device     *Device        // nil where tensors lie in the process's memory
	allocator  *ort.Allocator // of the device's memory; made when it is first asked for
	tensors    map[*deviceValue]struct{}
	crosses    []byte // 1 for inputs, then outputs, that lie on the device for the graph; nil until the first run
}

// Graph is what a session needs of a graph that was built in memory.
type Graph interface {
	Title() string
	Bytes() []byte
	Inputs() []string
	Outputs() []string
	Reckons(node string) bool
}

// NewSession loads a graph.
func NewSession(g Graph, o Options) (*Session, error) {
	return newSession(g, g.Inputs(), g.Outputs(), o)
}

func newSession(g Graph, inputs, outputs []string, o Options) (*Session, error) {
	return load(o, source{g.Title(), g.Reckons}, func(so *ort.SessionOptions) (*ort.DynamicAdvancedSession, error) {
		return ort.NewDynamicAdvancedSessionWithONNXData(g.Bytes(), inputs, outputs, so)
	})
}

// source is where a graph comes from. reckons tells of its nodes by name whether they touch integers only; it is nil
// for a graph that somebody else wrote, which gets none of mmserve's own operators.
type source struct {
	name    string
	reckons func(string) bool
}

// create makes the binding's session with options.
type create func(*ort.SessionOptions) (*ort.DynamicAdvancedSession, error)

// load opens a session over a graph.
func load(o Options, from source, create create) (_ *Session, err error) {
	so, err := ort.NewSessionOptions()
	if err != nil {
		return nil, err
	}
	defer so.Destroy()
	threads := o.Threads
	if threads == 0 {
		threads, _ = host.Processors()
	}
	// Spinning doubles the CPU cost of two sessions in one process; mmserve's own operators have threads of their own.
	// On ARM64 with SME, KleidiAI's products of several rows differ in their bits from those of one, and keep buffers for
	// each thread that never shrink.
	entries := map[string]string{
		"session.intra_op.allow_spinning": "0", "session.record_ep_graph_assignment_info": "1", "mlas.disable_kleidiai": "1",
	}
	if o.ExternalDir != "" {
		entries["session.model_external_initializers_file_folder_path"] = o.ExternalDir
	}
	if err := so.SetIntraOpNumThreads(threads); err != nil {
		return nil, err
	}
	if err := so.SetInterOpNumThreads(1); err != nil {
		return nil, err
	}
	if err := so.SetGraphOptimizationLevel(ort.GraphOptimizationLevelEnableAll); err != nil {
		return nil, err
	}
	// A memory pattern is a second set of buffers beside those of a shape's first run, and there is one for every shape.
	if err := so.SetMemPattern(false); err != nil {
		return nil, err
	}
	for k, v := range entries {
		if err := so.AddSessionConfigEntry(k, v); err != nil {
			return nil, err
		}
	}
	session := &Session{turn: o.Provider.turn(), device: deviceOf(o.Provider)}
	defer session.take()()
	if err := o.Provider.configure(so, threads); err != nil {
		return nil, err
	}
	if from.reckons != nil && o.Provider.Kernels() {
		if err := configureOperators(so, threads); err != nil {
			return nil, err
		}
	}
	if o.Background {
		session.background = newBackground()
	}
	session.background.do(func() { session.s, err = create(so) })
	if err != nil {
		session.background.close()
		return nil, err
	}
	nodes, err := placement(session.s)
	if err == nil {
		session.placement, err = o.Provider.judge(nodes, from.reckons, o.AllowCPUFallback)
		session.placement.Graph = from.name
	}
	if err != nil {
		err = errors.Join(err, session.s.Destroy())
		session.background.close()
		return nil, err
	}
	if o.Opened != nil {
		o.Opened(session.placement)
	}
	return session, nil
}

// take waits until no other session of a provider that runs one at a time is at work. It returns what ends this turn.
func (s *Session) take() (done func()) {
	if s.turn == nil {
		return func() {}
	}
	s.turn.Lock()
	return s.turn.Unlock
}

// Placement says where the graph's nodes run.
func (s *Session) Placement() Placement { return s.placement }

// Run executes the graph: one tensor for each input and output, in the order in which the graph, or who opened its
// file, named them. What the graph gives for an output that is the zero Tensor is dropped, which float16 cannot be: it
// needs room.
func (s *Session) Run(in, out []Tensor) error { return s.run(nil, in, out) }

// RunContext is Run that ends between two nodes of the graph when ctx ends, with the context's cause. What the outputs
// then hold has no meaning.
func (s *Session) RunContext(ctx context.Context, in, out []Tensor) error {
	if ctx.Done() == nil {
		return s.Run(in, out)
	}
	o, err := ort.NewRunOptions()
	if err != nil {
		return err
	}
	defer o.Destroy()
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		_ = o.Terminate() // it fails without memory only: then the run goes on to its end
	})
	err = s.run(o, in, out)
	if !stop() {
		<-told // o is in use until then
		if err != nil {
			return context.Cause(ctx)
		}
	}
	return err
}

func (s *Session) run(o *ort.RunOptions, in, out []Tensor) error {
	values := make([]ort.Value, len(in)+len(out))
	for i, t := range in {
		values[i] = t.v
	}
	for i, t := range out {
		values[len(in)+i] = t.v
	}
	if err := s.admit(in, out); err != nil {
		return err
	}
	defer s.take()()
	var err error
	s.background.do(func() { err = s.s.RunWithOptions(values[:len(in)], values[len(in):], o) })
	for i, t := range out {
		// What the binding has no type for, float16 above all, it gives as a nil pointer, with an error.
		if v := values[len(in)+i]; t.v == nil && v != nil && !reflect.ValueOf(v).IsNil() {
			err = errors.Join(err, v.Destroy())
		}
	}
	return err
}

// Close frees the session and what it reserved on its device. No Run may be under way. Doing so again does nothing.
func (s *Session) Close() error {
	defer s.take()()
	if s.s == nil {
		return nil
	}
	err := errors.Join(s.release(), s.s.Destroy())
	s.background.close()
	s.s = nil
	return err
}
