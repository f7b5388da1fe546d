// Conversations in the browser, and nowhere else: IndexedDB, and files that the user exports.
import { signal } from "@preact/signals";
import { dataURL } from "./request";
import { defaults, details, emptyResult, type Conversation, type Detail, type Node } from "./model";

/** What there is, the newest first; null until it is known, or where the browser keeps nothing. */
export const kept = signal<{ id: string; title: string; updated: number }[]>([]);

const store = "conversations";
let opened: Promise<IDBDatabase | null> | undefined;

function open(): Promise<IDBDatabase | null> {
  opened ??= new Promise((resolve) => {
    let r: IDBOpenDBRequest;
    try { r = indexedDB.open("mmserve", 1); } catch { return resolve(null); } // a browser that keeps nothing
    r.onupgradeneeded = () => r.result.createObjectStore(store, { keyPath: "id" });
    r.onsuccess = () => resolve(r.result);
    r.onerror = r.onblocked = () => resolve(null); // private windows of some browsers
  });
  return opened;
}

async function run<T>(mode: IDBTransactionMode, do_: (s: IDBObjectStore) => IDBRequest<T>): Promise<T | undefined> {
  const db = await open();
  if (!db) return undefined;
  return new Promise((resolve, reject) => {
    const t = db.transaction(store, mode), r = do_(t.objectStore(store));
    t.oncomplete = () => resolve(r.result);
    t.onerror = t.onabort = () => reject(t.error);
  });
}

/** Reads the list anew. */
export async function list() {
  const all = ((await run("readonly", (s) => s.getAll())) ?? []) as Conversation[];
  kept.value = all.map(({ id, title, updated }) => ({ id, title, updated })).sort((a, b) => b.updated - a.updated);
}

export async function keep(c: Conversation) {
  await run("readwrite", (s) => s.put(c)).catch(() => {}); // the disk is full, say: the page goes on
  await list();
}

export async function load(id: string): Promise<Conversation | undefined> {
  return (await run("readonly", (s) => s.get(id))) as Conversation | undefined;
}

export async function remove(id: string) {
  await run("readwrite", (s) => s.delete(id));
  await list();
}

export async function removeAll() {
  await run("readwrite", (s) => s.clear());
  await list();
}

const format = "mmserve-playground-1";

/** All conversations as the text of a file; images are data: URLs in it. */
export async function exported(): Promise<string> {
  const all = ((await run("readonly", (s) => s.getAll())) ?? []) as Conversation[];
  const out = [];
  for (const c of all) {
    const nodes = [];
    for (const n of c.nodes) {
      if (n.kind === "answer") nodes.push(n);
      else {
        const images = [];
        for (const { blob, ...p } of n.images) images.push({ ...p, data: await dataURL(blob) });
        nodes.push({ ...n, images });
      }
    }
    out.push({ ...c, nodes });
  }
  return JSON.stringify({ format, conversations: out });
}

/** Takes conversations from the text of a file, and says how many. It throws where the file is none. */
export async function imported(text: string): Promise<number> {
  const file = JSON.parse(text);
  if (file?.format !== format || !Array.isArray(file.conversations)) throw new Error("format");
  const list_: Conversation[] = [];
  for (const c of file.conversations) {
    const nodes: Node[] = [];
    for (const n of c.nodes) nodes.push(nodeOf(n, nodes));
    list_.push({
      id: String(c.id), title: String(c.title), updated: Number(c.updated) || Date.now(), nodes, chosen: { ...c.chosen },
    });
  }
  for (const c of list_) await run("readwrite", (s) => s.put(c));
  await list();
  return list_.length;
}

/** A node of a file, below one of those before it: whoever wrote the file, the page can show it. */
function nodeOf(n: any, before: Node[]): Node {
  const { id, parent } = n, above = before.find((o) => o.id === parent);
  if (typeof id !== "string" || id === "" || before.some((o) => o.id === id)) throw new Error("id");
  if (n.kind === "turn") {
    if (parent !== "" && above?.kind !== "answer") throw new Error("parent");
    const images = Array.from(n.images as { id: string; name: string; detail: Detail; data: string }[], (p) => ({
      id: String(p.id), name: String(p.name), blob: blobOf(p.data), detail: details.includes(p.detail) ? p.detail : "auto" as const,
    }));
    return { kind: "turn", id, parent, text: String(n.text), images };
  }
  if (n.kind !== "answer" || above?.kind !== "turn") throw new Error("parent");
  const settings = { ...defaults };
  for (const k of Object.keys(defaults) as (keyof typeof defaults)[]) {
    if (typeof n.settings?.[k] === typeof defaults[k]) Object.assign(settings, { [k]: n.settings[k] });
  }
  const r = n.result ?? {}, result = emptyResult();
  for (const k of ["text", "reasoning", "model", "finish"] as const) result[k] = String(r[k] ?? "");
  if (Array.isArray(r.scores) && r.scores.every(Number.isFinite)) result.scores = r.scores;
  result.stopped = !!r.stopped;
  return { kind: "answer", id, parent, settings, result }; // what it cost is not among what a file may say
}

/** The file of a data: URL. Its bytes are never asked for over the network, whatever the URL says. */
function blobOf(url: string): Blob {
  const m = /^data:([\w.+-]+\/[\w.+-]+);base64,([A-Za-z0-9+/=]+)$/.exec(url);
  if (!m) throw new Error("image");
  return new Blob([Uint8Array.from(atob(m[2]!), (c) => c.charCodeAt(0))], { type: m[1] });
}
