// Makes the bodies of requests. Snippets are made of the same bodies, so that they ask what the page asks.
import type { Node, Picked, Settings } from "./model";

export type Part = { type: "text"; text: string } | { type: "image_url"; image_url: { url: string; detail?: string } };
export interface Message { role: "system" | "user" | "assistant"; content: string | Part[] }

export interface Body {
  model?: string;
  messages: Message[];
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  seed?: number;
  logprobs?: boolean;
  top_logprobs?: number;
  response_format?: { type: "json_schema"; json_schema: { name: string; schema: unknown } };
  structured_outputs?: { choice?: string[]; choice_scores?: boolean; regex?: string };
}

const dataURLs = new WeakMap<Blob, Promise<string>>();

/** A file's bytes as a data: URL. */
export function dataURL(blob: Blob): Promise<string> {
  let url = dataURLs.get(blob);
  if (!url) {
    url = new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result as string);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
    dataURLs.set(blob, url);
  }
  return url;
}

/** How an image's URL is written into a body. */
export type ImageURL = (p: Picked) => string | Promise<string>;

const inline: ImageURL = (p) => dataURL(p.blob);

async function userParts(text: string, images: Picked[], imageURL: ImageURL): Promise<string | Part[]> {
  if (images.length === 0) return text;
  const parts: Part[] = [];
  for (const p of images) {
    const url = await imageURL(p);
    parts.push({ type: "image_url", image_url: p.detail === "auto" ? { url } : { url, detail: p.detail } });
  }
  if (text !== "") parts.push({ type: "text", text });
  return parts;
}

/** The messages of a conversation up to a turn. Answers that failed have none. */
export async function messages(nodes: Node[], system: string, imageURL: ImageURL = inline): Promise<Message[]> {
  const out: Message[] = system.trim() === "" ? [] : [{ role: "system", content: system }];
  for (const n of nodes) {
    if (n.kind === "turn") out.push({ role: "user", content: await userParts(n.text, n.images, imageURL) });
    else out.push({ role: "assistant", content: n.result.text });
  }
  return out;
}

const number = (text: string) => (text.trim() === "" ? undefined : Number(text));

/** Lines that are not empty. */
export const lines = (text: string) => text.split("\n").map((l) => l.trim()).filter((l) => l !== "");

/** The body that asks for an answer; fields that say nothing are left out. */
export async function body(nodes: Node[], s: Settings, imageURL: ImageURL = inline): Promise<Body> {
  const b: Body = {
    model: s.model || undefined, messages: await messages(nodes, s.system, imageURL), max_tokens: number(s.maxTokens),
    temperature: number(s.temperature), top_p: number(s.topP), seed: number(s.seed),
  };
  if (s.logprobs) Object.assign(b, { logprobs: true, top_logprobs: 5 });
  switch (s.mode) {
    case "schema":
      b.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(s.schema) } };
      break;
    case "choices":
      b.structured_outputs = { choice: lines(s.choices), choice_scores: true };
      break;
    case "regex":
      b.structured_outputs = { regex: s.regex };
      break;
  }
  for (const name of Object.keys(b) as (keyof Body)[]) if (b[name] === undefined) delete b[name];
  return b;
}
