package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// The command of the Job is one that this program takes, and its numbers agree.
func TestIndexedJobManifest(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "jobs", "indexed-job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?s)args: (\[.*?\])\n`).FindSubmatch(b)
	var args []string
	if found == nil || json.Unmarshal(found[1], &args) != nil {
		t.Fatalf("no args in\n%s", b)
	}
	var c cli
	p, err := kong.New(&c, flagVariables, kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Parse(args); err != nil {
		t.Fatal(err)
	}
	t.Setenv("JOB_COMPLETION_INDEX", "99")
	if _, err := c.Caption.options(); err != nil {
		t.Error(err)
	}
	_, n, err := shardOf(c.Caption.Shard, "0")
	completions := regexp.MustCompile(`completions: (\d+)\n`).FindSubmatch(b)
	if err != nil || completions == nil || "/"+string(completions[1]) != c.Caption.Shard || n != 100 {
		t.Errorf("--shard %s of %s completions: %v", c.Caption.Shard, completions, err)
	}
	if !strings.Contains(string(b), "values: [2]") || exitUsage != 2 {
		t.Error("the status of a wrong command line")
	}
}

func TestShardOf(t *testing.T) {
	for _, c := range []struct {
		flag, index string
		i, n        int
		ok          bool
	}{
		{"0/3", "", 0, 3, true}, {"2/3", "1", 2, 3, true}, {"/3", "1", 1, 3, true}, {"/3", "", 0, 0, false},
		{"3/3", "", 0, 0, false},
		{"-1/3", "", 0, 0, false}, {"1", "", 0, 0, false}, {"a/b", "", 0, 0, false}, {"0/99999999", "", 0, 0, false},
	} {
		i, n, err := shardOf(c.flag, c.index)
		if i != c.i || n != c.n || (err == nil) != c.ok {
			t.Errorf("%q, %q: %d/%d, %v", c.flag, c.index, i, n, err)
		}
	}
}

func TestMaxErrors(t *testing.T) {
	for in, ok := range map[string]bool{"": true, "5": true, "2.5%": true, "0": false, "-1": false, "101%": false,
		"x": false, "%": false} {
		if _, _, err := maxErrors(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
}
