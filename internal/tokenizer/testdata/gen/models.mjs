// Makes ../wordpiece.json.gz and ../unigram.json.gz, whose models are trained on this
// repository's LICENSE and on ../corpus.json.gz:
//
//   npm install --prefix /tmp/gold tokenizers@0.23.2
//   apt-get install sentencepiece            (0.1.97)
//   NODE_PATH=/tmp/gold/node_modules node models.mjs
//
// The WordPiece model is what BERT's tokenizer.json looks like, trained by the npm
// package. The Unigram model is trained by spm_train, with SentencePiece's own rules of
// normalization (nmt_nfkc), and written as transformers converts such a model.
import { createRequire } from "node:module";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { gunzipSync, gzipSync } from "node:zlib";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const { Tokenizer, WordPiece, bertNormalizer, bertPreTokenizer } = createRequire(import.meta.url)("tokenizers");
const data = join(dirname(fileURLToPath(import.meta.url)), "..");
const tmp = mkdtempSync(join(tmpdir(), "models-"));
const write = (name, value) => writeFileSync(join(data, name), gzipSync(JSON.stringify(value), { level: 9 }));
const added = (id, content, flags = {}) => ({ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: true, ...flags });

const corpus = JSON.parse(gunzipSync(readFileSync(join(data, "corpus.json.gz"))));
const text = readFileSync(join(data, "../../../LICENSE"), "utf8") + corpus.filter((s) => s.length < 300 && !/[<|]/.test(s)).join("\n");
writeFileSync(join(tmp, "text"), text.replaceAll("\0", ""));

// WordPiece
const trained = new Tokenizer(WordPiece.empty());
trained.setNormalizer(bertNormalizer());
trained.setPreTokenizer(bertPreTokenizer());
trained.train([join(tmp, "text")]);
const specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const vocab = Object.entries(trained.getVocab()).sort((a, b) => a[1] - b[1]).map(([token]) => token).filter((t) => !specials.includes(t));
// A frequent token less often than the trainer wants it, so that words are cut, too.
const pieces = specials.concat(vocab.filter((t, i) => t.length < 3 || i % 3));
write("wordpiece.json.gz", {
  version: "1.0", truncation: { direction: "Right", max_length: 128, strategy: "LongestFirst", stride: 0 }, padding: null,
  added_tokens: specials.map((s, i) => added(i, s)),
  normalizer: { type: "BertNormalizer", clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true },
  pre_tokenizer: { type: "BertPreTokenizer" },
  post_processor: { type: "TemplateProcessing", single: [{ SpecialToken: { id: "[CLS]", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "[SEP]", type_id: 0 } }],
    pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
    special_tokens: { "[CLS]": { id: "[CLS]", ids: [2], tokens: ["[CLS]"] }, "[SEP]": { id: "[SEP]", ids: [3], tokens: ["[SEP]"] } } },
  decoder: { type: "WordPiece", prefix: "##", cleanup: true },
  model: { type: "WordPiece", unk_token: "[UNK]", continuing_subword_prefix: "##", max_input_chars_per_word: 100, vocab: Object.fromEntries(pieces.map((t, i) => [t, i])) },
});
console.log("WordPiece:", pieces.length, "tokens");

// Unigram
execFileSync("spm_train", [`--input=${join(tmp, "text")}`, `--model_prefix=${join(tmp, "m")}`, "--model_type=unigram", "--vocab_size=3000", "--hard_vocab_limit=false", "--byte_fallback",
  "--character_coverage=0.98", "--pad_id=0", "--eos_id=1", "--unk_id=2", "--bos_id=-1", "--num_threads=1"], { stdio: "ignore" });
const fields = function* (bytes) { // of a protocol buffer message: [number, value]
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const varint = () => { let n = 0, shift = 1, b; do { b = bytes[at++]; n += (b & 127) * shift; shift *= 128; } while (b & 128); return n; };
  let at = 0;
  while (at < bytes.length) {
    const key = varint(), number = key >> 3;
    if ((key & 7) === 0) yield [number, varint()];
    else if ((key & 7) === 5) { yield [number, view.getFloat32(at, true)]; at += 4; }
    else { const n = varint(); yield [number, bytes.subarray(at, at + n)]; at += n; }
  }
};
const scored = [];
let charsmap;
for (const [number, value] of fields(readFileSync(join(tmp, "m.model")))) {
  if (number === 1) { const piece = Object.fromEntries(fields(value)); scored.push([Buffer.from(piece[1]).toString(), piece[2] ?? 0]); }
  if (number === 3) charsmap = Buffer.from(Object.fromEntries(fields(value))[2]).toString("base64");
}
const metaspace = { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true };
write("unigram.json.gz", {
  version: "1.0", truncation: null, padding: null,
  added_tokens: [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>"), added(scored.length, "<extra_id_0>"), added(scored.length + 1, "<mask>", { lstrip: true })],
  normalizer: { type: "Sequence", normalizers: [{ type: "Precompiled", precompiled_charsmap: charsmap }, { type: "Replace", pattern: { Regex: " {2,}" }, content: " " }] },
  pre_tokenizer: metaspace,
  post_processor: { type: "TemplateProcessing", single: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "</s>", type_id: 0 } }], pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 0 } }],
    special_tokens: { "</s>": { id: "</s>", ids: [1], tokens: ["</s>"] } } },
  decoder: { type: "Sequence", decoders: [{ type: "ByteFallback" }, metaspace] },
  model: { type: "Unigram", unk_id: 2, byte_fallback: true, vocab: scored },
});
console.log("Unigram:", scored.length, "tokens,", charsmap.length, "characters of rules");
