package jpeg

import "sync"

// crew runs parts of one decode on goroutines of their own. A panic of one is the panic of the goroutine that waits,
// where the caller can recover it.
type crew struct {
	wait     sync.WaitGroup
	mu       sync.Mutex
	panicked any
}

func (c *crew) run(part func()) {
	c.wait.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				c.mu.Lock()
				c.panicked = p
				c.mu.Unlock()
			}
		}()
		part()
	})
}

// join waits for all parts.
func (c *crew) join() {
	c.wait.Wait()
	if c.panicked != nil {
		panic(c.panicked)
	}
}
