#!/bin/sh
# Writes what a program of mmserve is made of, as a CycloneDX document: the Go modules that are in it, and ONNX Runtime's
# library that lies beside it.   scripts/sbom.sh bin/mmserve bin/mmserve.cdx.json
set -eu
program=$(realpath "$1")
document=$(realpath -m "$2")
cd "$(dirname "$0")/.."
go=${GO:-go}
$go -C tools/sbom tool cyclonedx-gomod bin -json -std -licenses=false -output "$document" "$program"
$go -C tools/sbom run . -lock ../../package-lock.json "$document"
