package jpeg

import "testing"

// A panic of one part reaches who waits, once all parts have ended.
func TestCrew(t *testing.T) {
	var c crew
	ended := make(chan int, 8)
	for i := range 8 {
		c.run(func() {
			defer func() { ended <- i }()
			if i == 3 {
				panic("part")
			}
		})
	}
	defer func() {
		if p := recover(); p != "part" || len(ended) != 8 {
			t.Errorf("recovered %v after %d parts", p, len(ended))
		}
	}()
	c.join()
	t.Error("the panic is lost")
}
