package deploy_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// option is a flag of a command, as the golden file of flags has it.
type option struct {
	command, name, value, env, enum, placeholder string
	negatable                                    bool
}

var optionLine = regexp.MustCompile(
	`^(.*?) ?--([\w-]+) short='.*' default="(.*)" env=(\S*) enum="(.*)" required=\w+ negatable="(.*)" placeholder="(.*)"$`)

// options are all flags of mmserve; those of no command are every command's.
func options(t *testing.T) (list []option) {
	t.Helper()
	for line := range strings.Lines(read(t, filepath.Join(root, "cmd", "mmserve", "testdata", "flags.txt"))) {
		m := optionLine.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			t.Fatalf("flags.txt: %q", line)
		}
		list = append(list, option{strings.TrimSpace(m[1]), m[2], m[3], m[4], m[5], m[7], m[6] != ""})
	}
	return list
}

// variables are the environment variables that a command's flags read; "" for those of any.
func variables(list []option, command string) (names []string) {
	for _, o := range list {
		if o.env != "" && (command == "" || o.command == "" || o.command == command) {
			names = append(names, strings.Split(o.env, ",")...)
		}
	}
	return names
}

// quoted finds variables that the command reads without a flag, as those of secrets.
var quoted = regexp.MustCompile(`"(MMSERVE_\w+)"`)

// known are all variables that the command reads.
func known(t *testing.T) []string {
	t.Helper()
	names := variables(options(t), "")
	sources, err := filepath.Glob(filepath.Join(root, "cmd", "mmserve", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(read(t, path), -1) {
			names = append(names, m[1])
		}
	}
	return names
}

// owned are the flags of serve that the chart's own values set, or that make no sense in its file.
var owned = []string{
	"admin-address", "admin-key-file", "allow-insecure-listen", "api-keys-file", "cache-dir", "config", "drain-delay",
	"grace", "help", "http-listen", "hub-offline", "listen", "log-format", "model", "ort-lib", "print-config",
	"socket-mode", "termination-grace-period", "tls-cert", "tls-client-ca", "tls-key",
}

// configSchema is what values.schema.json says of config: the flags of serve by their names, with the form of values.
func configSchema(t *testing.T) map[string]any {
	properties := map[string]any{}
	for _, o := range options(t) {
		if (o.command == "serve" || o.command == "") && !slices.Contains(owned, o.name) {
			properties[o.name] = o.schema()
		}
	}
	if len(properties) < 50 {
		t.Fatalf("found %d flags only", len(properties))
	}
	return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
}

var (
	duration = regexp.MustCompile(`^\d+(ms|s|m|h)$`)
	size     = regexp.MustCompile(`^\d+[KMGT]iB$`)
)

// schema is the form of a flag's value, as far as its declaration tells.
func (o option) schema() map[string]any {
	text := map[string]any{"type": "string", "minLength": 1}
	_, err := strconv.ParseFloat(o.value, 64)
	_, whole := strconv.Atoi(o.value)
	switch {
	case o.enum != "":
		return map[string]any{"enum": strings.Split(strings.Trim(o.enum, ","), ",")}
	case o.negatable, o.value == "" && o.placeholder == "":
		return map[string]any{"type": "boolean"}
	case size.MatchString(o.value), o.placeholder == "SIZE":
		pattern := map[string]any{"type": "string", "pattern": `^[0-9]+(\.[0-9]+)?([KMGT]i?B|B)?$`}
		return map[string]any{"anyOf": []any{pattern, map[string]any{"type": "integer", "minimum": 0}}}
	case duration.MatchString(o.value):
		return map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}
	case o.placeholder == "N", whole == nil:
		return map[string]any{"type": "integer", "minimum": 0}
	case err == nil:
		return map[string]any{"type": "number", "minimum": 0}
	case strings.Contains(o.placeholder, "=") && !strings.Contains(o.placeholder, "["):
		return map[string]any{"type": "object", "minProperties": 1}
	}
	return map[string]any{"anyOf": []any{text, map[string]any{"type": "array", "items": text, "minItems": 1}}}
}

// The chart's schema names the flags that serve has, no more and no less.
func TestSchemaHasFlags(t *testing.T) {
	path := filepath.Join("helm", "mmserve", "values.schema.json")
	var schema map[string]any
	if err := json.Unmarshal([]byte(read(t, path)), &schema); err != nil {
		t.Fatal(err)
	}
	schema = maps.Clone(schema)
	schema["properties"].(map[string]any)["config"] = configSchema(t)
	want, err := json.MarshalIndent(schema, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *rewrite {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, path) != string(want) {
		t.Errorf("%s is not what serve's flags make it: go test ./deploy -rewrite writes it anew", path)
	}
}
