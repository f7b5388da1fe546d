// What the page shows, and what changes it.
import { signal } from "@preact/signals";
import * as api from "./api";
import {
  defaults, emptyResult, newConversation, newID, pathTo, type Answer, type Conversation, type Picked, type Result,
  type Settings, type Turn,
} from "./model";
import { body } from "./request";
import { keep } from "./history";

export type View = "chat" | "compare" | "table" | "engine";

export const view = signal<View>("chat");
export const models = signal<api.Model[]>([]);
export const server = signal<api.ServerInfo | null>(null);
/** up: requests can be asked; the others say why not. */
export const status = signal<"starting" | "up" | "down" | "loading" | "key">("starting");
export const settings = signal<Settings>({ ...defaults });
export const conversation = signal<Conversation>(newConversation());
/** The answers that are coming, by their ids. */
export const running = signal<Record<string, AbortController>>({});
/** Said aloud by screen readers. */
export const announced = signal("");

/** Connects: models, and what the server says of itself. */
export async function connect() {
  try {
    models.value = await api.models();
    server.value = await api.serverInfo();
    status.value = "up";
  } catch (e) {
    const kind = e instanceof api.Failed ? e.failure.kind : "network";
    status.value = kind === "key" || kind === "forbidden" ? "key" : kind === "loading" ? "loading" : "down";
    if (status.value !== "key") setTimeout(connect, 2000);
  }
}

/** Has the page notice that the server is gone, or there again. */
export function noticed(r: Result) {
  if (r.failure?.kind === "network" || r.failure?.kind === "cut") {
    status.value = "starting";
    void connect();
  } else if (r.failure?.kind === "key") {
    status.value = "key";
  }
}

function change(c: Conversation) {
  conversation.value = { ...c, updated: Date.now() };
}

/** Adds a turn below an answer, and has it answered. */
export function send(parent: string, text: string, images: Picked[]) {
  const turn: Turn = { kind: "turn", id: newID(), parent, text, images };
  const c = conversation.value;
  change({
    ...c, title: c.title || text.slice(0, 60) || images[0]?.name || "", nodes: [...c.nodes, turn],
    chosen: { ...c.chosen, [parent]: turn.id },
  });
  void answer(turn.id);
}

/** Shows another child of a node. */
export function choose(parent: string, child: string) {
  const c = conversation.value;
  change({ ...c, chosen: { ...c.chosen, [parent]: child } });
  void keep(conversation.value);
}

/** Asks for an answer to a turn; one more where it has some. */
export async function answer(turn: string) {
  const s = { ...settings.value }, stop = new AbortController();
  const a: Answer = { kind: "answer", id: newID(), parent: turn, settings: s, result: emptyResult() };
  const began = conversation.value.id;
  const nodes = pathTo(conversation.value, turn);
  change({
    ...conversation.value, nodes: [...conversation.value.nodes, a], chosen: { ...conversation.value.chosen, [turn]: a.id },
  });
  running.value = { ...running.value, [a.id]: stop };
  let frame = 0;
  const show = (r: Result) => {
    if (conversation.value.id !== began) return stop.abort();
    a.result = { ...r };
    conversation.value = {
      ...conversation.value, nodes: conversation.value.nodes.map((n) => (n.id === a.id ? { ...a } : n)),
    };
  };
  let latest: Result | null = null;
  const result = await askFor(() => body(nodes, s), stop.signal, (r) => {
    latest = r;
    frame ||= requestAnimationFrame(() => { // as often as the screen changes
      frame = 0;
      show(latest!);
    });
  });
  cancelAnimationFrame(frame);
  const { [a.id]: _, ...others } = running.value;
  running.value = others;
  if (conversation.value.id === began) {
    show(result);
    announced.value = result.failure ? "" : result.text;
    void keep(conversation.value);
  }
  noticed(result);
}

/** Asks, with a body that may fail to be made. */
export async function askFor(
  make: () => ReturnType<typeof body>, stop: AbortSignal, shown: (r: Result) => void,
): Promise<Result> {
  try {
    return await api.complete(await make(), stop, shown);
  } catch (e) { // a schema that is no JSON, a file that cannot be read any more
    return { ...emptyResult(), failure: { kind: "invalid", message: e instanceof Error ? e.message : String(e) } };
  }
}

/** Stops all answers that are coming. */
export function stopAll() {
  for (const c of Object.values(running.value)) c.abort();
}

export function start(c: Conversation = newConversation()) {
  stopAll();
  conversation.value = c;
  view.value = "chat";
}
