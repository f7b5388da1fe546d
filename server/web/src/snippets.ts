// The same request as code. Each snippet runs as it is copied: images stand in it, or, where they are large, are read
// from files of their names. Keys are read from the environment.
import { dataURL, type Body, type Message, type Part } from "./request";
import { newID, type Picked } from "./model";

/** Images of more bytes than this, all together, are files of a snippet. */
export const mostInline = 48 << 10;

export type Kind = "curl" | "grpcurl" | "python" | "go" | "openai";
export const kinds: readonly [Kind, string][] = [
  ["curl", "curl"], ["grpcurl", "grpcurl"], ["python", "Python"], ["go", "Go"], ["openai", "OpenAI SDK"],
];

export interface Target {
  http: string; // http://host:port
  grpc: string; // host:port or unix:///path
  grpcTLS: boolean;
  keys: boolean;
}

/** Where images come from. The mark stands for one while a body is made into text; nobody's text can have it. */
export interface Source { images: Picked[]; inline: boolean; mark: string }

export function source(images: Picked[]): Source {
  return { images, inline: images.reduce((n, p) => n + p.blob.size, 0) <= mostInline, mark: `image-${newID()}-` };
}

export function imageURL(s: Source): (p: Picked) => string {
  return (p) => `${s.mark}${s.images.findIndex((o) => o.id === p.id)}.`;
}

const marks = (s: Source) => new RegExp(`${s.mark}(\\d+)\\.`, "g");

/** A file name that is safe in a folder of the user's. */
export function fileName(p: Picked, i: number): string {
  const name = p.name.replace(/[^\w.-]/g, "_").replace(/^[-.]+/, "");
  return name || `image${i}`;
}

export async function snippet(kind: Kind, b: Body, s: Source, to: Target): Promise<string> {
  const clean = JSON.parse(JSON.stringify(b), (_, v) => (typeof v === "string" ? v.toWellFormed() : v)) as Body;
  const data = s.inline ? await Promise.all(s.images.map((p) => dataURL(p.blob))) : [];
  const c = { body: clean, source: s, data, to };
  switch (kind) {
    case "curl": return curl(c);
    case "grpcurl": return grpcurl(c);
    case "python": return python(c);
    case "openai": return openai(c);
    case "go": return golang(c);
  }
}

interface Context { body: Body; source: Source; data: string[]; to: Target }

const base64 = (dataURL_: string) => dataURL_.slice(dataURL_.indexOf(",") + 1);
const type = (p: Picked) => (/^[\w.+-]+\/[\w.+-]+$/.test(p.blob.type) ? p.blob.type : "application/octet-stream");
const needs = (c: Context, comment: string) =>
  c.source.inline ? "" : `${comment} needs ${c.source.images.map(fileName).join(", ")} in this folder\n`;

/** JSON for a shell: between quotes as it is, or with files read in and all else kept from the shell. */
function heredoc(c: Context, json: string, prefix: (p: Picked) => string): string {
  if (c.source.inline) {
    return `<<'JSON'\n${json.replace(marks(c.source), (_, i) => prefix(c.source.images[i]!) + base64(c.data[i]!))}\nJSON\n`;
  }
  const kept = json.replace(/[\\$`]/g, "\\$&");
  return `<<JSON\n${kept.replace(marks(c.source), (_, i) =>
    `${prefix(c.source.images[i]!)}$(base64 < '${fileName(c.source.images[i]!, Number(i))}' | tr -d '\\n')`)}\nJSON\n`;
}

function curl(c: Context): string {
  const key = c.to.keys ? ` \\\n  -H "Authorization: Bearer $MMSERVE_API_KEY"` : "";
  return `${needs(c, "#")}curl -s ${c.to.http}/v1/chat/completions -H 'Content-Type: application/json'${key} -d @- ` +
    heredoc(c, JSON.stringify(c.body, null, 2), (p) => `data:${type(p)};base64,`);
}

const roles = { system: "ROLE_SYSTEM", user: "ROLE_USER", assistant: "ROLE_ASSISTANT" } as const;

const partsOf = (m: Message): Part[] => (typeof m.content === "string" ? [{ type: "text", text: m.content }] : m.content);

/** A body as the contract's GenerateRequest has it in JSON. */
function contract(b: Body): unknown {
  const sampling = { temperature: b.temperature, topP: b.top_p, seed: b.seed };
  const schema = b.response_format?.json_schema.schema, o = b.structured_outputs;
  let constraint: unknown;
  if (schema !== undefined) constraint = { jsonSchema: JSON.stringify(schema) };
  else if (o?.choice) constraint = { choices: { texts: o.choice, scores: o.choice_scores } };
  else if (o?.regex !== undefined) constraint = { regex: o.regex };
  const messages = b.messages.map((m) => ({
    role: roles[m.role], parts: partsOf(m).map((p) => (p.type === "text" ? { text: p.text } : {
      image: {
        data: p.image_url.url, detail: p.image_url.detail && `DETAIL_${p.image_url.detail.toUpperCase()}`,
      },
    })),
  }));
  return {
    model: b.model, chat: { messages }, maxTokens: b.max_tokens,
    sampling: Object.values(sampling).some((v) => v !== undefined) ? sampling : undefined, constraint,
    logprobs: b.logprobs, topLogprobs: b.top_logprobs,
  };
}

function grpcurl(c: Context): string {
  const plain = c.to.grpcTLS ? "" : "-plaintext ";
  const key = c.to.keys ? `-H "authorization: Bearer $MMSERVE_API_KEY" ` : "";
  const unix = c.to.grpc.startsWith("unix://");
  const address = unix ? `-unix ${c.to.grpc.slice("unix://".length)}` : c.to.grpc;
  return `${needs(c, "#")}grpcurl ${plain}${key}-d @ ${address} mmserve.v1.InferenceService/Generate ` +
    heredoc(c, JSON.stringify(contract(c.body), null, 2), () => "");
}

/** A value as Python, or as JavaScript, writes it; an image's mark is what image gives. */
function literal(v: unknown, python_: boolean, s: Source, indent = ""): string {
  const deeper = indent + "    ";
  if (typeof v === "string") return v.startsWith(s.mark) ? `image${parseInt(v.slice(s.mark.length))}` : JSON.stringify(v);
  if (typeof v === "boolean") return python_ ? (v ? "True" : "False") : String(v);
  if (v === null) return python_ ? "None" : "null";
  if (typeof v !== "object") return String(v);
  const items = Array.isArray(v) ? v.map((o) => literal(o, python_, s, deeper))
    : Object.entries(v).map(([k, o]) => `${JSON.stringify(k)}: ${literal(o, python_, s, deeper)}`);
  const [open, close] = Array.isArray(v) ? ["[", "]"] : ["{", "}"];
  const line = open + items.join(", ") + close;
  return line.length + indent.length < 100 && !line.includes("\n") ? line
    : `${open}\n${items.map((o) => `${deeper}${o},\n`).join("")}${indent}${close}`;
}

function python(c: Context): string {
  const { images, inline } = c.source;
  const names = images.map((p, i) => inline ? `image${i} = "data:${type(p)};base64,${base64(c.data[i]!)}"\n`
    : `image${i} = "data:${type(p)};base64," + base64.b64encode(open("${fileName(p, i)}", "rb").read()).decode()\n`).join("");
  const headers = c.to.keys ? `{"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["MMSERVE_API_KEY"]}`
    : `{"Content-Type": "application/json"}`;
  const imports = [inline || images.length === 0 ? "" : "base64", "json", c.to.keys ? "os" : "", "urllib.request"];
  return `${needs(c, "#")}import ${imports.filter((i) => i !== "").join(", ")}

${names}body = ${literal(c.body, true, c.source)}
request = urllib.request.Request("${c.to.http}/v1/chat/completions", json.dumps(body).encode(),
                                 ${headers})
with urllib.request.urlopen(request) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
`;
}

function openai(c: Context): string {
  const { images, inline } = c.source;
  const names = images.map((p, i) => inline ? `const image${i} = "data:${type(p)};base64,${base64(c.data[i]!)}";\n`
    : `const image${i} = "data:${type(p)};base64," + readFileSync("${fileName(p, i)}").toString("base64");\n`).join("");
  const key = c.to.keys ? "process.env.MMSERVE_API_KEY" : `"none"`;
  return `// npm install openai; save as ask.mjs; node ask.mjs
${needs(c, "//")}import OpenAI from "openai";
${inline || images.length === 0 ? "" : `import { readFileSync } from "node:fs";\n`}
${names}const client = new OpenAI({ baseURL: "${c.to.http}/v1", apiKey: ${key} });
const answer = await client.chat.completions.create(${literal(c.body, false, c.source)});
console.log(answer.choices[0].message.content);
`;
}

/** A string literal of Go; a byte order mark may not stand in its source. */
const goString = (s: string) => JSON.stringify(s).replace(/\uFEFF/g, "\\ufeff");

function golang(c: Context): string {
  const { body: b, source: { images, inline } } = c;
  const read = images.map((p, i) => inline
    ? `\timage${i}, err := base64.StdEncoding.DecodeString(${goString(base64(c.data[i]!))})\n\tcheck(err)\n`
    : `\timage${i}, err := os.ReadFile(${goString(fileName(p, i))})\n\tcheck(err)\n`).join("");
  const part = (p: Part) => {
    if (p.type === "text") return `client.Text(${goString(p.text)})`;
    const image = `client.ImageBytes(image${parseInt(p.image_url.url.slice(c.source.mark.length))})`;
    return p.image_url.detail ? `detail(${image}, pb.Detail_DETAIL_${p.image_url.detail.toUpperCase()})` : image;
  };
  const roleNames = { system: "System", user: "User", assistant: "Assistant" } as const;
  const turns = b.messages.map((m) => `\t\tclient.${roleNames[m.role]}(${partsOf(m).map(part).join(", ")}),\n`).join("");
  const detailed = b.messages.some((m) => partsOf(m).some((p) => p.type === "image_url" && p.image_url.detail));
  const fields = goFields(b);
  const uses = (name: string) => (fields + (detailed ? "pb." : "")).includes(name);
  const key = c.to.keys ? `, client.WithAPIKey(os.Getenv("MMSERVE_API_KEY"))` : "";
  const tls = c.to.grpcTLS ? ", client.WithTLS(nil)" : "";
  const std = ["context", images.length > 0 && inline ? "encoding/base64" : "", "fmt", "log",
    key !== "" || images.length > 0 && !inline ? "os" : ""].filter((i) => i !== "");
  return `// go mod init try; save as main.go; go mod tidy; go run .
${needs(c, "//")}package main

import (
${std.map((i) => `\t"${i}"\n`).join("")}
${uses("proto.") ? `\t"google.golang.org/protobuf/proto"\n\n` : ""}\t"github.com/mmserve/mmserve/client"
${uses("pb.") ? `\tpb "github.com/mmserve/mmserve/proto/mmserve/v1"\n` : ""})

func main() {
${read}	c, err := client.Dial(${goString(c.to.grpc)}${key}${tls})
	check(err)
	defer c.Close()
	in := client.Chat(
${turns}	)
${fields}	out, err := c.Generate(context.Background(), in)
	check(err)
	fmt.Println(out.GetText())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
${detailed ? `
func detail(p *pb.Part, d pb.Detail) *pb.Part {
	p.GetImage().Detail = d
	return p
}
` : ""}`;
}

function goFields(b: Body): string {
  let out = "";
  const set = (name: string, value: string) => (out += `\tin.${name} = ${value}\n`);
  if (b.model !== undefined) set("Model", goString(b.model));
  if (b.max_tokens !== undefined) set("MaxTokens", `proto.Uint32(${b.max_tokens})`);
  const sampling = [
    b.temperature !== undefined && `Temperature: proto.Float32(${b.temperature})`,
    b.top_p !== undefined && `TopP: proto.Float32(${b.top_p})`, b.seed !== undefined && `Seed: proto.Uint64(${b.seed})`,
  ].filter((s) => s !== false);
  if (sampling.length > 0) set("Sampling", `&pb.Sampling{${sampling.join(", ")}}`);
  const o = b.structured_outputs;
  if (b.response_format) {
    const schema = goString(JSON.stringify(b.response_format.json_schema.schema));
    set("Constraint", `&pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: ${schema}}}`);
  } else if (o?.choice) {
    const texts = o.choice.map(goString).join(", ");
    set("Constraint", `&pb.Constraint{Kind: &pb.Constraint_Choices{\n\t\tChoices: &pb.Choices{Texts: []string{${texts}}, ` +
      `Scores: ${!!o.choice_scores}},\n\t}}`);
  } else if (o?.regex !== undefined) {
    set("Constraint", `&pb.Constraint{Kind: &pb.Constraint_Regex{Regex: ${goString(o.regex)}}}`);
  }
  if (b.logprobs) set("Logprobs, in.TopLogprobs", `true, ${b.top_logprobs ?? 0}`);
  return out;
}
