// Asks the server that the page came from.
import { signal } from "@preact/signals";
import type { Body, Message } from "./request";
import { emptyResult, type Failure, type Result, type Timings, type TokenLogprob, type Usage } from "./model";

/** The key that requests carry. It is kept until the tab is closed. */
export const key = signal(sessionStorage.getItem("mmserve-key") ?? "");
export function setKey(value: string) {
  key.value = value.trim();
  if (key.value === "") sessionStorage.removeItem("mmserve-key");
  else sessionStorage.setItem("mmserve-key", key.value);
}

export interface Model { id: string; max_model_len: number }
export interface ServerInfo {
  version: string; grpc: string; grpc_tls: boolean; keys: boolean; max_images: number; max_message_bytes: number;
}
export interface ImageLayout {
  format: string; width: number; height: number; effective_width: number; effective_height: number;
  rows: number; cols: number; tiles: number; tokens: number;
}
export interface Count {
  count: number; text_tokens: number; image_tokens: number; max_model_len: number; max_tokens: number; fits: boolean;
  images: ImageLayout[];
}

/** A request that failed, in words for the user. */
export class Failed extends Error {
  constructor(readonly failure: Failure) { super(failure.message); }
}

interface ErrorBody { error?: { message?: string; code?: string; param?: string } }

function failureOf(status: number, headers: Headers, body: ErrorBody): Failure {
  const message = body.error?.message ?? `HTTP ${status}`;
  const code = body.error?.code, param = body.error?.param ?? "";
  const after = Number(headers.get("Retry-After-Ms")) || 1000 * Number(headers.get("Retry-After")) || undefined;
  switch (true) {
    case status === 401: return { kind: "key", message };
    case status === 403: return { kind: "forbidden", message };
    case status === 404: return { kind: "missing", message };
    case status === 429: return { kind: "busy", message, retryAfter: after ?? 1000 };
    case status === 503: return { kind: "loading", message, retryAfter: after ?? 2000 };
    case code === "context_length_exceeded": return { kind: "length", message };
    case param.includes("image_url"): return { kind: "image", message };
    case status < 500: return { kind: "invalid", message };
  }
  return { kind: "server", message };
}

async function ask(path: string, body?: unknown, signal?: AbortSignal): Promise<Response> {
  const headers: Record<string, string> = {};
  if (key.value !== "") headers["Authorization"] = `Bearer ${key.value}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const init: RequestInit = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) Object.assign(init, { method: "POST", body: JSON.stringify(body) });
  let response: Response;
  try {
    response = await fetch(path, init);
  } catch (e) {
    if (signal?.aborted) throw e;
    throw new Failed({ kind: "network", message: String(e) });
  }
  if (!response.ok) {
    const text = await response.text().catch(() => "");
    let parsed: ErrorBody = {};
    try { parsed = JSON.parse(text); } catch { /* a proxy's own text */ }
    throw new Failed(failureOf(response.status, response.headers, parsed));
  }
  return response;
}

export async function models(): Promise<Model[]> {
  return ((await (await ask("/v1/models")).json()) as { data: Model[] }).data;
}

export async function serverInfo(): Promise<ServerInfo> {
  return (await (await ask("/web/server.json")).json()) as ServerInfo;
}

export async function healthy(): Promise<boolean> {
  try { return (await fetch("/health", { cache: "no-store" })).ok; } catch { return false; }
}

/** What a conversation costs before it is sent. */
export async function count(model: string | undefined, messages: Message[], signal: AbortSignal): Promise<Count> {
  return (await (await ask("/tokenize", { model, messages }, signal)).json()) as Count;
}

/** Yields the data of server-sent events. */
export async function* events(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ;) {
      const { done, value } = await reader.read();
      if (done) return;
      const list = (rest + value).split("\n\n");
      rest = list.pop()!;
      for (const event of list) {
        const data = event.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5).trimStart());
        if (data.length > 0) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

interface Chunk extends ErrorBody {
  model?: string;
  choices?: {
    delta: { content?: string; reasoning_content?: string }; finish_reason: string | null;
    logprobs: { content: TokenLogprob[] } | null;
  }[];
  usage?: Usage | null;
  timings?: Timings;
  choice_scores?: number[];
}

function add(r: Result, c: Chunk, began: number) {
  if (c.model) r.model = c.model;
  for (const choice of c.choices ?? []) {
    r.text += choice.delta.content ?? "";
    r.reasoning += choice.delta.reasoning_content ?? "";
    if (choice.logprobs) r.logprobs.push(...choice.logprobs.content);
    if (choice.finish_reason) r.finish = choice.finish_reason;
    if (r.clientTTFT === 0 && (r.text !== "" || r.reasoning !== "")) r.clientTTFT = performance.now() - began;
  }
  if (c.usage) r.usage = c.usage;
  if (c.timings) r.timings = c.timings;
  if (c.choice_scores) r.scores = c.choice_scores;
}

/**
 * Asks for an answer and calls shown with what there is of it, as it comes. It does not throw: what went wrong is in the
 * result.
 */
export async function complete(body: Body, stop: AbortSignal, shown: (r: Result) => void): Promise<Result> {
  const r = emptyResult(), began = performance.now();
  try {
    const more = { stream: true, stream_options: { include_usage: true }, timings: true };
    const response = await ask("/v1/chat/completions", { ...body, ...more }, stop);
    let done = false;
    for await (const data of events(response)) {
      if (data === "[DONE]") {
        done = true;
        break;
      }
      const chunk = JSON.parse(data) as Chunk;
      if (chunk.error) throw new Failed({ kind: "server", message: chunk.error.message ?? "" });
      add(r, chunk, began);
      shown(r);
    }
    if (!done) r.failure = { kind: "cut", message: "" };
  } catch (e) {
    if (stop.aborted) r.stopped = true;
    else if (e instanceof Failed) r.failure = e.failure;
    else r.failure = { kind: "cut", message: String(e) };
  }
  r.clientTotal = performance.now() - began;
  return r;
}

/** An engine between two steps; what begins with steps are totals. */
export interface EngineSnapshot {
  model: string; slots: number; running: number; cached: number; waiting: number[]; preparing: number;
  kv_tokens: number; kv_budget: number;
  steps: number; prefill_steps: number; decode_rows: number; prompt_tokens: number; generated_tokens: number;
  cached_tokens: number; preemptions: number;
}

export async function* engineEvents(stop: AbortSignal): AsyncGenerator<{ time_ms: number; engines: EngineSnapshot[] }> {
  for await (const data of events(await ask("/web/engine", undefined, stop))) yield JSON.parse(data);
}
