// The engines at work: snapshots that the server sends, drawn.
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { engineEvents, Failed, type EngineSnapshot } from "./api";
import { count, t } from "./messages";
import { Failed as FailedView } from "./parts";
import type { Failure } from "./model";

/** The newest snapshots, the latest last. */
const history = signal<{ time: number; engines: EngineSnapshot[] }[]>([]);
const failure = signal<Failure | null>(null);
const most = 120;

export function Engine() {
  useEffect(() => {
    const stop = new AbortController();
    void (async () => {
      while (!stop.signal.aborted) {
        try {
          for await (const s of engineEvents(stop.signal)) {
            failure.value = null;
            history.value = [...history.value, { time: s.time_ms, engines: s.engines }].slice(-most);
          }
        } catch (e) {
          if (stop.signal.aborted) return;
          failure.value = e instanceof Failed ? e.failure : { kind: "network", message: String(e) };
        }
        await new Promise((resolve) => setTimeout(resolve, 2000));
      }
    })();
    return () => {
      stop.abort();
      history.value = [];
    };
  }, []);
  const now = history.value.at(-1);
  return (
    <section class="engine scroller plain" tabIndex={0} aria-label={t("engine")}>
      {failure.value && <FailedView failure={failure.value} />}
      {now?.engines.map((e) => <EngineView key={e.model} now={e} />)}
    </section>
  );
}

/** What happened between two snapshots, for each pair of them. */
function rates(model: string, of: (a: EngineSnapshot, b: EngineSnapshot, seconds: number) => number): number[] {
  const list = history.value, out: number[] = [];
  for (let i = 1; i < list.length; i++) {
    const a = list[i - 1]!.engines.find((e) => e.model === model), b = list[i]!.engines.find((e) => e.model === model);
    if (a && b) out.push(of(a, b, Math.max(0.001, (list[i]!.time - list[i - 1]!.time) / 1000)));
  }
  return out;
}

const classes = ["classBatch", "classDefault", "classInteractive"] as const;

function EngineView({ now: e }: { now: EngineSnapshot }) {
  const tokens = rates(e.model, (a, b, s) => (b.generated_tokens - a.generated_tokens) / s);
  const prompt = rates(e.model, (a, b, s) => (b.prompt_tokens - a.prompt_tokens) / s);
  const rows = rates(e.model, (a, b) => {
    const steps = b.steps - a.steps - (b.prefill_steps - a.prefill_steps);
    return steps > 0 ? (b.decode_rows - a.decode_rows) / steps : 0;
  });
  return (
    <article class="panel" aria-label={e.model}>
      <h2>{e.model}</h2>
      <div class="gauges">
        <div><h3>{t("slots")}</h3><p>{t("slotsText", e.running, e.cached, e.slots)}</p>
          <div class="slots" aria-hidden="true">{Array.from({ length: Math.min(e.slots, 256) }, (_, i) => (
            <span key={i} class={i < e.running ? "running" : i < e.running + e.cached ? "cached" : ""} />))}</div></div>
        <div><h3>{t("queue")}</h3>
          <dl>{classes.map((c, i) => <div key={c}><dt>{t(c)}</dt><dd>{count(e.waiting[i] ?? 0)}</dd></div>)}
            <div><dt>{t("preparing")}</dt><dd>{count(e.preparing)}</dd></div></dl></div>
        <div><h3>{t("kv")}</h3><p>{t("kvText", count(e.kv_tokens), count(e.kv_budget))}</p>
          <span class="track" aria-hidden="true"><span class="bar c2"
            style={{ width: `${(100 * e.kv_tokens) / Math.max(1, e.kv_budget)}%` }} /></span></div>
        <Chart name={t("rate")} values={tokens} />
        <Chart name={t("promptRate")} values={prompt} />
        <Chart name={t("rowsAStep")} values={rows} />
      </div>
      <p class="note">{t("engineTotals", count(e.steps), count(e.generated_tokens), count(e.cached_tokens), count(e.preemptions))}</p>
    </article>
  );
}

function Chart({ name, values }: { name: string; values: number[] }) {
  const top = Math.max(1, ...values), last = values.at(-1) ?? 0;
  const points = values.map((v, i) => `${((i + most - values.length) / (most - 1)) * 200},${50 - (v / top) * 48}`).join(" ");
  return (
    <div><h3>{name}</h3><p>{count(last, 1)}</p>
      <svg class="chart" viewBox="0 0 200 50" preserveAspectRatio="none" aria-hidden="true"><polyline points={points} /></svg>
    </div>
  );
}
