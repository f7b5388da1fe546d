package decoder

import "context"

// WarmUp runs steps of the shapes that requests will have, so that none of them waits for a kernel to be compiled:
// prompts in chunks of up to chunk positions, decode steps of any number of rows, every way to pick a token, copies
// between slots. Kernels take shapes as parameters but for a few properties, which sizes tells apart; no step is
// padded to a fixed shape. It is for a runner that nothing else uses yet, and leaves nothing behind that matters.
func (r *DeviceRunner) WarmUp(chunk int) error {
	run := func(moves []Move, rows ...Row) error {
		_, err := r.Run(context.Background(), &Batch{Moves: moves, Rows: rows})
		return err
	}
	greedy := func(slot, past, n int) Row {
		return Row{Slot: slot, Past: past, IDs: make([]int32, n), Sampler: NewSampler(Sampling{})}
	}
	last := r.kv.slots - 1
	for _, n := range sizes(min(chunk, r.maxLen-1)) {
		for _, past := range []int{0, 1, n} {
			if past+n < r.maxLen {
				if err := run(nil, greedy(last, past, n)); err != nil {
					return err
				}
			}
		}
	}
	picks := []Sampling{{}, {Temperature: 1, TopK: 2}, {Logprobs: true}}
	for _, n := range sizes(r.kv.slots) {
		for _, s := range picks {
			rows := make([]Row, n)
			for i := range rows {
				rows[i] = greedy(i, 1, 1)
				rows[i].Sampler = NewSampler(s)
			}
			if err := run(nil, rows...); err != nil {
				return err
			}
		}
	}
	if last > 0 {
		for _, n := range []int{1, kvBlock, r.maxLen} {
			n = min(n, r.maxLen)
			if err := run([]Move{{From: last, To: 0, Len: n}, {From: last, To: 0, Len: n, Back: n}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// sizes are numbers of positions or rows up to n with which kernels are of every kind: few, multiples of what is read
// at once and others, and the largest.
func sizes(n int) []int {
	var list []int
	for i := 1; i < n; {
		list = append(list, i)
		if i < 5 {
			i++
		} else if i%2 == 1 {
			i = (i - 1) * 2
		} else {
			i++
		}
	}
	return append(list, n)
}
