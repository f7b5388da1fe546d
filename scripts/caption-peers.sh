#!/bin/bash
# Captions a folder of photos with `mmserve caption`, with a shell loop over llama-server, and with a transformers.js script:
# what people write who have no pipeline. Each does one round in turn; images a second, without loading the model, go to
# standard output.
# Needs what `make bench-peers` needs (its peers' folder is PEERS), curl, jq, and a bin/mmserve.
#
#   scripts/caption-peers.sh [IMAGES] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/.."
images=${1:-24} rounds=${2:-3} tokens=24 prompt='Describe the image.'
peers=${PEERS:-$HOME/.cache/mmserve-peers}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
go run ./cmd/bench-peers -write "$work/photos" -photos "$images"

rate() { # name, seconds
  awk -v n="$1" -v s="$2" -v i="$images" 'BEGIN { printf "%-16s %7.2f s %7.3f images/s\n", n, s, i / s }'
}

with_mmserve() {
  rm -rf "$work/out"*
  bin/mmserve --log-level error serve --model "$peers/models/hf" --precision int8 --listen 127.0.0.1:18200 --admin-address '' &
  local pid=$! t
  bin/mmserve caption model/tiny-vlm/samples/sample0.png -o "$work/out.warm.jsonl" --server 127.0.0.1:18200 \
    --max-tokens 2 --progress none >/dev/null 2>&1
  t=$(date +%s.%N)
  bin/mmserve caption "$work/photos" -o "$work/out.jsonl" --server 127.0.0.1:18200 --prompt "$prompt" \
    --max-tokens $tokens --progress none >/dev/null 2>&1
  rate mmserve "$(echo "$(date +%s.%N) - $t" | bc)"
  kill $pid && wait $pid || true
}

with_llama() {
  local root="$peers/sid" models=/h3 start=(chroot "$peers/sid" llama-server) t f pid
  if command -v llama-server >/dev/null; then start=(llama-server) models=$peers/models; fi
  PATH=/usr/bin:/usr/sbin:/bin:/sbin "${start[@]}" -m $models/lm-q8_0.gguf --mmproj $models/mm1-q8_0.gguf -t 2 -tb 2 -c 8192 \
    --host 127.0.0.1 --port 18201 --no-webui --offline >"$work/llama.log" 2>&1 &
  pid=$!
  until curl -sf http://127.0.0.1:18201/health >/dev/null; do sleep 0.2; done
  local marker
  marker=$(curl -s http://127.0.0.1:18201/props | jq -r '.media_marker // "<__media__>"')
  t=$(date +%s.%N)
  for f in "$work"/photos/*.jpg; do
    base64 -w0 "$f" >"$work/data"
    jq -n --rawfile d "$work/data" --arg p "$marker$prompt" --argjson n $tokens \
      '{prompt: {prompt_string: $p, multimodal_data: [$d]}, n_predict: $n, temperature: 0}' |
      curl -sf http://127.0.0.1:18201/completion -d @- | jq -c --arg f "$f" '{file: $f, text: .content}' >>"$work/llama.jsonl"
  done
  rate llama-server "$(echo "$(date +%s.%N) - $t" | bc)"
  kill $pid && wait $pid || true
}

with_transformers() {
  cat >"$peers/tjs/caption.mjs" <<'JS'
import fs from 'node:fs';
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from '@huggingface/transformers';
const [folder, prompt, tokens] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = new URL('models/', import.meta.url).pathname;
const processor = await AutoProcessor.from_pretrained('smol');
const model = await AutoModelForImageTextToText.from_pretrained('smol', {
  dtype: 'fp32', session_options: { intraOpNumThreads: 2, interOpNumThreads: 1 },
});
const began = performance.now();
for (const f of fs.readdirSync(folder)) {
  const image = await RawImage.read(`${folder}/${f}`);
  const inputs = await processor('<image>' + prompt, [image]);
  const out = await model.generate({ ...inputs, max_new_tokens: Number(tokens), do_sample: false });
  fs.appendFileSync(`${folder}/../tjs.jsonl`, JSON.stringify({ f, text: processor.batch_decode(out)[0] }) + '\n');
}
console.log((performance.now() - began) / 1000);
JS
  rate transformers.js "$(cd "$peers/tjs" && node caption.mjs "$work/photos" "$prompt" $tokens | tail -1)"
}

for _ in $(seq "$rounds"); do
  with_mmserve
  with_llama
  with_transformers
done
