package serving

// heldStart is a sink that passes Start on with the first event after it. A request that ends before has told its
// caller nothing, so that a balancer or a client may ask another server and nothing is answered twice.
type heldStart struct {
	to    Sink
	start *Start // nil once it is sent
}

// Start implements Sink. e has to stay valid until the next call.
func (h *heldStart) Start(e *Start) error {
	h.start = e
	return nil
}

// Delta implements Sink.
func (h *heldStart) Delta(d *Delta) error {
	if err := h.release(); err != nil {
		return err
	}
	return h.to.Delta(d)
}

// Finish implements Sink.
func (h *heldStart) Finish(f *Finish) error {
	if err := h.release(); err != nil {
		return err
	}
	return h.to.Finish(f)
}

// release sends what is held.
func (h *heldStart) release() error {
	if h.start == nil {
		return nil
	}
	start := h.start
	h.start = nil
	return h.to.Start(start)
}
