// Package host tells what the machine gives this process: processors, memory, and CPU features, with the limits
// of its control group taken into account.
package host

import (
	"bufio"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/cpu"
)

// Memory is what the process may use and what it uses, in bytes.
type Memory struct {
	// Total is the machine's memory; Limit the smallest limit of the process's control groups, Total when there
	// is none.
	Total, Limit uint64
	// Available is what can be taken without swapping.
	Available uint64
}

// ReadMemory reads /proc and /sys; where they are missing the values are 0.
func ReadMemory() Memory { return readMemory(os.DirFS("/")) }

func readMemory(root fs.FS) Memory {
	var m Memory
	if f, err := root.Open("proc/meminfo"); err == nil {
		defer f.Close()
		lines := bufio.NewScanner(f)
		m.Total = kilobytes(lines, "MemTotal:")
		m.Available = kilobytes(lines, "MemAvailable:") // comes after
	}
	m.Limit = m.Total
	for _, dir := range groups(root, "memory") {
		raw, err := fs.ReadFile(root, dir.file("memory.max", "memory.limit_in_bytes"))
		if err != nil {
			continue
		}
		// "max" (version 2) and a number near the largest int64 (version 1) mean no limit.
		if n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64); err == nil && n < math.MaxInt64/2 &&
			(n < m.Limit || m.Limit == 0) {
			m.Limit = n
		}
	}
	return m
}

// group is the folder of a control group, of version 1 or 2 of their interface.
type group struct {
	dir string
	v2  bool
}

// file is the path of a file that the two versions name differently.
func (g group) file(v2, v1 string) string {
	if g.v2 {
		return path.Join(g.dir, v2)
	}
	return path.Join(g.dir, v1)
}

// groups lists the control group that a controller has the process in, and every group above it.
func groups(root fs.FS, controller string) []group {
	raw, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	var list []group
	for line := range strings.Lines(string(raw)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		v2, base := fields[1] == "", "sys/fs/cgroup"
		if !v2 {
			if !strings.Contains(","+fields[1]+",", ","+controller+",") {
				continue
			}
			base = path.Join(base, controller)
		}
		for dir := path.Clean("/" + fields[2]); ; dir = path.Dir(dir) {
			list = append(list, group{path.Join(base, dir), v2})
			if dir == "/" {
				break
			}
		}
	}
	return list
}

// PeakRSS is the largest resident set of this process so far, in bytes; 0 where the system does not say.
func PeakRSS() uint64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer f.Close()
	return kilobytes(bufio.NewScanner(f), "VmHWM:")
}

func kilobytes(lines *bufio.Scanner, key string) uint64 {
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 1 && f[0] == key {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// Processors is the number the process may use at once, and the machine's. Go's own view makes two of a control group's
// share of one, on which two threads would take turns at being stopped.
func Processors() (usable, online int) {
	return min(runtime.GOMAXPROCS(0), readProcessors(os.DirFS("/"))), runtime.NumCPU()
}

// readProcessors is the smallest share of processors that the process's control groups have, rounded up.
func readProcessors(root fs.FS) int {
	share := math.MaxInt
	for _, g := range groups(root, "cpu") {
		quota, period := math.MaxInt, 0
		if g.v2 {
			raw, _ := fs.ReadFile(root, path.Join(g.dir, "cpu.max"))
			fmt.Sscan(string(raw), &quota, &period) // "max 100000" sets neither
		} else {
			for file, value := range map[string]*int{"cpu.cfs_quota_us": &quota, "cpu.cfs_period_us": &period} {
				raw, _ := fs.ReadFile(root, path.Join(g.dir, file))
				fmt.Sscan(string(raw), value)
			}
		}
		if quota > 0 && quota < math.MaxInt && period > 0 { // -1 is no limit
			share = min(share, (quota-1)/period+1)
		}
	}
	return share
}

// Features lists the CPU features that matter to matrix kernels.
func Features() []string {
	var list []string
	for _, f := range []struct {
		name string
		have bool
	}{
		{"avx2", cpu.X86.HasAVX2}, {"fma", cpu.X86.HasFMA}, {"avx512f", cpu.X86.HasAVX512F},
		{"avx512-vnni", cpu.X86.HasAVX512VNNI}, {"avx512-bf16", cpu.X86.HasAVX512BF16}, {"avx-vnni", cpu.X86.HasAVXVNNI},
		{"amx-int8", cpu.X86.HasAMXInt8},
		{"neon", cpu.ARM64.HasASIMD}, {"dotprod", cpu.ARM64.HasASIMDDP}, {"i8mm", cpu.ARM64.HasI8MM},
		{"sve", cpu.ARM64.HasSVE},
	} {
		if f.have {
			list = append(list, f.name)
		}
	}
	return list
}
