// The same question asked in two ways.
import { signal } from "@preact/signals";
import { Inputs } from "./composer";
import { images, text } from "./drafts";
import { Heatmap, Scores, Timeline } from "./insight";
import { Markdown } from "./markdown";
import { t } from "./messages";
import { defaults, newID, type Node, type Result, type Settings } from "./model";
import { Failed } from "./parts";
import { body, lines } from "./request";
import { SettingsForm } from "./settings";
import { askFor, noticed } from "./state";

interface Side { id: string; settings: Settings; result: Result | null; stop: AbortController | null }

const side = (more: Partial<Settings>): Side =>
  ({ id: newID(), settings: { ...defaults, ...more }, result: null, stop: null });
const sides = signal<Side[]>([side({}), side({ temperature: "1" })]);

function set(id: string, more: Partial<Side>) {
  sides.value = sides.value.map((s) => (s.id === id ? { ...s, ...more } : s));
}

async function ask(s: Side) {
  const stop = new AbortController();
  const turn: Node = { kind: "turn", id: "", parent: "", text: text.value.trim(), images: images.value };
  set(s.id, { result: null, stop });
  let frame = 0, latest: Result;
  const result = await askFor(() => body([turn], s.settings), stop.signal, (r) => {
    latest = r;
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      set(s.id, { result: { ...latest } });
    });
  });
  cancelAnimationFrame(frame);
  set(s.id, { result: { ...result }, stop: null });
  noticed(result);
}

export function Compare() {
  const busy = sides.value.some((s) => s.stop);
  const submit = () => {
    if (busy || text.value.trim() === "" && images.value.length === 0) return;
    for (const s of sides.value) void ask(s);
  };
  return (
    <section class="compare" aria-label={t("compare")}>
      <div class="scroller plain" tabIndex={0} role="region" aria-label={t("compareSides")}>
        {sides.value.map((s, i) => <SideView key={s.id} side={s} name={t("side", "AB"[i]!)} />)}
      </div>
      <Inputs onSubmit={submit}>
        {busy ? <button type="button" class="primary" onClick={() => sides.value.forEach((s) => s.stop?.abort())}>{t("stop")}</button>
          : <button type="submit" class="primary">{t("askBoth")}</button>}
      </Inputs>
    </section>
  );
}

function SideView({ side: s, name }: { side: Side; name: string }) {
  const r = s.result;
  return (
    <section class="side" aria-label={name}>
      <h2>{name}</h2>
      <details open={!r}><summary>{t("settings")}</summary>
        <SettingsForm value={s.settings} onChange={(settings) => set(s.id, { settings })} /></details>
      {(r || s.stop) && <article class="answer" aria-busy={!!s.stop}>
        {r ? <Markdown id={s.id} text={r.text} whole={!s.stop} /> : <p class="waiting">{t("answering")}</p>}
        {r?.failure && <Failed failure={r.failure} />}
        {r?.stopped && <p class="note">{t("stopped")}</p>}
        {r?.scores && <Scores choices={lines(s.settings.choices)} scores={r.scores} />}
        {r && !s.stop && r.logprobs.length > 0 && <Heatmap list={r.logprobs} />}
        {r && !s.stop && <Timeline result={r} />}
      </article>}
    </section>
  );
}
