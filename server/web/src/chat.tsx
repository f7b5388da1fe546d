// A conversation: turns, answers, and their branches.
import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { Composer } from "./composer";
import { choose as chooseFiles, pick } from "./images";
import { Markdown } from "./markdown";
import { t } from "./messages";
import { path, siblings, type Answer, type Node, type Turn } from "./model";
import { Heatmap, Scores, Timeline } from "./insight";
import { Copy, dialog, Failed, Thumb } from "./parts";
import { lines } from "./request";
import { Snippets } from "./code";
import { answer, choose, conversation, running, send, stopAll } from "./state";

export function Chat() {
  const nodes = path(conversation.value), scroller = useRef<HTMLDivElement>(null);
  useEffect(() => { // a new turn is shown, wherever the user was reading
    scroller.current?.scrollTo({ top: 0 });
  }, [nodes.length]);
  return (
    <section class="chat" aria-label={t("chat")}>
      <div class="scroller" ref={scroller} tabIndex={0} role="region" aria-label={t("conversation")}>
        <div class="nodes">
          {nodes.length === 0 && <Empty />}
          {nodes.map((n) => (n.kind === "turn" ? <TurnView key={n.id} turn={n} /> : <AnswerView key={n.id} answer={n} />))}
        </div>
      </div>
      <Composer />
    </section>
  );
}

function Empty() {
  return <div class="empty"><h2>{t("emptyTitle")}</h2><p>{t("emptyText")}</p></div>;
}

function Branches({ node }: { node: Node }) {
  const list = siblings(conversation.value, node), at = list.indexOf(node);
  if (list.length < 2) return null;
  const go = (i: number) => choose(node.parent, list[i]!.id);
  return (
    <span class="branches">
      <button type="button" class="small" aria-label={t("earlier")} disabled={at === 0} onClick={() => go(at - 1)}>‹</button>
      <span aria-label={t("branch", at + 1, list.length)} role="img">{at + 1}/{list.length}</span>
      <button type="button" class="small" aria-label={t("later")} disabled={at === list.length - 1}
        onClick={() => go(at + 1)}>›</button>
    </span>
  );
}

function TurnView({ turn }: { turn: Turn }) {
  const editing = useSignal(false), text = useSignal(turn.text);
  const busy = Object.keys(running.value).length > 0;
  const swap = (i: number) => chooseFiles({}, (files) => {
    const { images } = pick(files);
    if (images[0]) send(turn.parent, turn.text, turn.images.map((p, j) => (j === i ? { ...images[0]!, detail: p.detail } : p)));
  });
  return (
    <article class="turn" aria-label={t("you")}>
      {turn.images.length > 0 && <ul class="thumbs">
        {turn.images.map((p, i) => <li key={p.id}>
          <Thumb image={p} />
          <button type="button" class="small" disabled={busy} onClick={() => swap(i)}
            aria-label={t("swapOne", p.name)}>{t("swap")}</button>
        </li>)}
      </ul>}
      {editing.value ? (
        <form onSubmit={(e) => {
          e.preventDefault();
          editing.value = false;
          send(turn.parent, text.value.trim(), turn.images);
        }}>
          <textarea aria-label={t("prompt")} rows={3} value={text.value} onInput={(e) => (text.value = e.currentTarget.value)} />
          <div class="actions">
            <button type="submit" class="small primary">{t("saveSend")}</button>
            <button type="button" class="small" onClick={() => (editing.value = false)}>{t("cancel")}</button>
          </div>
        </form>
      ) : <p class="said">{turn.text}</p>}
      <div class="actions">
        <Branches node={turn} />
        {!editing.value && <button type="button" class="small" disabled={busy} onClick={() => (editing.value = true)}>
          {t("edit")}</button>}
        <button type="button" class="small" disabled={busy} onClick={() => void answer(turn.id)}>{t("again")}</button>
      </div>
    </article>
  );
}

function AnswerView({ answer: a }: { answer: Answer }) {
  const r = a.result, coming = a.id in running.value;
  return (
    <article class="answer" aria-label={r.model || t("model")} aria-busy={coming}>
      {r.reasoning !== "" && <details class="reasoning" open={coming && r.text === ""}>
        <summary>{t("reasoning")}</summary><p>{r.reasoning}</p></details>}
      <Markdown id={a.id} text={r.text} whole={!coming} />
      {coming && r.text === "" && <p class="waiting">{t("answering")}</p>}
      {r.failure && <Failed failure={r.failure} />}
      {r.stopped && <p class="note">{t("stopped")}</p>}
      {r.finish === "length" && <p class="note">{t("cutLength")}</p>}
      {r.scores && <Scores choices={lines(a.settings.choices)} scores={r.scores} />}
      {!coming && r.logprobs.length > 0 && <Heatmap list={r.logprobs} />}
      {!coming && <Timeline result={r} />}
      <div class="actions">
        <Branches node={a} />
        {!coming && r.text !== "" && <Copy text={r.text} />}
        {!coming && <button type="button" class="small" aria-haspopup="dialog"
          onClick={() => (dialog.value = <Snippets answer={a} />)}>{t("asCode")}</button>}
        {coming && <button type="button" class="small" onClick={stopAll}>{t("stop")}</button>}
      </div>
    </article>
  );
}
