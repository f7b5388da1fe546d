package ort

import (
	"errors"
	"fmt"

	"github.com/mmserve/mmserve/internal/host"
	ort "github.com/yalue/onnxruntime_go"
)

// Options say how a session runs its graph.
type Options struct {
	// Provider is the execution provider's name; "" is "cpu".
	Provider string
	// ProviderOptions are the provider's own settings. An unknown key is an error.
	ProviderOptions map[string]string
	// Threads is the number of intra-op threads; 0 is one per processor that the process may use.
	Threads int
	// ExternalDir is the folder that external data locations are relative to.
	ExternalDir string
	// Background has the session's threads give way to those of other sessions. Its runs take turns.
	Background bool
}

// Session is a loaded graph. Run may be called by several goroutines at once on the CPU provider.
type Session struct {
	s          *ort.DynamicAdvancedSession
	background *background // nil but for Options.Background
}

// graph is what NewSession needs of a graph that was built in memory.
type graph interface {
	Bytes() []byte
	Inputs() []string
	Outputs() []string
}

// NewSession loads a graph.
func NewSession(g graph, o Options) (*Session, error) {
	return load(o, func(so *ort.SessionOptions) (*ort.DynamicAdvancedSession, error) {
		return ort.NewDynamicAdvancedSessionWithONNXData(g.Bytes(), g.Inputs(), g.Outputs(), so)
	})
}

func load(o Options, create func(*ort.SessionOptions) (*ort.DynamicAdvancedSession, error)) (*Session, error) {
	p, err := lookup(o.Provider)
	if err != nil {
		return nil, err
	}
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
	entries := map[string]string{"session.intra_op.allow_spinning": "0"}
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
	if err := p.configure(so, threads, o.ProviderOptions); err != nil {
		return nil, fmt.Errorf("execution provider %s: %w", p.name(), err)
	}
	s := &Session{}
	if o.Background {
		s.background = newBackground()
	}
	s.background.do(func() { s.s, err = create(so) })
	if err != nil {
		s.background.close()
		return nil, err
	}
	return s, nil
}

// Run executes the graph: one tensor for each input and output, in the order in which the graph, or who opened its file,
// named them. What the graph gives for an output that is the zero Tensor is dropped.
func (s *Session) Run(in, out []Tensor) error {
	values := make([]ort.Value, len(in)+len(out))
	for i, t := range in {
		values[i] = t.v
	}
	for i, t := range out {
		values[len(in)+i] = t.v
	}
	var err error
	s.background.do(func() { err = s.s.Run(values[:len(in)], values[len(in):]) })
	for i, t := range out {
		if v := values[len(in)+i]; t.v == nil && v != nil {
			err = errors.Join(err, v.Destroy())
		}
	}
	return err
}

// Close frees the session. No Run may be under way.
func (s *Session) Close() error {
	err := s.s.Destroy()
	s.background.close()
	return err
}
