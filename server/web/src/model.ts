// The values of the page: conversations as trees of turns and answers, and what a request is made of.

/** How many tokens an image may cost. */
export type Detail = "auto" | "low" | "high";
export const details: readonly Detail[] = ["low", "auto", "high"];

/** An image file that the user gave. It is never changed: the server gets its bytes as they are. */
export interface Picked {
  id: string;
  name: string;
  blob: Blob;
  detail: Detail;
}

/** What an answer is held to. */
export type Mode = "text" | "schema" | "choices" | "regex";

export interface Settings {
  model: string;
  system: string;
  maxTokens: string; // as typed, "" for the server's default; the next too
  temperature: string;
  topP: string;
  seed: string;
  logprobs: boolean;
  mode: Mode;
  schema: string;
  choices: string; // one a line
  regex: string;
}

export const defaults: Settings = {
  model: "", system: "", maxTokens: "", temperature: "", topP: "", seed: "", logprobs: false, mode: "text",
  schema: '{\n  "type": "object",\n  "properties": {\n    "caption": { "type": "string" },\n    "objects": ' +
    '{ "type": "integer" }\n  },\n  "required": ["caption", "objects"],\n  "additionalProperties": false\n}',
  choices: "yes\nno", regex: "",
};

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens: number; image_tokens: number; text_tokens: number };
  completion_tokens_details?: { reasoning_tokens: number };
}

/** Milliseconds by the server's clock; what did not happen is 0. */
export interface Timings {
  preprocess_ms: number;
  tokenize_ms: number;
  encode_ms: number;
  queue_ms: number;
  prefill_ms: number;
  decode_ms: number;
  ttft_ms: number;
  total_ms: number;
}

export interface TokenLogprob {
  token: string;
  logprob: number;
  bytes: number[];
  top_logprobs?: { token: string; logprob: number; bytes: number[] }[];
}

/** What went wrong, as the page tells it. */
export interface Failure {
  kind: "network" | "cut" | "busy" | "loading" | "key" | "forbidden" | "image" | "length" | "invalid" | "missing" | "server";
  message: string; // the server's
  retryAfter?: number; // milliseconds
}

/** What comes of a request. */
export interface Result {
  text: string;
  reasoning: string;
  model: string;
  finish: string; // "" until it ends
  usage?: Usage;
  timings?: Timings;
  logprobs: TokenLogprob[];
  scores?: number[]; // log-probabilities of the choices
  clientTTFT: number; // milliseconds in the browser, 0 until the first text
  clientTotal: number;
  failure?: Failure;
  stopped: boolean;
}

export interface Turn {
  kind: "turn";
  id: string;
  parent: string; // an answer's, or "" for the first
  text: string;
  images: Picked[];
}

export interface Answer {
  kind: "answer";
  id: string;
  parent: string; // the turn's
  settings: Settings;
  result: Result;
}

export type Node = Turn | Answer;

export interface Conversation {
  id: string;
  title: string;
  updated: number;
  nodes: Node[]; // in the order in which they came
  chosen: Record<string, string>; // the child shown of a node; the newest where nothing is said
}

export function newID(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(9)); // randomUUID is for HTTPS alone
  return Array.from(bytes, (b) => b.toString(36).padStart(2, "0")).join("");
}

export function emptyResult(): Result {
  return {
    text: "", reasoning: "", model: "", finish: "", logprobs: [], clientTTFT: 0, clientTotal: 0, stopped: false,
  };
}

export function newConversation(): Conversation {
  return { id: newID(), title: "", updated: Date.now(), nodes: [], chosen: {} };
}

export function siblings(c: Conversation, n: Node): Node[] {
  return c.nodes.filter((o) => o.parent === n.parent && o.kind === n.kind);
}

/** The nodes that are shown, from the first turn down. */
export function path(c: Conversation): Node[] {
  const out: Node[] = [];
  for (let parent = ""; ;) {
    const children = c.nodes.filter((n) => n.parent === parent);
    const next = children.find((n) => n.id === c.chosen[parent]) ?? children.at(-1);
    if (!next) return out;
    out.push(next);
    parent = next.id;
  }
}

/** The nodes up to one, which need not be shown. */
export function pathTo(c: Conversation, id: string): Node[] {
  const out: Node[] = [];
  for (let at = c.nodes.find((n) => n.id === id); at; at = c.nodes.find((n) => n.id === at!.parent)) out.unshift(at);
  return out;
}
