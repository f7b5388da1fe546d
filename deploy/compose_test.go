package deploy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// Compose publishes nothing beyond this machine, mounts files that are there, and has Prometheus scrape mmserve.
func TestCompose(t *testing.T) {
	dir := "compose"
	var c struct {
		Services map[string]struct {
			Image       string
			Ports       []string
			Volumes     []string
			Environment map[string]string
			NetworkMode string `yaml:"network_mode"`
		}
		Volumes map[string]any
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(dir, "compose.yaml"))), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) != 5 {
		t.Fatalf("%d services", len(c.Services))
	}
	for name, s := range c.Services {
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s to others", name, p)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if _, own := c.Volumes[from]; own {
				continue
			}
			if _, err := os.Stat(filepath.Join(dir, from)); err != nil {
				t.Errorf("%s mounts %s: %v", name, from, err)
			}
		}
		if _, tag, _ := strings.Cut(s.Image, ":"); tag == "" || tag == "latest" && name != "mmserve" {
			t.Errorf("%s: image %q: want a version", name, s.Image)
		}
	}
	// Prometheus is in mmserve's network, whose loopback the admin listener is on.
	if c.Services["prometheus"].NetworkMode != "service:mmserve" ||
		c.Services["mmserve"].Environment["MMSERVE_ADMIN_ADDRESS"] != "" ||
		!strings.Contains(read(t, filepath.Join(dir, "prometheus.yml")), `"127.0.0.1:9464"`) {
		t.Error("Prometheus does not scrape the admin listener")
	}
}
