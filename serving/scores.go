package serving

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/decoder"
	"github.com/mmserve/mmserve/fusion"
	"github.com/mmserve/mmserve/internal/constrain"
)

// The score of a choice is the model's probability of its tokens after the prompt, over the sum of those of all
// choices. Where the template leaves a space to the answer, it is the sum of those of the text with and without it.
// Where another choice begins with the text, it is that the answer ends there, too.
//
// The token paths of all choices are a tree. Engine requests that are forced down its paths read the probabilities of
// the branches at each node: one request with one token, where the choices differ in their first tokens. The prefix
// cache has the prompt for all but the first.

// scoreNode is a place in the tree of the choices' tokens.
type scoreNode struct {
	children map[int32]*scoreNode
	logprob  float64 // of the tokens up to here
	ends     bool    // the probability of an end here is wanted
	end      float64 // its log
}

// path is one way to write a choice.
type path struct {
	choice int
	ids    []int32
	ends   bool // another choice goes on from here
}

// score tells how likely each choice is, if that is asked for. tickets are those for the first of the requests that it
// takes.
func (l *life) score(ctx context.Context, req *checked, in fusion.Input, g *constrain.Grammar,
	tickets []*batching.Ticket) (list []float32, err error) {
	if req.scored == nil {
		return nil, nil
	}
	paths, err := l.scorePaths(req.scored, g.Padded(), l.model.MaxLen-len(in.IDs))
	if err != nil {
		return nil, err
	}
	root := &scoreNode{}
	for _, p := range paths {
		at := root.insert(p.ids)
		at.ends = at.ends || p.ends
	}
	for _, ids := range root.walks(nil, nil) {
		if len(tickets) == 0 {
			tickets, err = l.engine.AcquireFor(claim(&checked{
				priority: req.priority, tenant: req.tenant, caller: req.caller, n: 1, maxTokens: len(ids) + 1,
				deadline: req.deadline, eos: req.eos,
			}))
			if err != nil {
				return nil, l.rec.refuse(err)
			}
		}
		w := newScoreWalk(root, ids, req.eos, l.model.Vocab)
		stream, err := l.engine.Submit(ctx, tickets[0], batching.Request{
			ID: l.rec.id, Input: in, MaxTokens: len(ids) + 1, Sampling: decoder.Sampling{Constraint: w},
			Priority: req.priority, Tenant: req.tenant, Weight: l.used.weight(), Deadline: req.deadline, NoDrafts: true,
		})
		if err != nil {
			return nil, l.rec.refuse(err)
		}
		l.ran, l.scored = l.rec.tokens, l.scored+len(ids)+1
		if err := finished(ctx, stream); err != nil {
			return nil, err
		}
		tickets = tickets[1:]
	}
	return scores(len(req.scored), paths, root), nil
}

// finished waits until a request has given all its tokens.
func finished(ctx context.Context, stream *batching.Stream) error {
	for {
		e, err := stream.Next(ctx)
		switch cause := context.Cause(ctx); {
		case cause != nil:
			return cause
		case err != nil:
			return err
		}
		switch e.Finish {
		case batching.Running:
		case batching.Error:
			return e.Err
		case batching.Expired:
			return context.DeadlineExceeded
		case batching.Cancelled:
			return ErrCut
		default:
			return nil
		}
	}
}

// scorePaths writes the choices as the tokenizer does, with a space before them too if padded. room is the most tokens.
func (l *life) scorePaths(texts []string, padded bool, room int) ([]path, error) {
	var paths []path
	total := 0
	for i, text := range texts {
		field := fmt.Sprintf("constraint.choices.texts[%d]", i)
		ends := slices.ContainsFunc(texts, func(t string) bool { return t != text && strings.HasPrefix(t, text) })
		spellings := []string{text}
		if padded {
			spellings = append(spellings, " "+text)
		}
		for _, spelling := range spellings {
			ids, err := l.model.Prompter.Answer(spelling)
			if err != nil {
				return nil, promptError(field, err)
			}
			switch last := len(paths) - 1; {
			case len(ids) == 0 || int(slices.Max(ids)) >= l.model.Vocab:
				return nil, InvalidField(field, "the model has no tokens for this text; want one that it can say, or no scores")
			case len(ids) > room:
				return nil, InvalidField(field, "%d tokens; want at most %d, which are left of the context", len(ids), room)
			case last >= 0 && paths[last].choice == i && slices.Equal(paths[last].ids, ids):
				continue // the tokenizer does not tell them apart
			}
			total += len(ids)
			paths = append(paths, path{i, ids, ends})
		}
	}
	if total > maxScoredTokens {
		return nil, InvalidField("constraint.choices.texts", "%d tokens; want at most %d with scores", total, maxScoredTokens)
	}
	return paths, nil
}

// insert returns the node that ids lead to.
func (n *scoreNode) insert(ids []int32) *scoreNode {
	for _, id := range ids {
		next := n.children[id]
		if next == nil {
			if n.children == nil {
				n.children = map[int32]*scoreNode{}
			}
			next = &scoreNode{}
			n.children[id] = next
		}
		n = next
	}
	return n
}

// walks appends to list the paths down to the last nodes at which something is wanted; together they meet all of them.
func (n *scoreNode) walks(list [][]int32, at []int32) [][]int32 {
	before := len(list)
	for _, id := range slices.Sorted(maps.Keys(n.children)) {
		list = n.children[id].walks(list, append(at, id))
	}
	if len(list) == before && (n.ends || len(n.children) > 0) {
		list = append(list, slices.Clone(at))
	}
	return list
}

// scoreWalk has a sequence go down a path, and notes what the model gives to the branches. It is the constraint of the
// sequence.
type scoreWalk struct {
	at   *scoreNode
	left []int32
	stop []int32
	mask []uint64
}

func newScoreWalk(root *scoreNode, ids, stop []int32, vocab int) *scoreWalk {
	return &scoreWalk{at: root, left: ids, stop: stop, mask: make([]uint64, (vocab+63)/64)}
}

// Score implements decoder.Scorer.
func (w *scoreWalk) Score(logprob func(id int32) float32) {
	for id, child := range w.at.children {
		child.logprob = w.at.logprob + float64(logprob(id))
	}
	if !w.at.ends {
		return
	}
	sum := 0.0
	for _, id := range w.stop {
		sum += math.Exp(float64(logprob(id)))
	}
	w.at.end = math.Log(sum)
}

// Mask implements decoder.Constraint: the next id of the path alone, and at its end any.
func (w *scoreWalk) Mask() []uint64 {
	if len(w.left) == 0 {
		for i := range w.mask {
			w.mask[i] = ^uint64(0)
		}
		return w.mask
	}
	clear(w.mask)
	w.mask[w.left[0]/64] |= 1 << (w.left[0] % 64)
	return w.mask
}

// Accept implements decoder.Constraint.
func (w *scoreWalk) Accept(int32) {
	if len(w.left) > 0 {
		w.at, w.left = w.at.children[w.left[0]], w.left[1:]
	}
}

// scores are the probabilities of n choices, which are 1 together, or 0 each where the model gives none a chance.
func scores(n int, paths []path, root *scoreNode) []float32 {
	logs, best := make([]float64, len(paths)), math.Inf(-1)
	for i, p := range paths {
		at := root.insert(p.ids)
		if logs[i] = at.logprob; p.ends {
			logs[i] += at.end
		}
		best = max(best, logs[i])
	}
	out := make([]float32, n)
	if math.IsInf(best, -1) { // the model gives none of them a chance
		return out
	}
	weights, sum := make([]float64, n), 0.0
	for i, p := range paths {
		w := math.Exp(logs[i] - best) // the largest is 1: the sum does not vanish
		weights[p.choice] += w
		sum += w
	}
	for i, w := range weights {
		out[i] = float32(w / sum)
	}
	return out
}
