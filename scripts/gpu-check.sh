#!/bin/sh
# What a machine's device does with mmserve, as one table, in under ten minutes: does the provider work, are the answers
# right, and how far is it from what the device's memory and multipliers allow?
#
#   scripts/gpu-check.sh --provider cuda --ort-lib /opt/onnxruntime/lib/libonnxruntime.so.1 [--precision fp16]
#   scripts/gpu-check.sh --provider webgpu --precision fp16
#   scripts/gpu-check.sh --provider cpu --quick        # the same at a fraction of the size, to try the script
#
# --shapes 256M leaves the 2B shape out; --rows 1,8,32 takes other numbers of sequences than 1,8,32,128. 128 of the 2B shape take
# 8 GB of weights and 20 GB of KV cache in fp32, half of both in fp16. A measurement that fails is said and left out of the table;
# the three are the tower, prompts, and decode steps with all numbers of rows.
#
# It needs what `make build` needs. PyTorch's transformers is measured beside it where python3 can import both.
set -eu
cd "$(dirname "$0")/.."

called="scripts/gpu-check.sh $*"
provider=cpu precision=fp32 rows=1,8,32,128 shapes=256M,2B side=4096 time=2s
while [ $# -gt 0 ]; do
	case $1 in
	--quick) ;;
	--*) [ $# -gt 1 ] || { echo "gpu-check.sh: $1 has no value" >&2; exit 2; } ;;
	esac
	case $1 in
	--provider) provider=$2; shift 2 ;;
	--precision) precision=$2; shift 2 ;;
	--ort-lib) MMSERVE_ORT_LIB=$2; export MMSERVE_ORT_LIB; shift 2 ;;
	--rows) rows=$2; shift 2 ;;
	--shapes) shapes=$2; shift 2 ;;
	--quick) rows=1,8 shapes=256M side=2048 time=3x; shift ;;
	*) echo "gpu-check.sh: unknown argument $1; it takes --provider NAME, --precision fp32|fp16, --ort-lib FILE, --rows LIST, --shapes 256M,2B, --quick" >&2; exit 2 ;;
	esac
done
case $precision in fp32 | fp16) ;; *) echo "gpu-check.sh: --precision $precision: want fp32 or fp16" >&2; exit 2 ;; esac

configs=
for name in $(echo "$shapes" | tr , ' '); do
	case $name in
	256M) configs="$configs 256M=testdata/granite-docling/config.json" ;;
	2B) configs="$configs 2B=scripts/gpu-check/2b.json" ;;
	*) echo "gpu-check.sh: --shapes $name: want 256M or 2B" >&2; exit 2 ;;
	esac
done

out=bin/gpu-check
mkdir -p $out
go build -o bin/mmserve ./cmd/mmserve
go test -c -o $out/ort.test ./internal/ort
go test -c -o $out/model.test ./model
began=$(date +%s)

echo "== machine"
date -u
uname -sm
if command -v nvidia-smi >/dev/null; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; fi
if command -v vulkaninfo >/dev/null; then vulkaninfo --summary 2>/dev/null | grep -E 'deviceName|driverInfo|apiVersion' || true; fi

echo "== provider $provider"
bin/mmserve doctor --provider "$provider" --precision "$precision" # fails where it does not work, or leaves work to the processor

echo "== reference cases, $precision"
# In fp16 an answer may differ in a token; 99 % have to be the same.
bin/mmserve --log-level error model verify model/tiny-vlm --references testdata/tiny-vlm-gold/gold.jsonl --provider "$provider" \
	--precision "$precision" --tolerance "$([ "$precision" = fp16 ] && echo 0.2 || echo 1e-3)" >$out/gold.txt || [ "$precision" = fp16 ] || { tail -n 20 $out/gold.txt; exit 1; }
tail -n 1 $out/gold.txt
awk '{ for (i = 1; i < NF; i++) if ($i == "generated_ids") { n++; same += $(i+1) == "equal" ? 100 : $(i+1) } }
	END { if (!n) { print "no answers were compared"; exit 1 } printf "generated ids: %.2f %% equal in %d cases\n", same/n, n; exit same/n < 99 }' $out/gold.txt

echo "== what the device can do"
MMSERVE_BENCH_PROVIDER=$provider MMSERVE_BENCH_PRECISION=$precision MMSERVE_BENCH_SIDE=$side \
	sh -c "cd internal/ort && ../../$out/ort.test -test.run '^\$' -test.bench '^BenchmarkRoofline\$' -test.benchtime $time" >$out/roofline.txt || { cat $out/roofline.txt; exit 1; }
grep '^Benchmark' $out/roofline.txt

: >$out/bench.txt
for shape in $configs; do
	name=${shape%%=*}
	dir=.cache/gpu-check-$name
	if ! [ -f "$dir/config.json" ]; then
		echo "== random weights, $name"
		rm -rf "$dir"
		bin/mmserve model init --config "${shape#*=}" --out "$dir"
	fi
	echo "== $name"
	for bench in Tower Prefill Decode; do
		MMSERVE_BENCH_MODEL=$PWD/$dir MMSERVE_BENCH_PROVIDER=$provider MMSERVE_BENCH_PRECISION=$precision MMSERVE_BENCH_ROWS=$rows \
			sh -c "cd model && ../$out/model.test -test.run '^\$' -test.bench '^Benchmark$bench\$' -test.benchtime $time" >$out/one.txt 2>$out/one.err || { echo "no numbers of $bench for $name:"; tail -n 20 $out/one.txt $out/one.err; }
		{ grep '^Benchmark.* ns/op' $out/one.txt || true; } | sed "s|^Benchmark|$name |" | tee -a $out/bench.txt
	done
done

if python3 -c 'import torch, transformers' 2>/dev/null; then
	echo "== PyTorch"
	for shape in $configs; do
		python3 scripts/gpu-check/torch_speed.py "${shape%%=*}" "${shape#*=}" "$precision" "$rows" || echo "no numbers of PyTorch for ${shape%%=*}"
	done | tee $out/torch.txt
else
	echo "== PyTorch: python3 has no torch and transformers here"
	: >$out/torch.txt
fi

# The table. A decode step reads every weight and each row's KV once; a prompt's position multiplies each weight once; a
# tile needs a known number of operations. Whichever of memory and multipliers takes longer is the bound.
echo "== table: $provider, $precision, $(date -u +%F), $called"
echo
awk -v bytes="$([ "$precision" = fp16 ] && echo 2 || echo 4)" '
	function metric(unit,  i) { for (i = 2; i <= NF; i++) if ($i == unit) return $(i-1); return 0 }
	function row(shape, what, got, bound, unit) {
		key = shape "/" what
		printf "| %s | %s | %.4g %s | %.4g %s | %.0f %% | %s |\n", shape, what, got, unit, bound, unit, 100*got/bound, key in torch ? torch[key] : "–"
	}
	FILENAME ~ /roofline/ { if (/copy/) copy = metric("GB/s"); if (/matmul/) flop = metric("GFLOP/s"); next }
	FILENAME ~ /torch/ { if (NF == 3) torch[$1 "/" $2] = $3; next }
	!head++ {
		printf "measured copy bandwidth %.4g GB/s, matrix products %.4g GFLOP/s\n\n", copy, flop
		print "| shape | what | mmserve | the bound | of it | PyTorch |\n|---|---|---|---|---|---|"
	}
	$2 ~ /^Tower/ { row($1, "tower", metric("images/s"), flop/metric("GFLOP/op"), "images/s") }
	$2 ~ /^Prefill/ { sub(/-[0-9]+$/, "", $2); sub(/^Prefill\//, "", $2)
		n = $2; weights = metric("Mweights")/1e3
		t = weights*bytes/copy; u = 2*weights*n/flop
		row($1, "prefill-" n, metric("tokens/s"), n/(t > u ? t : u), "tokens/s") }
	$2 ~ /^Decode/ { sub(/-[0-9]+$/, "", $2); sub(/^Decode\/rows=/, "", $2)
		n = $2; weights = metric("Mweights")/1e3; kv = metric("KV-MB/row")/1e3*bytes/4
		t = (weights*bytes + n*kv)/copy; u = 2*weights*n/flop
		row($1, "decode-" n, metric("tokens/s"), n/(t > u ? t : u), "tokens/s") }
' $out/roofline.txt $out/torch.txt $out/bench.txt | tee $out/table.md
echo
echo "took $(($(date +%s) - began)) s; the table is $out/table.md"
