package synth

import (
	"fmt"
	"math/bits"

	"github.com/mmserve/mmserve/internal/host"
	"github.com/mmserve/mmserve/model/families"
)

// total is the number of all parameters, and whether it fits into an int64.
func total(dims [][]int) (n int64, ok bool) {
	var sum uint64
	for _, list := range dims {
		product := uint64(1)
		for _, d := range list {
			hi, lo := bits.Mul64(product, uint64(max(d, 0)))
			if hi != 0 {
				return 0, false
			}
			product = lo
		}
		if sum += product; sum < product || sum > 1<<62 {
			return 0, false
		}
	}
	return int64(sum), true
}

// checkRoom refuses weights that are not there yet and would not fit: size bytes for each parameter, against the
// memory that this process may use and the free space of the folder that they are written to.
func checkRoom(s families.Spec, dir string, size int64, inMemory bool) error {
	needs, err := s.Needs()
	if err != nil {
		return err
	}
	dims := make([][]int, len(needs))
	for i, n := range needs {
		dims[i] = n.Dims
	}
	n, ok := total(dims)
	if !ok || n > (1<<62)/size {
		return fmt.Errorf("config.json describes more parameters than can be counted")
	}
	gib := func(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
	if free := host.FreeDisk(dir); free > 0 && uint64(n*size) > free {
		return fmt.Errorf("config.json describes %d parameters, whose weights take %s; %s has %s free", n, gib(n*size), dir, gib(int64(free)))
	}
	if limit := host.ReadMemory().Limit; inMemory && limit > 0 && uint64(4*n) > limit {
		return fmt.Errorf("config.json describes %d parameters, which take %s of memory to run; this process may use %s", n, gib(4*n), gib(int64(limit)))
	}
	return nil
}
