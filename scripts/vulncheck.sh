#!/bin/sh
# Looks for known vulnerabilities that the code reaches. Where the database cannot be reached it says so and passes.
set -eu
cd "$(dirname "$0")/.."

govulncheck="${GO:-go} tool -modfile=tools/go.mod govulncheck"

# One query before the packages are loaded: an unreachable database shows here, in a second.
if ! why=$($govulncheck -mode query -format json "stdlib@$(${GO:-go} env GOVERSION)" 2>&1 >/dev/null); then
	case $why in
	*"fetching vulnerabilities"* | *"no such host"* | *"dial tcp"* | *timeout* | *refused* | *Forbidden* | *unreachable*)
		echo "govulncheck is skipped: its database cannot be reached: $(echo "$why" | tail -n 1)"
		exit 0
		;;
	esac
	echo "$why" >&2
	exit 1
fi
$govulncheck ./...
