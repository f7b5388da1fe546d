package hub

import "sync/atomic"

// Progress tells how far a pull is. Its methods may be called while the pull runs.
type Progress struct {
	total, done, received atomic.Int64
	files, filesDone      atomic.Int64
}

// Count is a state of Progress: bytes and files.
type Count struct {
	// Total is what all files have that were not there; Done what of it is there now, Received what came by network.
	Total, Done, Received int64
	Files, FilesDone      int64
}

// Count is the state now.
func (p *Progress) Count() Count {
	return Count{p.total.Load(), p.done.Load(), p.received.Load(), p.files.Load(), p.filesDone.Load()}
}

// begin sets what there is to do. What was read before it does not count.
func (p *Progress) begin(list []file) {
	var total int64
	for _, f := range list {
		total += max(f.size, 0)
	}
	p.done.Store(0)
	p.filesDone.Store(0)
	p.files.Store(int64(len(list)))
	p.total.Store(total)
}

// add counts bytes that are there, fewer than before where n is negative, and bytes that came.
func (p *Progress) add(n, received int64) {
	p.done.Add(n)
	p.received.Add(received)
}
