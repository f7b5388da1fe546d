// Package deploy_test holds what this folder gives to operators to what mmserve has: its flags, variables, ports and
// metrics.
// make test-kubernetes tries it on a real API server.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

const root = ".."

var rewrite = flag.Bool("rewrite", false, "write files that follow from others anew")

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// files are all files of this folder that are no tests.
func files(t *testing.T) (list []string) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".go") {
			list = append(list, path)
		}
		return err
	})
	if err != nil || len(list) < 30 {
		t.Fatal(len(list), err)
	}
	return list
}

// objects are the documents of a YAML file.
func objects(t *testing.T, path string) (list []map[string]any) {
	t.Helper()
	d := yaml.NewDecoder(strings.NewReader(read(t, path)))
	for {
		var o map[string]any
		err := d.Decode(&o)
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if o != nil {
			list = append(list, o)
		}
	}
}

// Every variable that a file sets is read by a flag, and every metric it asks for is documented.
func TestNames(t *testing.T) {
	known := known(t)
	docs := read(t, filepath.Join(root, "docs", "observability.md"))
	variable := regexp.MustCompile(`\bMMSERVE_[A-Z0-9_]+`)
	metric := regexp.MustCompile(`\bmmserve_(?:requests|kv|slots|cache|engine|encoder|tokens)_\w+`)
	var variables, metrics int
	for _, path := range files(t) {
		text := read(t, path)
		for _, name := range variable.FindAllString(text, -1) {
			variables++
			if !slices.Contains(known, name) && !strings.HasSuffix(name, "_") {
				t.Errorf("%s: no flag reads %s", path, name)
			}
		}
		for _, name := range metric.FindAllString(text, -1) {
			metrics++
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				name = strings.TrimSuffix(name, suffix)
			}
			if !strings.Contains(docs, "`"+name+"`") {
				t.Errorf("%s: docs/observability.md does not name %s", path, name)
			}
		}
	}
	if variables < 40 || metrics < 20 {
		t.Errorf("found %d variables and %d metrics only", variables, metrics)
	}
}

// container is a container of any manifest, as far as mmserve knows it.
type container struct {
	Name  string
	Image string
	Args  []string
	Env   []struct{ Name, Value string }
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	SecurityContext struct {
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct{ Name, MountPath string } `yaml:"volumeMounts"`
}

// eachContainer calls f with all containers of mmserve in a document, however deep, and what holds each.
func eachContainer(t *testing.T, v any, f func(spec map[string]any, c container)) {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for _, key := range []string{"containers", "initContainers"} {
			list, _ := v[key].([]any)
			for _, one := range list {
				raw, err := yaml.Marshal(one)
				if err != nil {
					t.Fatal(err)
				}
				var c container
				if err := yaml.Unmarshal(raw, &c); err != nil {
					t.Fatal(err)
				}
				if name, _, _ := strings.Cut(c.Image, ":"); name == "mmserve" {
					f(v, c)
				}
			}
		}
		for _, one := range v {
			eachContainer(t, one, f)
		}
	case []any:
		for _, one := range v {
			eachContainer(t, one, f)
		}
	}
}

// manifests are the files that an API server is given.
func manifests(t *testing.T) (list []string) {
	for _, path := range files(t) {
		dir, _, _ := strings.Cut(path, string(filepath.Separator))
		if strings.HasSuffix(path, ".yaml") && slices.Contains([]string{"gateway", "jobs", "kserve", "kustomize"}, dir) ||
			strings.HasPrefix(path, filepath.Join("helm", "testdata")) {
			list = append(list, path)
		}
	}
	return list
}

// Containers of mmserve call commands and flags that it has, listen where their ports say, and may do nothing else.
func TestContainers(t *testing.T) {
	list := options(t)
	found := 0
	for _, path := range manifests(t) {
		for _, o := range objects(t, path) {
			eachContainer(t, o, func(spec map[string]any, c container) {
				found++
				command := checkArgs(t, path, list, c.Args)
				for _, e := range c.Env {
					if strings.HasPrefix(e.Name, "MMSERVE_") && !slices.Contains(variables(list, command), e.Name) {
						t.Errorf("%s: %s reads no %s", path, command, e.Name)
					}
				}
				checkPorts(t, path, command, c)
				checkTime(t, path, command, spec, c)
				s := c.SecurityContext
				if !s.ReadOnlyRootFilesystem || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
					!slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
					t.Errorf("%s: container %s may more than it needs: %+v", path, c.Name, s)
				}
			})
		}
	}
	if found < 8 {
		t.Errorf("found %d containers only", found)
	}
}

// checkArgs gives the command of a command line, whose flags it has to have.
func checkArgs(t *testing.T, path string, list []option, args []string) (command string) {
	t.Helper()
	for i, a := range args {
		name, isFlag := strings.CutPrefix(a, "--")
		name, _, _ = strings.Cut(name, "=")
		isCommand := slices.ContainsFunc(list, func(o option) bool {
			return o.command == strings.TrimSpace(command+" "+a) || strings.HasPrefix(o.command, a+" ")
		})
		if i == 0 && !isCommand {
			t.Errorf("%s: mmserve has no command %s", path, a)
		}
		if isCommand && (i == 0 || i == 1) {
			command = strings.TrimSpace(command + " " + a)
		}
		if isFlag && !slices.ContainsFunc(list, func(o option) bool {
			return o.name == name && (o.command == command || o.command == "")
		}) {
			t.Errorf("%s: mmserve %s has no --%s", path, command, name)
		}
	}
	return command
}

// checkPorts holds that a server's ports are those it listens on.
func checkPorts(t *testing.T, path, command string, c container) {
	t.Helper()
	if command != "serve" {
		return
	}
	want := map[int]string{}
	for _, e := range c.Env {
		if port, all := strings.CutPrefix(e.Value, ":"); all {
			want[map[string]int{"8080": 8080, "8081": 8081, "9464": 9464}[port]] = e.Name
		}
	}
	for _, p := range c.Ports {
		if want[p.ContainerPort] == "" {
			t.Errorf("%s: nothing listens on port %d", path, p.ContainerPort)
		}
	}
	if want[8080] != "MMSERVE_LISTEN" || want[0] != "" {
		t.Errorf("%s: listens on %v", path, want)
	}
}

// checkTime holds that a pod is given the time to drain.
func checkTime(t *testing.T, path, command string, spec map[string]any, c container) {
	t.Helper()
	given, said := spec["terminationGracePeriodSeconds"].(int)
	if command != "serve" || !said {
		return
	}
	var need time.Duration
	for _, e := range c.Env {
		if e.Name == "MMSERVE_DRAIN_DELAY" || e.Name == "MMSERVE_GRACE" {
			d, err := time.ParseDuration(e.Value)
			if err != nil {
				t.Fatal(err)
			}
			need += d
		}
	}
	if time.Duration(given)*time.Second < need+10*time.Second || need == 0 {
		t.Errorf("%s: terminationGracePeriodSeconds is %d, want 10 s more than drain delay and grace, %v", path, given, need)
	}
}

// The chart's values have the form that its schema says; each is used by a template, and templates use no others.
func TestChartValues(t *testing.T) {
	chart := filepath.Join("helm", "mmserve")
	var values map[string]any
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(chart, "values.yaml"))), &values); err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	schema, err := c.Compile(filepath.Join(chart, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(plain(t, values)); err != nil {
		t.Error(err)
	}
	templates, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, path := range templates {
		text.WriteString(read(t, path))
	}
	var known, used []string
	for top, v := range values {
		known = append(known, top)
		if below, ok := v.(map[string]any); ok && !slices.Contains([]string{"resources", "config"}, top) {
			for name := range below {
				known = append(known, top+"."+name)
			}
		}
	}
	for _, m := range regexp.MustCompile(`\.Values\.(\w+(?:\.\w+)?)`).FindAllStringSubmatch(text.String(), -1) {
		used = append(used, m[1])
		if !slices.Contains(known, m[1]) {
			t.Errorf("values.yaml has no %s", m[1])
		}
	}
	for _, name := range known {
		top, below, nested := strings.Cut(name, ".")
		inWith := slices.Contains([]string{"autoscaling", "image"}, top) // "with .Values.autoscaling": .kind
		if !slices.ContainsFunc(used, func(u string) bool { return u == name || strings.HasPrefix(u, name+".") }) &&
			!(nested && inWith && regexp.MustCompile(`[ (]\.`+below+`\b`).MatchString(text.String())) {
			t.Errorf("no template uses %s", name)
		}
	}
}

// plain has a value as encoding/json reads it.
func plain(t *testing.T, v any) any {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	v, err = jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// What a user gets wrong is refused, and the value is named.
func TestSchemaRefuses(t *testing.T) {
	schema, err := jsonschema.NewCompiler().Compile(filepath.Join("helm", "mmserve", "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	for values, at := range map[string]string{
		`{replicaCount: two}`:                         "/replicaCount",
		`{replicas: 3}`:                               "replicas",
		`{config: {slot: 4}}`:                         "slot",
		`{config: {slots: many}}`:                     "/config/slots",
		`{config: {precision: int3}}`:                 "/config/precision",
		`{config: {kv-cache-bytes: "8 gigabytes"}}`:   "/config/kv-cache-bytes",
		`{config: {listen: ":1"}}`:                    "listen",
		`{config: {age-after: 30}}`:                   "/config/age-after",
		`{model: {path: ../../etc}}`:                  "/model/path",
		`{model: {hub: "https://example.com/a"}}`:     "/model/hub",
		`{image: {digest: "sha256:1"}}`:               "/image/digest",
		`{shutdown: {graceSeconds: 0}}`:               "/shutdown/graceSeconds",
		`{resources: {limits: {memory: lots}}}`:       "/resources/limits/memory",
		`{podDisruptionBudget: {maxUnavailable: 0}}`:  "/podDisruptionBudget/maxUnavailable",
		`{autoscaling: {kvUtilization: 70}}`:          "/autoscaling/kvUtilization",
		`{extraEnv: [{name: MMSERVE_LISTEN}]}`:        "/extraEnv/0/name",
		`{metrics: {enabled: "false"}}`:               "/metrics/enabled",
		`{tls: {secretName: "My Secret"}}`:            "/tls/secretName",
		`{autoscaling: {prometheus: "prometheus:1"}}`: "/autoscaling/prometheus",
	} {
		var v map[string]any
		if err := yaml.Unmarshal([]byte(values), &v); err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(plain(t, v)); err == nil || !strings.Contains(err.Error(), at) {
			t.Errorf("%s: %v; want it refused, naming %s", values, err, at)
		}
	}
	var v map[string]any
	good := `{config: {slots: 4, precision: int8, kv-cache-bytes: 8GiB, drafts: 2, speculative: false, tenant-weight: {gold: 4},
  http-allow-origin: ["https://example.com"], log-level: debug, age-after: 1m30s, batch-places: 0.5, max-message-bytes: 1000000}}`
	if err := yaml.Unmarshal([]byte(good), &v); err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(plain(t, v)); err != nil {
		t.Error(err)
	}
}

// The unit's exposure is at most 2.0 of 10, and its flags and times are mmserve's.
func TestSystemdUnit(t *testing.T) {
	path := filepath.Join("systemd", "mmserve.service")
	unit := read(t, path)
	exec1 := regexp.MustCompile(`(?m)^ExecStart=\S+/mmserve (.*)$`).FindStringSubmatch(unit)
	if exec1 == nil {
		t.Fatal("no ExecStart")
	}
	list := options(t)
	if c := checkArgs(t, path, list, strings.Fields(exec1[1])); c != "serve" {
		t.Errorf("it starts mmserve %s", c)
	}
	need := 10 * time.Second
	for _, o := range list {
		if o.command == "serve" && (o.name == "drain-delay" || o.name == "grace") {
			value := o.value
			if value == "" { // outside of Kubernetes, without --termination-grace-period
				value = map[string]string{"drain-delay": "0s", "grace": "30s"}[o.name]
			}
			d, err := time.ParseDuration(value)
			if err != nil {
				t.Fatal(err)
			}
			need += d
		}
	}
	stop := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)$`).FindStringSubmatch(unit)
	if stop == nil {
		t.Fatal("no TimeoutStopSec")
	}
	if given, err := time.ParseDuration(stop[1] + "s"); err != nil || given < need {
		t.Errorf("TimeoutStopSec is %v, want %v: the defaults of drain delay and grace, and 10 s", given, need)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze")
	}
	out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", path).CombinedOutput()
	if bytes.Contains(out, []byte("unrecognized option")) {
		t.Skip("this systemd-analyze reads no files")
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
