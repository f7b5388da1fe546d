package vision

import "time"

// interrupter is a tower whose runs can take long: Interrupt has the Run under way, if there is one, fail soon. It may
// be called from any goroutine.
type interrupter interface{ Interrupt() error }

// patience is how often a run under way is looked at.
const patience = 100 * time.Millisecond

// run runs the tower. Where nobody waits any more for any image of the run, or the encoder is closed, it is given up.
func (e *Encoder) run(places []*job) error {
	tower, ok := e.tower.(interrupter)
	if !ok {
		return e.tower.Run(len(places))
	}
	ran, watched := make(chan struct{}), make(chan error)
	go func() { watched <- e.watch(tower, places, ran) }()
	err := e.tower.Run(len(places))
	close(ran)
	if why := <-watched; why != nil && err != nil {
		return why
	}
	return err
}

// watch interrupts a run that is of no use any more, and says why.
func (e *Encoder) watch(tower interrupter, places []*job, ran <-chan struct{}) (why error) {
	list := make([]*entry, len(places))
	for i, j := range places {
		list[i] = j.entry
	}
	tick := time.NewTicker(patience)
	defer tick.Stop()
	stop := e.stop
	for {
		select {
		case <-ran:
			return why
		case <-stop:
			why, stop = ErrClosed, nil
		case <-tick.C:
			if why == nil && e.cache.allAbandoned(list) {
				why = errAbandoned
			}
		}
		if why != nil { // again with each tick: the run may not have begun
			_ = tower.Interrupt()
		}
	}
}
