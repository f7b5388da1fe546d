package host

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestReadMemory(t *testing.T) {
	const mem = "MemTotal:        8000 kB\nMemFree: 1 kB\n"
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		want uint64
	}{
		{"no control group", fstest.MapFS{"proc/meminfo": file(mem)}, 8000 << 10},
		{"unlimited", fstest.MapFS{"proc/meminfo": file(mem), "proc/self/cgroup": file("0::/\n"),
			"sys/fs/cgroup/memory.max": file("max\n")}, 8000 << 10},
		{"limit of a parent", fstest.MapFS{"proc/meminfo": file(mem), "proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("max\n"), "sys/fs/cgroup/a/memory.max": file("1048576\n")}, 1 << 20},
		{"version 1", fstest.MapFS{"proc/meminfo": file(mem), "proc/self/cgroup": file("3:cpu:/x\n4:memory,hugetlb:/x\n"),
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": file("2097152\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes":   file("9223372036854771712\n")}, 2 << 20},
	} {
		if got := readMemory(c.fs); got.Limit != c.want || got.Total != 8000<<10 {
			t.Errorf("%s: %+v, want a limit of %d", c.name, got, c.want)
		}
	}
}

func TestReadProcessors(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	for _, c := range []struct {
		name string
		fs   fstest.MapFS
		want int
	}{
		{"no control group", fstest.MapFS{}, math.MaxInt},
		{"unlimited", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/cpu.max": file("max 100000\n")},
			math.MaxInt},
		{"one", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/cpu.max": file("100000 100000\n")}, 1},
		{"less than one", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/cpu.max": file("20000 100000\n")},
			1},
		{"one and a half", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/cpu.max": file("75000 50000\n")},
			2},
		{"limit of a parent", fstest.MapFS{"proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/cpu.max": file("800000 100000\n"), "sys/fs/cgroup/a/cpu.max": file("300000 100000\n")}, 3},
		{"version 1", fstest.MapFS{"proc/self/cgroup": file("3:cpu,cpuacct:/x\n4:memory:/y\n"),
			"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": file("250000\n"), "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": file("100000\n"),
			"sys/fs/cgroup/cpu/cpu.cfs_quota_us": file("-1\n"), "sys/fs/cgroup/cpu/cpu.cfs_period_us": file("100000\n")}, 3},
		{"nonsense", fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/cpu.max": file("-7 0\n")}, math.MaxInt},
	} {
		if got := readProcessors(c.fs); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func TestHere(t *testing.T) {
	if m := ReadMemory(); m.Total == 0 || m.Limit == 0 || m.Limit > m.Total {
		t.Errorf("memory %+v", m)
	}
	if usable, online := Processors(); usable < 1 || usable > online {
		t.Errorf("%d processors usable of %d", usable, online)
	}
	if PeakRSS() == 0 {
		t.Error("no peak memory")
	}
}
