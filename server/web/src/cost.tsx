// What a turn will cost: tokens of each part, and the tiles that the model sees an image in.
import { computed, effect, signal } from "@preact/signals";
import { count as countTokens, type Count, type ImageLayout } from "./api";
import { count, t } from "./messages";
import { details, path, type Detail, type Node, type Picked } from "./model";
import { messages } from "./request";
import { images, text } from "./drafts";
import { conversation, settings, status, view } from "./state";

/** The newest count, and the images that it is of; null while there is none. */
const counted = signal<{ images: Picked[]; count: Count } | null>(null);
/** What an image would take at each detail, by its id. */
const byDetail = signal<Record<string, Partial<Record<Detail, ImageLayout>>>>({});

/** The layout of an image that is about to be sent; undefined where it is not known. */
export function layoutOf(p: Picked): ImageLayout | undefined {
  const c = counted.value, i = c?.images.indexOf(p) ?? -1;
  return i < 0 ? undefined : c!.count.images[i];
}

const bytes = (list: Picked[]) => list.reduce((n, p) => n + p.blob.size, 0);
/** Files above this are counted at the chosen detail alone: each count sends them. */
const mostForDetails = 8 << 20;

async function measure(model: string | undefined, list: Picked[], stop: AbortSignal) {
  for (const detail of details) {
    const turn: Node = { kind: "turn", id: "", parent: "", text: "", images: list.map((p) => ({ ...p, detail })) };
    const c = await countTokens(model, await messages([turn], ""), stop);
    const next = { ...byDetail.value };
    list.forEach((p, i) => (next[p.id] = { ...next[p.id], [detail]: c.images[i] }));
    byDetail.value = next;
  }
}

effect(() => {
  const list = images.value, said = text.value, s = settings.value, c = conversation.value;
  if (status.value !== "up" || view.value !== "chat" || list.length === 0 && said.trim() === "") {
    counted.value = null;
    return;
  }
  const stop = new AbortController();
  const timer = setTimeout(async () => {
    const nodes = path(c), last = nodes.at(-1);
    if (last?.kind === "turn" || last?.kind === "answer" && last.result.finish === "" && last.result.text === "") return;
    const turn: Node = { kind: "turn", id: "", parent: last?.id ?? "", text: said.trim(), images: list };
    try {
      const value = await countTokens(s.model || undefined, await messages([...nodes, turn], s.system), stop.signal);
      counted.value = { images: list, count: value };
      const open = list.filter((p) => !byDetail.value[p.id]);
      if (open.length > 0 && bytes(list) <= mostForDetails) await measure(s.model || undefined, list, stop.signal);
    } catch { // sending will say what is wrong
      if (!stop.signal.aborted) counted.value = null;
    }
  }, 250 + Math.min(3000, bytes(list) / 2000)); // typing does not send large files again and again
  return () => {
    clearTimeout(timer);
    stop.abort();
  };
});

const fits = computed(() => counted.value?.count.fits ?? true);

export function Cost() {
  const c = counted.value?.count;
  if (!c) return null;
  return (
    <p class={fits.value ? "cost" : "cost failure"} role={fits.value ? undefined : "alert"}>
      <strong>{t("costTotal", count(c.count))}</strong>{" "}
      {t("costParts", count(c.text_tokens), count(c.image_tokens), count(c.max_model_len))}
      {!c.fits && <> {t("costTooLong")}</>}
    </p>
  );
}

/** The lines between tiles, over an image. */
export function Tiles({ layout }: { layout: ImageLayout | undefined }) {
  if (!layout || layout.rows * layout.cols < 2) return null;
  const { rows, cols } = layout, lines = [];
  for (let i = 1; i < cols; i++) lines.push(<line key={`c${i}`} x1={i / cols} x2={i / cols} y1={0} y2={1} />);
  for (let i = 1; i < rows; i++) lines.push(<line key={`r${i}`} y1={i / rows} y2={i / rows} x1={0} x2={1} />);
  return <svg class="tiles" viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>;
}

/** Says how an image will be seen. */
export function LayoutText({ layout }: { layout: ImageLayout | undefined }) {
  if (!layout) return null;
  const { width, height, effective_width: w, effective_height: h, tiles, tokens } = layout;
  return <span class="name">{t("layout", width, height, w, h, tiles, count(tokens))}</span>;
}

export function DetailChoice({ image }: { image: Picked }) {
  const known = byDetail.value[image.id];
  return (
    <select class="detail" aria-label={t("detailOf", image.name)} value={image.detail} onChange={(e) => {
      const detail = e.currentTarget.value as Detail;
      images.value = images.value.map((p) => (p.id === image.id ? { ...p, detail } : p));
    }}>
      {details.map((d) => <option key={d} value={d}>
        {known?.[d] ? t("detailTokens", t(d === "auto" ? "detailAuto" : d), count(known[d].tokens)) : t(d === "auto" ? "detailAuto" : d)}
      </option>)}
    </select>
  );
}
