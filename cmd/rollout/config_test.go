package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

var tested = options{root: filepath.Join("..", ".."), port: 20980}

// gRPC takes the documented service config, and the clients for Python and Node have the same.
func TestServiceConfig(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(tested.root, "deploy", "balancers", "service-config.json"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:none", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	var want any
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		dir     string
		missing string
		command []string
	}{
		{"python", foreign(python, "-c", "import grpc, google.protobuf")(tested),
			[]string{python, "-B", "-c", "import json; from mmserve.retry import SERVICE_CONFIG as c; print(json.dumps(c))"}},
		{"node", foreign("node", "-e", "require('./clients/node/node_modules/@grpc/grpc-js')")(tested),
			[]string{"node", "--input-type=module", "-e",
				"import { serviceConfig as c } from './retry.js'; console.log(JSON.stringify(c))"}},
	} {
		if c.missing != "" {
			t.Logf("%s is not tried: %s", c.dir, c.missing)
			continue
		}
		command := exec.Command(c.command[0], c.command[1:]...)
		command.Dir = filepath.Join(tested.root, "clients", c.dir)
		out, err := command.Output()
		if err != nil {
			t.Fatalf("%s: %v", c.dir, err)
		}
		var got any
		if err := json.Unmarshal(out, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s has %s, want %s: %v", c.dir, out, text, err)
		}
	}
}

// Balancers take their documented configurations, where they are installed.
func TestBalancerConfigs(t *testing.T) {
	dir := t.TempDir()
	for name, check := range map[string][]string{
		"haproxy.cfg": {"haproxy", "-c", "-f"},
		"nginx.conf":  {"nginx", "-t", "-p", dir, "-e", "stderr", "-g", "pid " + filepath.Join(dir, "pid") + ";", "-c"},
	} {
		text, err := tested.localized(name)
		if err != nil {
			t.Fatal(err)
		}
		if s := string(text); strings.Contains(s, ":8080") || strings.Contains(s, " 8080") || strings.Contains(s, "9464") {
			t.Errorf("%s: an address is left that is not this test's:\n%s", name, s)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if why := program(check[0])(tested); why != "" {
			t.Logf("%s is not checked: %s", name, why)
			continue
		}
		if out, err := exec.Command(check[0], append(check[1:], file)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
