package ort

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// node is where a node of a session's graph runs.
type node struct{ provider, domain, op, name string }

// Placement says where the nodes of a session's graph run.
type Placement struct {
	// Graph is the graph's name, or that of its file.
	Graph string
	// Provider is the one the session was asked for.
	Provider string
	// Nodes counts the graph's nodes by where they run, as ONNX Runtime calls it.
	Nodes map[string]int
	// Fallbacks counts nodes by operator that run on the processor though another provider was asked for and they are not
	// among those that belong there.
	Fallbacks map[string]int
}

// plumbing lists the operators that may run on the processor whatever the provider, and why each. They compute shapes
// and positions, a few integers that decide how a kernel is launched and that providers want in the processor's memory;
// where they move more than that, ONNX Runtime puts them there only for want of a kernel for integers.
var plumbing = map[string]string{
	"Shape":           "reads a shape, which the processor holds",
	"Size":            "reads a shape, which the processor holds",
	"Constant":        "is read once, when the session opens",
	"ConstantOfShape": "makes a tensor of a shape that was computed here",
	"Range":           "counts positions",
	"Gather":          "picks from a shape",
	"Slice":           "cuts a shape or a list of lengths",
	"Concat":          "puts a shape together",
	"Unsqueeze":       "makes a dimension a shape of one",
	"Squeeze":         "makes a shape of one a dimension",
	"Reshape":         "gives integers another shape without touching them",
	"Cast":            "turns lengths from 32 into 64 bits",
	"Add":             "computes a length",
	"Sub":             "computes a length",
	"Mul":             "computes a dimension",
	"Div":             "computes a dimension",
	"Mod":             "computes a dimension",
	"Neg":             "computes an offset",
	"Min":             "bounds a length",
	"Max":             "bounds a length",
	"ReduceSum":       "computes a length",
	"ReduceMax":       "computes a length",
	"ReduceProd":      "computes a size",
	"CumSum":          "adds lengths up",
	"Compress":        "picks positions by such comparisons",
	"Equal":           "compares lengths",
	"Greater":         "compares lengths",
	"GreaterOrEqual":  "compares lengths",
	"Less":            "compares lengths",
	"LessOrEqual":     "compares lengths",
	"And":             "joins such comparisons",
	"Or":              "joins such comparisons",
	"Not":             "turns such a comparison",
	"Where":           "chooses between shapes",
	"Expand":          "repeats an integer",
	"If":              "chooses a subgraph, whose nodes have places of their own",
	"Identity":        "names a value",
}

// judge counts where nodes run, and refuses work that fell back to the processor unless that is allowed. reckons,
// unless nil, tells of the graph's nodes by name whether they touch integers only; without it, an operator that can be
// plumbing is taken for it.
func (p Provider) judge(nodes []node, reckons func(string) bool, allow bool) (Placement, error) {
	at := Placement{Provider: p.Name(), Nodes: map[string]int{}, Fallbacks: map[string]int{}}
	for _, n := range nodes {
		at.Nodes[n.provider]++
		if n.provider != p.is().ep && !(plumbing[n.op] != "" && n.domain == "" && (reckons == nil || reckons(n.name))) {
			at.Fallbacks[n.op]++
		}
	}
	switch {
	case p.Name() == "cpu":
		at.Fallbacks = map[string]int{}
	case at.Nodes[p.is().ep] == 0:
		return at, fmt.Errorf("execution provider %s took no node of the graph", p.Name())
	case len(at.Fallbacks) > 0 && !allow:
		var list []string
		for _, op := range slices.Sorted(maps.Keys(at.Fallbacks)) {
			list = append(list, fmt.Sprintf("%d %s", at.Fallbacks[op], op))
		}
		return at, fmt.Errorf("execution provider %s leaves work to the processor: %s of the graph's %d nodes (--allow-cpu-fallback runs it all the same)",
			p.Name(), strings.Join(list, ", "), len(nodes))
	}
	return at, nil
}
