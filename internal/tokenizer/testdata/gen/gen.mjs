// Makes ../corpus.json.gz, ../golden-*.json.gz, ../decode-*.json.gz, ../variants.json.gz and
// ../models.json.gz with the reference implementation, the node binding of
// huggingface/tokenizers (../wordpiece.json.gz and ../unigram.json.gz are made by models.mjs):
//
//   npm install --prefix /tmp/gold tokenizers@0.23.2
//   NODE_PATH=/tmp/gold/node_modules node gen.mjs
//
// Decoders of type Strip with a stop are left out: version 0.23.2 aborts on short tokens.
// The corpus is made from a seed, so that a run with the same version changes nothing.
import { createRequire } from "node:module";
import { readFileSync, writeFileSync } from "node:fs";
import { gunzipSync, gzipSync } from "node:zlib";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const { Tokenizer, bertNormalizer, bertPreTokenizer } = createRequire(import.meta.url)("tokenizers");
const data = join(dirname(fileURLToPath(import.meta.url)), "..");
const write = (name, value) => writeFileSync(join(data, name), gzipSync(JSON.stringify(value), { level: 9 }));

// mulberry32
let state = 20240229;
const random = () => {
  state = (state + 0x6d2b79f5) | 0;
  let t = Math.imul(state ^ (state >>> 15), 1 | state);
  t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};
const below = (n) => Math.floor(random() * n);
const pick = (list) => list[below(list.length)];
const times = (n, f) => Array.from({ length: n }, (_, i) => f(i));

const names = ["granite-docling", "phi-2-codegen", "phi-3-vision", "vit-gpt2", "tiny-vlm"];
const files = Object.fromEntries(names.map((n) => [n, JSON.parse(gunzipSync(readFileSync(join(data, n + ".json.gz"))))]));
const specials = [...new Set(names.flatMap((n) => files[n].added_tokens.map((t) => t.content)))];
const marked = specials.filter((s) => s.includes("<"));

const spaces = [" ", "  ", "   ", "\t", "\n", "\r", "\r\n", "\v", "\f", "\u0085", "\u00a0", "\u1680", "\u2000", "\u2003",
  "\u2007", "\u2009", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u200b", "\u2060", "\ufeff", "\u180e", "\u001c", "\u001f"];
const words = ("the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one " +
  "you were all her she there would their we him been has when who will no more if out so up said what its about than into them can " +
  "only other time new some could these two may first then do any like my now over such our man me even most made after also did many " +
  "image picture describe caption table figure photograph tokenizer internationalization antidisestablishmentarianism McDonald's " +
  "don't I'm we've they'll he'd you're it's DON'T I'M WE'VE THEY'LL HE'D YOU'RE IT'S Don'T rock'n'roll 'tis o'clock ''s 'S 'LL x's").split(" ");
const scripts = ["Ünïcödé façade naïve Straße ŒUVRE", "Ελληνικά γλώσσα ΣΊΣΥΦΟΣ ὀδός", "Привет, мир! Ёлка", "שלום עולם נִקּוּד",
  "مرحبا بالعالم؟ ١٢٣٤ ـــ", "हिन्दी क्षत्रिय १२३", "தமிழ் ௧௨௩", "ไทยไม่มีช่องว่าง ๑๒๓", "ភាសាខ្មែរ", "မြန်မာဘာသာ", "ქართული ენა", "Հայերեն",
  "中文分词测试,你好世界。", "繁體中文測試「引號」", "日本語のテキスト、カタカナとひらがな。", "ﾊﾝｶｸ ｶﾀｶﾅ", "한국어 띄어쓰기 테스트", "한글 자모", "አማርኛ",
  "ᐃᓄᒃᑎᑐᑦ", "𐌰𐌱𐌲 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒯ℯ𝓍𝓉 𝟘𝟙𝟚", "ʰʱʲ ªº ǅǈǋ ǆ", "ﬁ ﬂ ﬀ ſt ẞ ŉ İ ı K Å", "①②③ ⅣⅤ ½¼¾ ²³¹ ₀₁ ㊿ 〇 ⅰ", "٠١٢٣ ۰۱۲ ०१२ ০১২", "Ⓐⓑ ⒜ ͅ"];
const emoji = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷🇯", "❤️", "☎️", "1️⃣", "#️⃣", "🧑🏿‍🚀", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\u{1F9D1}\u200d", "\ufe0f", "\u200d\u200d", "🫠", "🀄"];
const marks = ["e\u0301", "é", "a\u0323\u0307", "a\u0307\u0323", "ế", "e\u0302\u0301", "\u0301", "\u0308x", "n\u0303o", "Å", "A\u030a", "ﷺ", "각", "각", "각",
  "q\u0307\u0323", "\u0344", "क\u093c", "க\u0bc6\u0bbe", "\u0f73", "Z\u0335\u0321\u0353\u0318\u0326a\u0334l\u0336\u034dg\u0338o\u0337", "\u1e9b\u0323",
  "x" + "\u0301".repeat(40), "o" + "\u0323\u0301".repeat(25), "\u0345\u0301".repeat(20) + "a"];
const odd = ["\u0000", "\u0001", "\u0007", "\u001b[31m", "\u007f", "\u0080", "\u009f", "\u00ad", "\u200e", "\u200f", "\u202e", "\u2066", "\u2069", "\ufffd",
  "\ufffe", "\uffff", "\ufdd0", "\u{10ffff}", "\u{1fffe}", "\ue000", "\u{f0000}", "\u{e0001}", "\u0378", "Ã©", "â€™", "�", "%C3%A9", "\\xff", "\\u0000",
  "&#x27;", "<0x41>", "<0xE4>", "<0x0A>", "▁", "▁▁", "a▁b", "▁▁x", " ▁ ", "Ġ", "Ċ", "Ġthe", "âĢĻ", "</w>", "##ing", "[UNK]", "<unk>", "<s>", "</s>", "<pad>"];
const numbers = ["0", "7", "42", "007", "123", "1234", "12345", "1234567890123456789", "3.14159", "-1", "1e-9", "1,000,000.00", "0x1F", "1st 2nd 3rd", "2024-02-29T12:34:56Z",
  "+49 (0)30 1234-567", "192.168.0.1", "v1.2.3-rc4", "50%", "$9.99", "€1.234,56", "1/2", "3x4", "a1b2c3", "١٢٣٤٥", "１２３４", "²³", "12½", "9".repeat(70)];
const code = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i];\n}\n", "if err != nil {\n\treturn fmt.Errorf(\"%w\", err)\n}",
  "<html>\n  <body class=\"x\">&amp;</body>\n</html>", "SELECT * FROM t WHERE a='b''c' AND d<>1;", "{\"a\": [1, 2, {\"b\": null}]}", "x=1;y=2;;z=3", "a->b::c<d>()", "#!/bin/sh\nset -eu\n",
  "$\\frac{a}{b}$ \\begin{x}", "```go\nfunc main() {}\n```", "| a | b |\n|---|---|\n| 1 | 2 |", "http://user:pw@example.com:80/p/a?q=1&r=%20#f", "C:\\Users\\x\\y.txt", "user.name+tag@example.co.uk",
  "λ x → x", "a\\\nb", "    four\n\tTab\n  two\n        eight", "camelCaseIdentifier snake_case_identifier SCREAMING_CASE kebab-case", "/* c */ // d", "===!!!===", "....", "?!?!", "---\n***\n___"];
const runes = ["a", "A", " ", "\n", "\t", ".", "-", "0", "é", "中", "😀", "\u0301", "'", "<", "▁", "\u00a0", "ab", " a", "\n ", "\r\n", "!?", "1a", "' ", "'s", "<|", "|>", "aA", "   x", "\u3000", "ſ"];

const anyRune = () => {
  const [low, high] = pick([[0x20, 0x7e], [0x20, 0x7e], [0, 0xff], [0x100, 0x24f], [0x370, 0x52f], [0x590, 0x7bf], [0x900, 0xdff], [0x1e00, 0x2bff],
    [0x3000, 0x30ff], [0x4e00, 0x9fff], [0xac00, 0xd7a3], [0xe000, 0xffff], [0x10000, 0x1ffff], [0x20000, 0x2a6df], [0xe0000, 0xe01ef]]);
  const r = low + below(high - low + 1);
  // The reference's tables for Punctuation and StripAccents are older than these two.
  return r === 0x61d || r === 0xc3c ? "?" : String.fromCodePoint(r);
};
const any = () => pick([() => pick(words), () => pick(words), () => pick(spaces), () => " ", () => pick(scripts), () => pick(emoji), () => pick(marks), () => pick(odd),
  () => pick(numbers), () => pick(code), () => pick(marked), anyRune, () => pick("'\"-.,;:!?()[]{}<>|/\\@#$%^&*_+=~`".split(""))])();

const corpus = [
  "", ...specials, ...spaces, ...words, ...scripts, ...emoji, ...marks, ...odd, ...numbers, ...code,
  ...runes.flatMap((r) => [2, 3, 4, 7, 16, 33, 65, 130].map((n) => r.repeat(n))),
  ...spaces.flatMap((s) => [s + "x", "x" + s, "x" + s + "y", s + s + "x", "x" + s + s, "." + s + "x", "x" + s + s + "y", "1" + s + "2", "'s" + s]),
  ...marked.slice(0, 60).flatMap((s) => [s + s, "a" + s + "b", " " + s + " ", "\n\t" + s + "\u3000 \n", s.slice(0, -1), s.slice(1), s.slice(0, -1) + s, s.toUpperCase(), s[0] + " " + s.slice(1)]),
  ...times(120, () => pick(marked) + pick(marked) + pick(marked)),
  ...times(120, () => pick(marked) + pick(spaces) + pick(words) + pick(spaces) + pick(marked) + pick(code)),
  ...times(150, () => times(2 + below(12), () => pick(words)).join(pick([" ", " ", "  ", "", "\n", ", ", "'", "-", "_"]))),
  ...times(150, () => times(1 + below(8), () => pick(spaces)).join("") + pick(["", "a", "1", ".", "中", "\u0301"])),
  ...times(200, () => times(2 + below(10), any).join("")),
  ...times(200, () => times(2 + below(6), any).join(" ")),
  ...times(150, () => times(1 + below(16), anyRune).join("")),
  ...times(80, () => times(1 + below(8), () => pick(marks) + pick(["", "", " ", pick(scripts).slice(0, 2)])).join("")),
  ...times(80, () => times(1 + below(10), () => pick(runes)).join("")),
  "a".repeat(3000), " ".repeat(500) + "x", "\n".repeat(300), "ab ".repeat(400), "1".repeat(1000), "中".repeat(300), "<".repeat(400), "'s".repeat(200), "\u0301".repeat(200),
].map((s) => s.toWellFormed?.() ?? Buffer.from(s).toString());
const unique = [...new Set(corpus)];

// BERT's steps have the reference's own tables, of Unicode 8 or so: a text with a later
// mark, punctuation or format character cannot be compared.
const cleaner = bertNormalizer({ cleanText: true, handleChineseChars: false, stripAccents: true, lowercase: false });
const cutter = bertPreTokenizer();
const later = (json, text) => json.normalizer?.type === "BertNormalizer" && [...text].some((c) => /[\p{M}\p{P}\p{Cf}]/u.test(c) && (
  /[\p{Mn}\p{Cf}]/u.test(c) !== (cleaner.normalizeString("a" + c + "b") === "ab") || /\p{P}/u.test(c) !== (cutter.preTokenizeString("a" + c + "b").length === 3)));

async function golden(json, texts, decodes) {
  const t = Tokenizer.fromString(JSON.stringify(json));
  t.disableTruncation();
  t.disablePadding();
  const out = [];
  for (const text of texts) {
    if (later(json, text)) {
      out.push({ o: true });
      continue;
    }
    const ids = (await t.encode(text, null, { addSpecialTokens: false })).getIds();
    const withSpecial = (await t.encode(text, null, { addSpecialTokens: true })).getIds();
    // i: ids, s: with special tokens if they differ, d and k: decoded keeping and skipping special
    // tokens, from the ids with special tokens, if they differ from the text and from d.
    const entry = { i: ids };
    if (String(ids) !== String(withSpecial)) entry.s = withSpecial;
    if (decodes) {
      const kept = await t.decode(withSpecial, false);
      const skipped = await t.decode(withSpecial, true);
      if (kept !== text) entry.d = kept;
      if (skipped !== kept) entry.k = skipped;
    }
    out.push(entry);
  }
  return out;
}

write("corpus.json.gz", unique);
console.log(unique.length, "strings");
for (const n of names) write(`golden-${n}.json.gz`, await golden(files[n], unique, true));

// The ids decode to other bytes than text ever has: cut characters, bytes in a wrong order.
async function decodes(n) {
  const t = Tokenizer.fromString(JSON.stringify(files[n]));
  const size = t.getVocabSize();
  const lists = times(150, () => times(1 + below(12), () => below(random() < 0.5 ? size : Math.min(size, 300))));
  const out = [];
  for (const ids of lists) out.push({ ids, kept: await t.decode(ids, false), skipped: await t.decode(ids, true) });
  write(`decode-${n}.json.gz`, out);
}
for (const n of names) await decodes(n);

// Variants of small files: every step and option.
const split = (pattern, behavior = "Isolated", invert = false) => ({ type: "Split", pattern, behavior, invert });
const bytes = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
const seq = (...pretokenizers) => ({ type: "Sequence", pretokenizers });
const llama3 = String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
const gpt4o = String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
const added = (content, flags = {}) => ({ id: 0, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: false, ...flags });
const base = "tiny-vlm";
const phi = files["phi-3-vision"];
const sp = { // a small SentencePiece-style model
  type: "BPE", dropout: null, unk_token: "<unk>", continuing_subword_prefix: null, end_of_word_suffix: null, fuse_unk: true, byte_fallback: true, ignore_merges: false,
  vocab: Object.fromEntries(Object.entries(phi.model.vocab).filter(([, id]) => id < 1200)), merges: [],
};
sp.merges = phi.model.merges.filter((m) => { const [a, b] = m.split(" "); return [a, b, a + b].every((x) => x in sp.vocab); });
const noBytes = { ...sp, byte_fallback: false };
const spBase = { normalizer: phi.normalizer, pre_tokenizer: null, post_processor: phi.post_processor, decoder: phi.decoder, model: sp, added_tokens: phi.added_tokens.slice(0, 3) };
const patches = {
  "llama-3": { pre_tokenizer: seq(split({ Regex: llama3 }), bytes), model: { ignore_merges: true },
    post_processor: { type: "Sequence", processors: [{ type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true },
      { type: "TemplateProcessing", single: [{ SpecialToken: { id: "<|im_start|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }, { SpecialToken: { id: "<|im_end|>", type_id: 0 } }],
        pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
        special_tokens: { "<|im_start|>": { id: "<|im_start|>", ids: [1], tokens: ["<|im_start|>"] }, "<|im_end|>": { id: "<|im_end|>", ids: [2, 0], tokens: ["<|im_end|>", "<|endoftext|>"] } } }] } },
  "qwen-2": { normalizer: { type: "NFC" }, pre_tokenizer: seq(split({ Regex: llama3.replace("{1,3}", "") }), bytes) },
  "gpt-4o": { pre_tokenizer: seq(split({ Regex: gpt4o }, "Removed", true), bytes) },
  "smolvlm": { pre_tokenizer: seq({ type: "Digits", individual_digits: true }, { ...bytes, use_regex: true }) },
  "digits": { pre_tokenizer: seq({ type: "Digits", individual_digits: false }, bytes) },
  "prefix-space": { pre_tokenizer: { ...bytes, add_prefix_space: true, use_regex: true } },
  "roberta": { post_processor: { type: "RobertaProcessing", sep: ["<|im_end|>", 2], cls: ["<|im_start|>", 1], trim_offsets: true, add_prefix_space: false } },
  "bert": { post_processor: { type: "BertProcessing", sep: ["<|im_end|>", 2], cls: ["<|im_start|>", 1] } },
  ...Object.fromEntries(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"].map((type) => [type, { normalizer: { type } }])),
  "strip": { normalizer: { type: "Strip", strip_left: true, strip_right: true } },
  "strip-left": { normalizer: { type: "Sequence", normalizers: [{ type: "Strip", strip_left: true, strip_right: false }, { type: "NFD" }, { type: "StripAccents" }, { type: "Lowercase" }] } },
  "replace": { normalizer: { type: "Sequence", normalizers: [{ type: "Replace", pattern: { Regex: "\\s{2,}|a+" }, content: "<>" }, { type: "Replace", pattern: { String: "<>" }, content: "" }] } },
  ...Object.fromEntries(["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"].flatMap((behavior) => [
    [`split-${behavior}`, { pre_tokenizer: seq(split({ Regex: "\\s|[a-c']" }, behavior), bytes) }],
    [`split-${behavior}-invert`, { pre_tokenizer: seq(split({ Regex: "\\w+" }, behavior, true), bytes) }],
    [`split-${behavior}-string`, { pre_tokenizer: seq(split({ String: " " }, behavior), bytes) }],
    [`punctuation-${behavior}`, { pre_tokenizer: seq({ type: "Punctuation", behavior }, bytes) }]])),
  "expressions": { pre_tokenizer: seq(split({ Regex: "\\d(?=\\D)|(?:\\r?\\n)+(?!\\r?\\n)|[^\\S\\r\\n]+$|^\\p{Lu}+|\\u00e9|\\W{2,3}?|(?i)THE" }), bytes) },
  "empty-matches": { pre_tokenizer: seq(split({ Regex: "x*|\\s*" }), bytes) },
  "whitespace": { pre_tokenizer: seq({ type: "Whitespace" }, bytes) },
  "whitespace-split": { pre_tokenizer: seq({ type: "WhitespaceSplit" }, bytes) },
  "delimiter": { pre_tokenizer: seq({ type: "CharDelimiterSplit", delimiter: "a" }, bytes) },
  "added": { normalizer: { type: "Lowercase" }, added_tokens: [...files[base].added_tokens,
    added("THE", { normalized: true, single_word: true }), added("Image", { normalized: true, lstrip: true }), added("of", { rstrip: true }), added("  ", {}), added("'s", { lstrip: true, rstrip: true }),
    added("<mask>", { lstrip: true, rstrip: true, special: true, single_word: true }), added("of the", { special: true }), added("é", { normalized: true }), added("a", { special: true, normalized: true, single_word: true })] },
  "unmapped": { model: { vocab: Object.fromEntries(Object.entries(files[base].model.vocab).filter(([k]) => k !== "é" && k !== "Ġ")), merges: [] } },
  "unmapped-unk": { model: { unk_token: "<|endoftext|>", vocab: Object.fromEntries(Object.entries(files[base].model.vocab).filter(([k]) => k.length === 1 && k > "d" || k.startsWith("<"))), merges: [] } },
  "no-decoder": { decoder: null },
  "sp": spBase,
  "sp-no-fallback": { ...spBase, model: noBytes },
  "sp-unk-not-fused": { ...spBase, model: { ...noBytes, fuse_unk: false } },
  "sp-ignore-merges": { ...spBase, model: { ...sp, ignore_merges: true } },
  "sp-some-bytes": { ...spBase, model: { ...sp, vocab: Object.fromEntries(Object.entries(sp.vocab).filter(([k]) => !/^<0x[EF]/.test(k))) } },
  ...Object.fromEntries(["always", "first", "never"].flatMap((prepend_scheme) => [true, false].map((split) => [`sp-metaspace-${prepend_scheme}-${split}`, { ...spBase, normalizer: null,
    pre_tokenizer: { type: "Metaspace", replacement: "▁", prepend_scheme, split }, decoder: { type: "Metaspace", replacement: "▁", prepend_scheme, split } }]))),
  "sp-metaspace-old": { ...spBase, normalizer: { type: "Strip", strip_left: true, strip_right: false }, pre_tokenizer: { type: "Metaspace", replacement: "▁", add_prefix_space: true }, decoder: { type: "Metaspace", replacement: "▁", add_prefix_space: true } },
  "sp-metaspace-first-strip": { ...spBase, normalizer: { type: "Strip", strip_left: true, strip_right: false }, pre_tokenizer: seq({ type: "WhitespaceSplit" }, { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true }),
    decoder: { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true }] } },
  "sp-decoders": { ...spBase, decoder: { type: "Sequence", decoders: [{ type: "Fuse" }, { type: "Replace", pattern: { String: "▁" }, content: " " }, { type: "Strip", content: " ", start: 2, stop: 0 }] } },
  "sp-strip-each": { ...spBase, decoder: { type: "Sequence", decoders: [{ type: "Strip", content: "▁", start: 1, stop: 0 }, { type: "ByteFallback" }, { type: "Replace", pattern: { Regex: "[aeiou]+" }, content: "_" }] } },
  "suffix": { ...spBase, normalizer: { type: "Lowercase" }, pre_tokenizer: { type: "WhitespaceSplit" }, decoder: null, model: { type: "BPE", dropout: null, unk_token: "?", continuing_subword_prefix: "##", end_of_word_suffix: "</w>", fuse_unk: false, byte_fallback: false, ignore_merges: false,
    vocab: Object.fromEntries(["?", "a", "##a", "##b", "t", "##h", "##e</w>", "##e", "th", "the</w>", "a</w>", "##a</w>", "th##", "<s>"].map((k, i) => [k, i])), merges: [["t", "##h"], ["th", "##e</w>"]] } },
  "old-merges": { model: { merges: files[base].model.merges.map((m) => m.join(" ")) } },
};
const some = unique.filter((s, i) => s.length < 300 && i % 6 === 0).concat(marks, runes, [
  "The image OF the cat", "  the  image's of the  ", "<mask>", "a <mask> b", "a<mask>b", " a a ", "an a", "É é", "<|im_start|>the THE The<|im_end|> The", "   lead", "x▁y ▁z", "é\u00e9 a\u0301", "İstanbul ΣΑΣ", " <s> a</s>  b", "<s>", "the a thea ae", "ſ'ſ 'S don'ſ"]);
async function variants(file, base, patches, some) {
  const variants = [];
  for (const [name, patch] of Object.entries(patches)) {
    const json = structuredClone(base);
    for (const [key, value] of Object.entries(patch)) json[key] = key === "model" && !value.type ? { ...json.model, ...value } : value;
    try {
      variants.push({ name, json, golden: await golden(json, some, true) });
    } catch (e) {
      console.log(name, String(e));
    }
  }
  write(file, { texts: some, variants });
  console.log(variants.length, "variants,", some.length, "strings each");
}
await variants("variants.json.gz", files[base], patches, some);

// WordPiece and Unigram: the two trained models, then options on small ones. Scores are sums
// of powers of two, because the reference reads other decimals with an error of up to one bit.
for (const n of ["wordpiece", "unigram"]) {
  files[n] = JSON.parse(gunzipSync(readFileSync(join(data, n + ".json.gz"))));
  write(`golden-${n}.json.gz`, await golden(files[n], unique, true));
  await decodes(n);
}
const { unigram: uni, wordpiece } = files;
const pieces = (limit) => Object.fromEntries(Object.entries(wordpiece.model.vocab).filter(([, id]) => id < limit));
const bert = (options) => ({ normalizer: { ...wordpiece.normalizer, ...options } });
const scores = (list) => list.map((s, i) => [s, [0, -1, -2, -3, -2.5][i % 5]]); // many ways to cut have the same score
const letters = ["<unk>", "▁", "a", "b", "c", "e", "t", "h", "o", "s", "ab", "ba", "aa", "aaa", "abc", "bc", "th", "the", "▁the", "▁t", "▁a", "he", "▁ab", "es", "'s", "é", "中", "ée", "<s>", "x<unk>", "1", "12", "123", "23", ".", "..", "..."];
const small = { type: "Unigram", unk_id: 0, vocab: scores(letters), byte_fallback: false };
const plain = { normalizer: null, post_processor: null, added_tokens: [] };
const models = {
  "bert-cased": { ...bert({ lowercase: false }), model: { vocab: pieces(500) } },
  "bert-accents": { ...bert({ strip_accents: false }), model: { vocab: pieces(500) } },
  "bert-strip-cased": { ...bert({ strip_accents: true, lowercase: false }), model: { vocab: pieces(500) } },
  "bert-raw": { ...bert({ clean_text: false, handle_chinese_chars: false }), model: { vocab: pieces(500) } },
  "bert-short-words": { model: { max_input_chars_per_word: 4, vocab: pieces(1500) }, decoder: { type: "WordPiece", prefix: "##", cleanup: false } },
  "wordpiece-prefix": { normalizer: { type: "Lowercase" }, model: { continuing_subword_prefix: "", vocab: pieces(600) }, decoder: { type: "WordPiece", prefix: "", cleanup: true } },
  "wordpiece-untyped": { normalizer: null, pre_tokenizer: { type: "WhitespaceSplit" }, decoder: null, model: (({ type, ...rest }) => ({ ...rest, vocab: pieces(400) }))(wordpiece.model) },
  "unigram-ties": { ...plain, model: small, decoder: uni.decoder },
  "unigram-first": { ...plain, model: small, pre_tokenizer: { ...uni.pre_tokenizer, prepend_scheme: "first", split: false }, decoder: { ...uni.decoder.decoders[1], prepend_scheme: "first" } },
  "unigram-no-pre-tokenizer": { ...plain, model: small, pre_tokenizer: null, decoder: null },
  "unigram-bytes": { ...plain, normalizer: { type: "NFKC" }, model: { ...small, byte_fallback: true, vocab: scores(letters.concat(times(256, (b) => "<0x" + b.toString(16).toUpperCase().padStart(2, "0") + ">"))) } },
  "unigram-some-bytes": { ...plain, model: { ...small, byte_fallback: true, vocab: scores(letters.concat(times(224, (b) => "<0x" + b.toString(16).toUpperCase().padStart(2, "0") + ">"))) } },
  "unigram-last-unk": { ...plain, model: { ...small, unk_id: letters.length - 1 } },
  "unigram-twice": { ...plain, model: { ...small, vocab: scores(letters.concat(["a", "the", "▁the"])) }, added_tokens: [added("of", {})] },
  "unigram-high-scores": { ...plain, model: { ...small, vocab: letters.map((s, i) => [s, (i * 7 % 11) / 4 - 1]) } },
  "unigram-words": { normalizer: uni.normalizer.normalizers[0], pre_tokenizer: seq({ type: "WhitespaceSplit" }, uni.pre_tokenizer), model: { byte_fallback: false } },
  "unigram-strip": { normalizer: { type: "Sequence", normalizers: [uni.normalizer.normalizers[0], { type: "Strip", strip_left: false, strip_right: true }, { type: "Replace", pattern: { Regex: " {2,}" }, content: "▁" }] } },
  "word-ends": { ...plain, pre_tokenizer: { type: "WhitespaceSplit" }, decoder: { type: "BPEDecoder", suffix: "</w>" }, model: patches.suffix.model },
};
const bases = Object.fromEntries(Object.entries(models).map(([name, patch]) => [name, { ...(name.startsWith("unigram") ? uni : wordpiece), ...patch,
  model: patch.model?.type === undefined && name !== "wordpiece-untyped" ? { ...(name.startsWith("unigram") ? uni : wordpiece).model, ...patch.model } : patch.model }]));
await variants("models.json.gz", {}, bases, some.filter((_, i) => i % 3 === 0 || i >= some.length - 90)); // every third, and the hard ones at the end
