// Command convert-tfjs makes a classifier for a policy of the MobileNet that npm's nsfwjs has: model.onnx and
// config.json in a folder.
//
//	go run ./cmd/convert-tfjs node_modules/nsfwjs/dist/models/mobilenet_v2 nsfw
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mmserve/mmserve/internal/tfjs"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: convert-tfjs FOLDER-OF-NSFWJS OUT")
		os.Exit(2)
	}
	if err := convert(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "convert-tfjs:", err)
		os.Exit(1)
	}
}

// labels are those of nsfwjs, in its order.
const labels = `{"id2label": {"0": "Drawing", "1": "Hentai", "2": "Neutral", "3": "Porn", "4": "Sexy"},
 "output_activation": "softmax"}
`

func convert(from, to string) error {
	config, err := module(filepath.Join(from, "model.min.js"))
	if err != nil {
		return err
	}
	coded, err := module(filepath.Join(from, "group1-shard1of1.min.js"))
	if err != nil {
		return err
	}
	weights, err := base64.StdEncoding.DecodeString(strings.Trim(coded, `"`))
	if err != nil {
		return err
	}
	g, err := tfjs.Convert([]byte(plainJSON(config)), weights)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(to, "config.json"), []byte(labels), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "model.onnx"), g.Bytes(), 0o600)
}

// bundled is a file with one module.
var bundled = regexp.MustCompile(
	`(?s)\{1:\[function\(\w,(\w),\w\)\{\w\.exports=(.*)\},\{\}\]\},\{\},\[1\]\)\(1\)\}\);?\s*$`)

// module is the value that a bundled module exports, as it is written there.
func module(path string) (string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	m := bundled.FindStringSubmatch(string(raw))
	if m == nil {
		return "", fmt.Errorf("%s: no module of one value", path)
	}
	return m[2], nil
}

var (
	key   = regexp.MustCompile(`([{,])([A-Za-z_$][A-Za-z_$0-9]*):`)
	point = regexp.MustCompile(`([:,\[]-?)\.(\d)`)
)

// plainJSON is a literal of JavaScript as JSON: with quotes around keys, booleans in words, and a nought before the
// point.
func plainJSON(js string) string {
	js = key.ReplaceAllString(js, `$1"$2":`)
	js = strings.NewReplacer(":!0", ":true", ":!1", ":false").Replace(js)
	return point.ReplaceAllString(js, "${1}0.${2}")
}
