#!/usr/bin/env bash
# Prints the compiler of C for ARM64 on Linux and, on other processors, the emulator that runs what it makes, with the folder
# that programs see for / where it has a file of the name. Installs both first where apt-get can, which takes root and a Debian;
# else it says on standard error what is missing and fails. usage: arm64.sh FOLDER
set -euo pipefail

no() {
	echo "no ARM64: $*" >&2
	exit 1
}

[ "$(uname -s)" = Linux ] || no "this is no Linux"
if [ "$(uname -m)" = aarch64 ]; then
	echo "${CC:-gcc}"
	exit
fi
CC=${CC_LINUX_ARM64:-aarch64-linux-gnu-gcc}
QEMU=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
ROOT=/usr/aarch64-linux-gnu # of the libraries that programs and ONNX Runtime are linked with
missing() { ! command -v "$CC" >/dev/null || [ -z "$QEMU" ] || [ ! -e $ROOT/include/stdlib.h ] || [ ! -e $ROOT/lib/libstdc++.so.6 ]; }
if missing; then
	command -v apt-get >/dev/null || no "no $CC or no qemu-aarch64-static with $ROOT, and no apt-get to install them with"
	[ "$(id -u)" = 0 ] || no "installing a compiler and qemu takes root"
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		gcc-aarch64-linux-gnu libc6-dev-arm64-cross libstdc++6-arm64-cross qemu-user-static >&2 || no "apt-get could not install them"
	QEMU=$(command -v qemu-aarch64-static || true)
	! missing || no "what apt-get installed lacks $CC, qemu-aarch64-static or $ROOT"
fi

# ONNX Runtime reads /proc/cpuinfo, and fails on that of another architecture. This is a Cortex-A76's.
mkdir -p "$1/proc"
ln -sfn $ROOT/lib "$1/lib"
for ((i = 0; i < $(nproc --all); i++)); do
	printf '%s\n' "processor : $i" 'BogoMIPS : 50.00' 'Features : fp asimd aes crc32 atomics fphp asimdhp asimddp' \
		'CPU implementer : 0x41' 'CPU architecture: 8' 'CPU variant : 0x3' 'CPU part : 0xd0b' 'CPU revision : 1' ''
done >"$1/proc/cpuinfo"
echo "$CC $QEMU -L $1"
