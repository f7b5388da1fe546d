// Command sbom adds ONNX Runtime, which is no Go module, to the CycloneDX document of a program: the version and the
// SHA-512 of the package that the lock file pins.
package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func main() {
	lock := flag.String("lock", "package-lock.json", "npm's lock file")
	flag.Parse()
	if err := run(*lock, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// run rewrites a document.
func run(lock, document string) error {
	c, err := onnxRuntime(lock)
	if err != nil {
		return err
	}
	f, err := os.Open(document)
	if err != nil {
		return err
	}
	bom := new(cdx.BOM)
	err = cdx.NewBOMDecoder(f, cdx.BOMFileFormatJSON).Decode(bom)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if bom.Components == nil || len(*bom.Components) < 10 {
		return fmt.Errorf("%s names no modules: was the program built with -trimpath and its build information?", document)
	}
	*bom.Components = append(*bom.Components, c)
	out, err := os.Create(document)
	if err != nil {
		return err
	}
	e := cdx.NewBOMEncoder(out, cdx.BOMFileFormatJSON)
	e.SetPretty(true)
	return errors.Join(e.Encode(bom), out.Close())
}

// onnxRuntime is the component that the lock file pins.
func onnxRuntime(lock string) (c cdx.Component, err error) {
	raw, err := os.ReadFile(lock)
	if err != nil {
		return c, err
	}
	var l struct {
		Packages map[string]struct{ Version, Integrity string }
	}
	if err := json.Unmarshal(raw, &l); err != nil {
		return c, fmt.Errorf("%s: %w", lock, err)
	}
	p := l.Packages["node_modules/onnxruntime-node"]
	sum, ok := strings.CutPrefix(p.Integrity, "sha512-")
	hash, err := base64.StdEncoding.DecodeString(sum)
	if !ok || err != nil || p.Version == "" {
		return c, fmt.Errorf("%s pins no onnxruntime-node by SHA-512", lock)
	}
	return cdx.Component{
		Type: cdx.ComponentTypeLibrary, Name: "onnxruntime", Version: p.Version, BOMRef: "pkg:npm/onnxruntime-node@" + p.Version,
		PackageURL: "pkg:npm/onnxruntime-node@" + p.Version, Description: "libonnxruntime of the package, beside the program",
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA512, Value: hex.EncodeToString(hash)}},
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "MIT"}}},
	}, nil
}
