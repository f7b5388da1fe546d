// What an answer cost, and how sure the model was of it.
import { useComputed, useSignal } from "@preact/signals";
import { count, t, type Key } from "./messages";
import type { Result, Timings, TokenLogprob } from "./model";

const stages: [keyof Timings, Key][] = [
  ["preprocess_ms", "stagePreprocess"], ["tokenize_ms", "stageTokenize"], ["encode_ms", "stageEncode"],
  ["queue_ms", "stageQueue"], ["prefill_ms", "stagePrefill"], ["decode_ms", "stageDecode"],
];

const ms = (n: number) => t("ms", count(n, n < 10 ? 1 : 0));

/** Tokens a second after the first. */
export function speed(r: Result): number | undefined {
  const n = (r.usage?.completion_tokens ?? 0) - 1, time = r.timings?.decode_ms ?? 0;
  return n > 0 && time > 0 ? (1000 * n) / time : undefined;
}

/** Where the time went, in the order in which it did. */
export function Timeline({ result: r }: { result: Result }) {
  const times = r.timings, usage = r.usage;
  if (!times || !usage) return null;
  const sum = stages.reduce((n, [k]) => n + times[k], 0) || 1, rate = speed(r), cached = usage.prompt_tokens_details;
  return (
    <details class="timeline">
      <summary>{t("timelineSummary", count(usage.completion_tokens), ms(times.ttft_ms), rate ? count(rate, 1) : "–")}</summary>
      <div class="bars" aria-hidden="true">
        {stages.map(([k], i) => times[k] > 0 && <span key={k} class={`bar c${i + 1}`}
          style={{ flexGrow: times[k] / sum }} />)}
      </div>
      <dl>
        {stages.map(([k, label], i) => <div key={k}><dt><span class={`dot c${i + 1}`} aria-hidden="true" />{t(label)}</dt>
          <dd>{ms(times[k])}</dd></div>)}
        <div><dt>{t("ttft")}</dt><dd>{ms(times.ttft_ms)}</dd></div>
        <div><dt>{t("total")}</dt><dd>{ms(times.total_ms)}</dd></div>
        <div><dt>{t("inBrowser")}</dt><dd>{ms(r.clientTTFT)} / {ms(r.clientTotal)}</dd></div>
        {rate !== undefined && <div><dt>{t("rate")}</dt><dd>{count(rate, 1)}</dd></div>}
        <div><dt>{t("promptTokens")}</dt><dd>{count(usage.prompt_tokens)}{cached && " "}
          {cached && t("promptParts", count(cached.text_tokens), count(cached.image_tokens), count(cached.cached_tokens))}</dd></div>
        <div><dt>{t("answerTokens")}</dt><dd>{count(usage.completion_tokens)}</dd></div>
      </dl>
    </details>
  );
}

/** How likely each choice is, the likeliest first. */
export function Scores({ choices, scores }: { choices: string[]; scores: number[] }) {
  const list = choices.map((text, i) => ({ text, p: scores[i] ?? 0 })).sort((a, b) => b.p - a.p);
  return (
    <dl class="scores" aria-label={t("scores")}>
      {list.map((c) => <div key={c.text}>
        <dt>{c.text}</dt>
        <dd><span class="track" aria-hidden="true"><span class="bar c1" style={{ width: `${100 * c.p}%` }} /></span>
          {count(100 * c.p, 1)} %</dd>
      </div>)}
    </dl>
  );
}

/** The texts of tokens: bytes that are no whole character wait for the next token. */
export function tokenTexts(list: TokenLogprob[]): string[] {
  const decoder = new TextDecoder();
  return list.map((k, i) => decoder.decode(new Uint8Array(k.bytes), { stream: i < list.length - 1 }));
}

const percent = (logprob: number) => 100 * Math.exp(logprob);
const shownPercent = (logprob: number) => (percent(logprob) < 0.1 ? `< ${count(0.1, 1)} %` : `${count(percent(logprob), 1)} %`);
/** 0 for what was sure, 5 for what was least. */
const heat = (logprob: number) => Math.min(5, Math.floor((100 - percent(logprob)) / 16));

/** The answer with each token's probability. One tab stop: arrow keys go from token to token. */
export function Heatmap({ list }: { list: TokenLogprob[] }) {
  const at = useSignal(0), texts = tokenTexts(list);
  const shown = useComputed(() => list[Math.min(at.value, list.length - 1)]).value;
  if (!shown) return null;
  const move = (e: KeyboardEvent) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -list.length, End: list.length }[e.key];
    if (step === undefined) return;
    e.preventDefault();
    at.value = Math.max(0, Math.min(list.length - 1, at.value + step));
  };
  return (
    <details class="heatmap">
      <summary>{t("heatmap")}</summary>
      <p class="note" id="heat-help">{t("heatHelp")}</p>
      <div class="tokens" tabIndex={0} role="group" aria-label={t("heatmap")} aria-describedby="heat-help" onKeyDown={move}
        onMouseOver={(e) => {
          const i = (e.target as HTMLElement).dataset["i"];
          if (i !== undefined) at.value = Number(i);
        }}>
        {list.map((k, i) => <span key={i} data-i={i} class={`token heat${heat(k.logprob)}${i === at.value ? " current" : ""}`}>
          {texts[i]}</span>)}
      </div>
      <div class="alternatives" aria-live="polite">
        <p><code>{JSON.stringify(shown.token)}</code> {shownPercent(shown.logprob)}</p>
        <ul>{(shown.top_logprobs ?? []).map((o, i) => <li key={i}>
          <code>{JSON.stringify(o.token)}</code> <span class="track" aria-hidden="true">
            <span class="bar c2" style={{ width: `${percent(o.logprob)}%` }} /></span> {shownPercent(o.logprob)}
        </li>)}</ul>
      </div>
    </details>
  );
}
