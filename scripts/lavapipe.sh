#!/usr/bin/env bash
# Prints the file that names Mesa's software Vulkan driver to the Vulkan loader, for VK_DRIVER_FILES. Installs the driver
# first if the machine has none that is new enough, which takes root and a Debian; else says on standard error why there
# is none and fails.
set -euo pipefail

# ONNX Runtime's WebGPU asks for extensions that Mesa has since release 25.
LEAST=25

found() {
	local icd
	for icd in /usr/share/vulkan/icd.d/lvp_icd*.json; do
		if [ -e "$icd" ] && [ "$(mesa)" -ge "$LEAST" ]; then
			echo "$icd"
			return
		fi
	done
	return 1
}

# mesa is the major release of the installed driver, 0 for none or one that no package brought.
mesa() {
	local v
	v=$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || true)
	v=${v#*:}
	v=${v%%.*}
	echo "${v:-0}"
}

no() {
	echo "no software Vulkan: $*" >&2
	exit 1
}

found && exit
[ "$(uname -s)" = Linux ] || no "this is no Linux"
command -v apt-get >/dev/null || no "this machine has no apt-get; install Mesa $LEAST or newer with its lavapipe driver"
[ "$(id -u)" = 0 ] || no "installing mesa-vulkan-drivers takes root"
. /etc/os-release
[ "${ID:-}" = debian ] || no "this is ${ID:-no distribution that is known}, not Debian"

# Backports lie beside the release on the mirror that the machine uses already.
deb822() { # FIELD: of the first stanza that has the release's own suite
	awk -v want="$1:" -v suite="$VERSION_CODENAME" '
		function done() { if (has && value != "" && !said) { print value; said = 1 } has = 0; value = "" }
		/^#/ { next }
		NF == 0 { done(); next }
		$1 == "Suites:" { for (i = 2; i <= NF; i++) if ($i == suite) has = 1 }
		$1 == want { value = $2 }
		END { done() }
	' /etc/apt/sources.list.d/*.sources 2>/dev/null
}
uri=$(deb822 URIs)
key=$(deb822 Signed-By)
if [ -z "$uri" ]; then
	uri=$(awk -v suite="$VERSION_CODENAME" '$1 == "deb" { for (i = 2; i < NF; i++) if ($i ~ /:\/\// && $(i+1) == suite) { print $i; exit } }' /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true)
fi
[ -n "$uri" ] || no "apt's sources name no mirror of Debian $VERSION_CODENAME"
list=$(mktemp --suffix .sources)
trap 'rm -f "$list"' EXIT
suite=$VERSION_CODENAME-backports
{
	echo "Types: deb"
	echo "URIs: $uri"
	echo "Suites: $VERSION_CODENAME $suite"
	echo "Components: main"
	if [ -n "$key" ]; then echo "Signed-By: $key"; fi
} >"$list"
# A list of sources of its own leaves the machine's as they are.
apt() { apt-get -q -o Dir::Etc::SourceList="$list" -o Dir::Etc::SourceParts=- "$@" >&2; }
apt update -o APT::Get::List-Cleanup=0 || no "the mirror gave no list of packages"
target=()
if apt-cache -o Dir::Etc::SourceList="$list" -o Dir::Etc::SourceParts=- policy | grep -q "a=.*backports"; then
	target=(-t "$suite")
fi
DEBIAN_FRONTEND=noninteractive apt install -y --no-install-recommends "${target[@]}" mesa-vulkan-drivers libvulkan1 ||
	no "mesa-vulkan-drivers could not be installed"
found || no "Mesa $(mesa) was installed, $LEAST is the least that works"
