// Package host tells what the machine gives this process: processors, memory, and CPU features, with the limits
// of its control group taken into account.
package host

import (
	"bufio"
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
}

// ReadMemory reads /proc and /sys; where they are missing the values are 0.
func ReadMemory() Memory { return readMemory(os.DirFS("/")) }

func readMemory(root fs.FS) Memory {
	var m Memory
	if f, err := root.Open("proc/meminfo"); err == nil {
		defer f.Close()
		m.Total = kilobytes(bufio.NewScanner(f), "MemTotal:")
	}
	m.Limit = m.Total
	for _, file := range limitFiles(root) {
		raw, err := fs.ReadFile(root, file)
		if err != nil {
			continue
		}
		// "max" (version 2) and a number near the largest int64 (version 1) mean no limit.
		if n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64); err == nil && n < math.MaxInt64/2 && (n < m.Limit || m.Limit == 0) {
			m.Limit = n
		}
	}
	return m
}

// limitFiles lists the memory limit of the process's control group and of every group above it.
func limitFiles(root fs.FS) []string {
	raw, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	var files []string
	for line := range strings.Lines(string(raw)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		base, name := "sys/fs/cgroup", "memory.max"
		if fields[1] != "" {
			if !strings.Contains(","+fields[1]+",", ",memory,") {
				continue
			}
			base, name = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		}
		for dir := path.Clean("/" + fields[2]); ; dir = path.Dir(dir) {
			files = append(files, path.Join(base, dir, name))
			if dir == "/" {
				break
			}
		}
	}
	return files
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

// Processors is the number the process may use at once: the runtime's view, which honours control groups, and the
// machine's.
func Processors() (usable, online int) { return runtime.GOMAXPROCS(0), runtime.NumCPU() }

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
		{"neon", cpu.ARM64.HasASIMD}, {"dotprod", cpu.ARM64.HasASIMDDP}, {"i8mm", cpu.ARM64.HasI8MM}, {"sve", cpu.ARM64.HasSVE},
	} {
		if f.have {
			list = append(list, f.name)
		}
	}
	return list
}
