#!/usr/bin/env bash
# Fails when the generated Go beside the .proto files is not what `make proto` would write.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go tool -modfile=tools/go.mod buf lint
go tool -modfile=tools/go.mod buf generate -o "$tmp"
diff -ru --exclude='*.proto' proto "$tmp/proto" || { echo "generated Go is stale: run make proto" >&2; exit 1; }
