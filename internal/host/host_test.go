package host

import (
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
		{"unlimited", fstest.MapFS{"proc/meminfo": file(mem), "proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("max\n")}, 8000 << 10},
		{"limit of a parent", fstest.MapFS{"proc/meminfo": file(mem), "proc/self/cgroup": file("0::/a/b\n"),
			"sys/fs/cgroup/a/b/memory.max": file("max\n"), "sys/fs/cgroup/a/memory.max": file("1048576\n")}, 1 << 20},
		{"version 1", fstest.MapFS{"proc/meminfo": file(mem), "proc/self/cgroup": file("3:cpu:/x\n4:memory,hugetlb:/x\n"),
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes": file("2097152\n"), "sys/fs/cgroup/memory/memory.limit_in_bytes": file("9223372036854771712\n")}, 2 << 20},
	} {
		if got := readMemory(c.fs); got.Limit != c.want || got.Total != 8000<<10 {
			t.Errorf("%s: %+v, want a limit of %d", c.name, got, c.want)
		}
	}
}

func TestHere(t *testing.T) {
	if m := ReadMemory(); m.Total == 0 || m.Limit == 0 || m.Limit > m.Total {
		t.Errorf("memory %+v", m)
	}
	if PeakRSS() == 0 {
		t.Error("no peak memory")
	}
}
