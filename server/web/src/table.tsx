// One question about many images, each in a request of its own; the answers as a table and as CSV.
import { signal } from "@preact/signals";
import { Inputs } from "./composer";
import { images, text } from "./drafts";
import { count, t } from "./messages";
import type { Node, Picked, Result } from "./model";
import { failureText, Thumb } from "./parts";
import { body } from "./request";
import { askFor, settings } from "./state";

interface Row { image: Picked; result: Result | null; state: "waiting" | "asking" | "done" }

const rows = signal<Row[]>([]);
const stop = signal<AbortController | null>(null);

/** Requests at once, and tries of one that finds no place. */
const workers = 4, tries = 30;

function set(image: Picked, more: Partial<Row>) {
  rows.value = rows.value.map((r) => (r.image === image ? { ...r, ...more } : r));
}

const pause = (ms: number, until: AbortSignal) => new Promise<void>((resolve) => {
  const timer = setTimeout(resolve, ms);
  until.addEventListener("abort", () => { clearTimeout(timer); resolve(); });
});

async function askOne(row: Row, said: string, until: AbortSignal) {
  set(row.image, { state: "asking" });
  const turn: Node = { kind: "turn", id: "", parent: "", text: said, images: [row.image] };
  const s = { ...settings.value };
  for (let left = tries; ; left--) {
    const result = await askFor(() => body([turn], s), until, () => {});
    const f = result.failure;
    if ((f?.kind === "busy" || f?.kind === "loading") && left > 0 && !until.aborted) {
      await pause((f.retryAfter ?? 1000) * (1 + Math.random()), until);
      continue;
    }
    set(row.image, { state: "done", result });
    return;
  }
}

async function askAll() {
  const said = text.value.trim();
  if (images.value.length === 0 || said === "") return;
  const control = new AbortController();
  stop.value = control;
  rows.value = images.value.map((image) => ({ image, result: null, state: "waiting" as const }));
  const queue = [...rows.value];
  const work = async () => {
    for (let row = queue.shift(); row && !control.signal.aborted; row = queue.shift()) {
      await askOne(row, said, control.signal);
    }
  };
  await Promise.all(Array.from({ length: workers }, work));
  stop.value = null;
}

/** The fields of an answer that is a JSON object. */
function fields(r: Result | null): Record<string, unknown> | null {
  if (!r || settings.value.mode !== "schema") return null;
  try {
    const v = JSON.parse(r.text);
    return typeof v === "object" && v !== null && !Array.isArray(v) ? v : null;
  } catch { return null; }
}

const shown = (v: unknown) => (v === undefined ? "" : typeof v === "string" ? v : JSON.stringify(v));

/** A cell of CSV. A leading apostrophe keeps spreadsheets from running what a model wrote as a formula. */
export function cell(v: unknown): string {
  let text_ = shown(v);
  if (/^[=+\-@\t\r]/.test(text_) && typeof v !== "number") text_ = `'${text_}`;
  return /[",\r\n]/.test(text_) ? `"${text_.replaceAll('"', '""')}"` : text_;
}

function columns(): string[] {
  return [...new Set(rows.value.flatMap((r) => Object.keys(fields(r.result) ?? {})))];
}

function csv(): string {
  const names = columns();
  const lines_ = [["image", "answer", ...names, "finish", "completion_tokens", "total_ms", "error"]];
  for (const { image, result: r } of rows.value) {
    const f = fields(r);
    lines_.push([image.name, r?.text, ...names.map((n) => f?.[n]), r?.finish, r?.usage?.completion_tokens,
      r?.timings?.total_ms, r?.failure ? failureText(r.failure) : ""].map(cell));
  }
  return lines_.map((l) => l.join(",")).join("\r\n") + "\r\n";
}

/** Has the browser save a text as a file. */
export function save(name: string, type: string, content: string) {
  const a = document.createElement("a");
  a.href = URL.createObjectURL(new Blob([content], { type }));
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 10_000);
}

export function TableView() {
  const done = rows.value.filter((r) => r.state === "done").length, names = columns();
  return (
    <section class="chat" aria-label={t("many")}>
      <div class="scroller plain" tabIndex={0} role="region" aria-label={t("manyAnswers")}>
        {rows.value.length === 0 ? <div class="empty"><h2>{t("manyTitle")}</h2><p>{t("manyText")}</p></div> : <>
          <div class="actions">
            <span role="status">{t("manyDone", done, rows.value.length)}</span>
            <button type="button" onClick={() => save("answers.csv", "text/csv", csv())} disabled={done === 0}>{t("csv")}</button>
          </div>
          <table class="answers">
            <thead><tr><th scope="col">{t("image")}</th><th scope="col">{t("answer")}</th>
              {names.map((n) => <th key={n} scope="col">{n}</th>)}<th scope="col">{t("tokens")}</th>
              <th scope="col">{t("time")}</th></tr></thead>
            <tbody>{rows.value.map((r) => <RowView key={r.image.id} row={r} names={names} />)}</tbody>
          </table>
        </>}
      </div>
      <Inputs onSubmit={() => { if (!stop.value) void askAll(); }}>
        {stop.value ? <button type="button" class="primary" onClick={() => stop.value?.abort()}>{t("stop")}</button>
          : <button type="submit" class="primary">{t("askAll")}</button>}
      </Inputs>
    </section>
  );
}

function RowView({ row: { image, result: r, state }, names }: { row: Row; names: string[] }) {
  const f = fields(r);
  return (
    <tr>
      <th scope="row"><Thumb image={image} unnamed /><span class="name">{image.name}</span></th>
      <td>{r?.failure ? <span class="failure">{failureText(r.failure)}</span> : r?.stopped ? t("stopped")
        : r ? r.text : state === "asking" ? t("answering") : ""}</td>
      {names.map((n) => <td key={n}>{shown(f?.[n])}</td>)}
      <td>{r?.usage && count(r.usage.completion_tokens)}</td>
      <td>{r?.timings && t("ms", count(r.timings.total_ms))}</td>
    </tr>
  );
}
