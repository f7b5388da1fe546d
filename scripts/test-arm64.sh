#!/usr/bin/env bash
# Builds mmserve for ARM64 on Linux, and tests there what depends on the processor: kernels as each kind of processor has
# them, images, the decoder, and captions, which have to be those of BIN, built for this machine. Elsewhere than on ARM64 it
# runs under qemu. usage: test-arm64.sh BIN
set -euo pipefail

GO=${GO:-go}
OUT=$PWD/.cache/arm64
mkdir -p "$OUT/root"
found=$(scripts/arm64.sh "$OUT/root") || { echo "test-arm64 is skipped"; exit 0; }
read -r CC EMULATOR <<<"$found"
export GOOS=linux GOARCH=arm64 CGO_ENABLED=1 CC

# on CPU COMMAND runs a program of this architecture as a processor of that name would.
on() {
	local cpu=$1
	shift
	${EMULATOR/ -L/ -cpu $cpu -L} "$@"
}

# check CPU PACKAGE ARGUMENTS runs a package's tests.
check() {
	local cpu=$1 pkg=$2
	shift 2
	[ -n "$EMULATOR" ] || cpu=native
	echo "== $pkg on $cpu"
	# ONNX Runtime logs what hostile nodes are refused for.
	if ! (cd "$pkg" && on "$cpu" "$OUT/${pkg//\//-}.test" -test.short -test.timeout 30m "$@") >"$OUT/log.txt" 2>&1; then
		grep -v '\[E:onnxruntime' "$OUT/log.txt" | tail -100
		exit 1
	fi
	tail -1 "$OUT/log.txt"
}

for pkg in internal/kernels internal/jpeg internal/imaging internal/graph decoder vision model; do
	$GO test -trimpath -c -o "$OUT/${pkg//\//-}.test" "./$pkg"
done
$GO build -trimpath -o "$OUT/mmserve" ./cmd/mmserve

# Both features, neither of them, and dotprod alone. What is skipped is about sizes, and takes minutes under qemu.
check max internal/kernels -test.skip '8Long|8Groups|Memory'
if [ -n "$EMULATOR" ]; then
	check cortex-a57 internal/kernels -test.run 'Bits|Scalar|Cached|Peaks|Exp'
	check cortex-a76 internal/kernels -test.run 'Bits|Scalar|Agree|SelfAttention8|Peaks|Exp'
fi
check max internal/jpeg
check max internal/imaging
check max internal/graph
check max decoder
check max vision
# Batches equal what is alone, bit for bit; ONNX Runtime multiplies in other ways where there is SME.
check max model -test.run 'TilesTogether|HostRunnerConforms|AsTransformers|ImagePositionsMatter'

for precision in fp32 int8 int4; do
	echo "== captions in $precision"
	"$1" caption --precision $precision | grep '^sample.*: ' >"$OUT/here.txt"
	on max "$OUT/mmserve" caption --precision $precision | grep '^sample.*: ' >"$OUT/there.txt"
	diff "$OUT/here.txt" "$OUT/there.txt"
done
on max "$OUT/mmserve" doctor | grep -E '^(system|features|kernels)'
