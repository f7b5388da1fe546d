package ort

import (
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/mmserve/mmserve/internal/kernels"
	"github.com/mmserve/mmserve/internal/onnx"
	ort "github.com/yalue/onnxruntime_go"
)

// Provider is an execution provider with its settings, which are checked. The zero value is cpu without any.
type Provider struct {
	kind    *kind // nil is cpu
	options map[string]string
}

// Capabilities are what a provider's sessions can do.
type Capabilities struct {
	// FP16 says that graphs in float16 run as such.
	FP16 bool
	// Integers says that quantised linear layers run, in mmserve's own operators or in ONNX Runtime's.
	Integers bool
	// GraphCapture says that a run of fixed shapes and addresses can be recorded and played again.
	GraphCapture bool
	// DeviceTensors says that sessions take and give tensors in the provider's memory.
	DeviceTensors bool
	// OneRunAtATime says that no two runs, of whatever sessions, and no copy may overlap on one device.
	OneRunAtATime bool
}

// kind is one way to run graphs. Its file registers it in init.
type kind struct {
	// name is what users call it, ep what ONNX Runtime calls it where it says which nodes it runs.
	name, ep string
	// memory is the name of its device's memory, "" for the processor's.
	memory string
	can    Capabilities
	// library is the stem of a shared library that must lie beside ONNX Runtime's, "" for none.
	library string
	// needs says what else must be there, for whoever has to install it.
	needs string
	// auto is its place among those that "auto" tries, the highest first; 0 is never. worth, unless nil, says why it is
	// not worth a try on this machine.
	auto  int
	worth func() error
	// options may be set; defaults are set unless the user says otherwise.
	options  map[string]option
	defaults map[string]string
	// configure adds the provider to a session's options. threads is what the session was given.
	configure func(so *ort.SessionOptions, threads int, options map[string]string) error

	oneRun sync.Mutex // see Capabilities.OneRunAtATime
}

var kinds = map[string]*kind{}

func register(k *kind) { kinds[k.name] = k }

// Providers lists the execution providers that this build knows, sorted. That one is known does not mean that it
// works here: see Probe.
func Providers() []string { return slices.Sorted(maps.Keys(kinds)) }

// ParseProvider reads NAME or NAME:key=value,key=value. A name, a key or a value that is not allowed is an error that
// says what is.
func ParseProvider(text string) (Provider, error) {
	name, settings, _ := strings.Cut(text, ":")
	k, ok := kinds[name]
	if !ok {
		return Provider{}, fmt.Errorf("unknown execution provider %q; known are %s", name, strings.Join(Providers(), ", "))
	}
	p := k.plain()
	if settings == "" {
		return p, nil
	}
	if p.options == nil {
		p.options = map[string]string{}
	}
	for pair := range strings.SplitSeq(settings, ",") {
		key, value, ok := strings.Cut(pair, "=")
		o, known := k.options[key]
		switch {
		case !known && len(k.options) == 0:
			return Provider{}, fmt.Errorf("execution provider %s: unknown option %q; it takes none", name, key)
		case !known:
			all := strings.Join(slices.Sorted(maps.Keys(k.options)), ", ")
			return Provider{}, fmt.Errorf("execution provider %s: unknown option %q; it takes %s", name, key, all)
		case !ok:
			return Provider{}, fmt.Errorf("execution provider %s: option %q has no value; want %s=%s", name, key, key, o.allowed)
		case !o.ok(value):
			return Provider{}, fmt.Errorf("execution provider %s: option %s is %q; want %s", name, key, value, o.allowed)
		}
		p.options[key] = value
	}
	return p, nil
}

func (p Provider) is() *kind {
	if p.kind == nil {
		return kinds["cpu"]
	}
	return p.kind
}

// Name is what users call the provider.
func (p Provider) Name() string { return p.is().name }

// Memory is the name of its device's memory, "" where tensors lie in the processor's.
func (p Provider) Memory() string { return p.is().memory }

// Can says what its sessions can do.
func (p Provider) Can() Capabilities { return p.is().can }

// Kernels says whether graphs for the provider may use the operators of domain "mmserve".
func (p Provider) Kernels() bool { return p.is().name == "cpu" && kernels.Available() }

// String is the provider as ParseProvider reads it, with all that is set.
func (p Provider) String() string {
	text := p.Name()
	sep := ":"
	for _, k := range slices.Sorted(maps.Keys(p.options)) {
		text += sep + k + "=" + p.options[k]
		sep = ","
	}
	return text
}

// turn is the lock that the provider's sessions run under, nil where they may overlap.
func (p Provider) turn() *sync.Mutex {
	if !p.Can().OneRunAtATime {
		return nil
	}
	return &p.is().oneRun
}

// configure adds the provider to a session's options.
func (p Provider) configure(so *ort.SessionOptions, threads int) error {
	k := p.is()
	if err := k.present(); err != nil {
		return fmt.Errorf("execution provider %s: %w", k.name, err)
	}
	if err := k.configure(so, threads, p.options); err != nil {
		return fmt.Errorf("execution provider %s: %w%s", k.name, err, k.hint())
	}
	return nil
}

// present says whether the provider's library is where ONNX Runtime looks for it. Asked without it, ONNX Runtime says
// less and writes it on the terminal.
func (k *kind) present() error {
	_, library := Loaded()
	if k.library == "" || library == "" {
		return nil
	}
	name := "lib" + k.library + ".so"
	switch runtime.GOOS {
	case "darwin":
		name = "lib" + k.library + ".dylib"
	case "windows":
		name = k.library + ".dll"
	}
	if beside, err := filepath.EvalSymlinks(library); err == nil && isFile(filepath.Join(filepath.Dir(beside), name)) {
		return nil
	}
	if file := filepath.Join(filepath.Dir(library), name); !isFile(file) {
		return fmt.Errorf("failed to load %s: it is not there%s", file, k.hint())
	}
	return nil
}

func (k *kind) hint() string {
	if k.needs == "" {
		return ""
	}
	return " (it needs " + k.needs + ")"
}

// Choose gives the best provider that works here, and says what became of the better ones.
func Choose() (p Provider, why string) {
	ranked := slices.SortedFunc(maps.Values(kinds), func(a, b *kind) int { return b.auto - a.auto })
	var passed []string
	for _, k := range ranked {
		if k.auto == 0 {
			break
		}
		p = k.plain()
		err := error(nil)
		if k.worth != nil {
			err = k.worth()
		}
		if err == nil {
			if err = p.Probe(); err == nil {
				break
			}
		}
		passed = append(passed, k.name+": "+strings.TrimPrefix(err.Error(), "execution provider "+k.name+": "))
	}
	if len(passed) == 0 {
		return p, "the first choice, and it ran a graph"
	}
	return p, "it ran a graph, and others did not. " + strings.Join(passed, "; ")
}

// plain is the provider as it is without settings of the user's.
func (k *kind) plain() Provider { return Provider{kind: k, options: maps.Clone(k.defaults)} }

// Working probes a provider without settings, of those that Providers lists.
func Working(name string) error { return kinds[name].plain().Probe() }

// Probe runs a small graph on the provider, and checks that it ran there. Only this shows that the provider works:
// being compiled into the library is not enough.
func (p Provider) Probe() error {
	g := onnx.New("probe")
	g.Input("x", onnx.F32, "n", 4)
	twice := g.Op("MatMul", nil, "x", g.F32s("w", []int{4, 4}, []float32{2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2}))
	one := g.F32s("one", []int{4}, []float32{1, 1, 1, 1})
	g.Node("", "Add", nil, []string{twice, one}, []string{"y"})
	g.Output("y", onnx.F32, "n", 4)
	s, err := NewSession(g, Options{Provider: p, Threads: 1})
	if err != nil {
		return err
	}
	defer s.Close()
	mem, err := Alloc[float32](8)
	if err != nil {
		return err
	}
	defer mem.Free()
	copy(mem.Slice(), []float32{1, 2, 3, 4})
	x, err := View(mem.Slice()[:4], 1, 4)
	if err != nil {
		return err
	}
	defer x.Destroy()
	y, err := View(mem.Slice()[4:], 1, 4)
	if err != nil {
		return err
	}
	defer y.Destroy()
	if err := s.Run([]Tensor{x}, []Tensor{y}); err != nil {
		return fmt.Errorf("execution provider %s: %w", p.Name(), err)
	}
	if got := mem.Slice()[4:]; !slices.Equal(got, []float32{3, 5, 7, 9}) {
		return fmt.Errorf("execution provider %s computed %v for 2·[1 2 3 4] + 1", p.Name(), got)
	}
	return nil
}
