package ort

import "runtime"

// background runs functions one after the other on a thread that gives way to the process's others, as the threads do
// that it starts.
type background struct {
	work chan func()
	done chan struct{}
}

func newBackground() *background {
	b := &background{make(chan func()), make(chan struct{})}
	go func() {
		defer close(b.done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		giveWay()
		for f := range b.work {
			f()
		}
	}()
	return b
}

// do runs f and returns when it has. Where there is no background, the caller runs it.
func (b *background) do(f func()) {
	if b == nil {
		f()
		return
	}
	done := make(chan struct{})
	b.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// close ends the thread.
func (b *background) close() {
	if b != nil {
		close(b.work)
		<-b.done
	}
}
