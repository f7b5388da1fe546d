// Starts what the tests need: the real program, and Debian's Chromium.
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join } from "node:path";
import { after } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const root = join(dirname(fileURLToPath(import.meta.url)), "../../..");
export const program = process.env.MMSERVE ?? join(root, "bin/mmserve");
export const sample = (i) => join(root, `model/tiny-vlm/samples/sample${i}.png`);
/** What the embedded model says of the samples. */
export const captions = Array.from(
  readFileSync(join(root, "model/tiny-vlm/samples/captions.md"), "utf8").matchAll(/^ {2}- model: (.*)$/gm), (m) => m[1]);

const axeSource = readFileSync(join(root, "server/web/node_modules/axe-core/axe.min.js"), "utf8");

function freePort() {
  return new Promise((resolve) => {
    const s = createServer();
    s.listen(0, "127.0.0.1", () => {
      const { port } = s.address();
      s.close(() => resolve(port));
    });
  });
}

const children = new Set(); // a test that fails stops nothing, and what runs on keeps its file from ending
after(() => children.forEach((child) => child.kill("SIGKILL")));

/** The program started; it ends with the tests of the file at the latest. */
export function start(args, stdio) {
  const child = spawn(program, args, { stdio });
  children.add(child);
  child.on("exit", () => children.delete(child));
  return child;
}

/** A server that answers; stop ends it. */
export async function serve(...flags) {
  const [grpc, http] = process.env.MMSERVE_PORTS ? nextPorts() : [await freePort(), await freePort()];
  const log = [];
  const child = start(["serve", "--listen", `127.0.0.1:${grpc}`, "--http-listen", `127.0.0.1:${http}`, "--admin-address=", ...flags],
    ["ignore", "pipe", "pipe"]);
  for (const out of [child.stdout, child.stderr]) out.on("data", (b) => log.push(String(b)));
  const ended = new Promise((resolve) => child.on("exit", resolve));
  const url = `http://127.0.0.1:${http}`;
  for (const until = Date.now() + 60_000; ;) {
    if (await fetch(`${url}/health`).then((r) => r.ok, () => false)) break;
    if (child.exitCode !== null || Date.now() > until) throw new Error(`the server does not serve:\n${log.join("")}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return { url, grpc: `127.0.0.1:${grpc}`, log, kill: () => { child.kill("SIGKILL"); return ended; },
    stop: () => { child.kill("SIGTERM"); return ended; } };
}

let port = Number(process.env.MMSERVE_PORTS ?? 0);
const nextPorts = () => [port++, port++];

export async function launch() {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (!existsSync(executablePath)) throw new Error(`no Chromium at ${executablePath}`);
  return chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });
}

/**
 * A page of the playground that notes what must not happen: errors on the console, exceptions, violations of the
 * content security policy. expected are texts that errors may have: browsers log each failed request.
 */
export async function open(browser, url, { expected = [], ...options } = {}) {
  const context = await browser.newContext({ locale: "en-US", ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("console", (m) => {
    if (["error", "warning"].includes(m.type()) && !expected.some((e) => m.text().includes(e))) wrong.push(m.text());
  });
  page.on("pageerror", (e) => wrong.push(String(e)));
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (e) => console.error(`CSP: ${e.violatedDirective} ${e.blockedURI}`));
  });
  await page.goto(url);
  return { page, context, wrong };
}

/** What axe finds, as one line each. Its script is put there by the debugger, which no policy holds. */
export async function axe(page) {
  await page.evaluate(axeSource);
  const result = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return result.violations.flatMap((v) => v.nodes.map((n) => `${v.id}: ${n.html.slice(0, 150)} ${n.failureSummary}`));
}

/** Drops files on the page, as a user does from a folder. */
export async function drop(page, ...paths) {
  const files = paths.map((p) => ({ name: p.split("/").at(-1), data: readFileSync(p).toString("base64") }));
  const transfer = await page.evaluateHandle((list) => {
    const t = new DataTransfer();
    for (const f of list) {
      t.items.add(new File([Uint8Array.from(atob(f.data), (c) => c.charCodeAt(0))], f.name,
        { type: f.name.endsWith(".png") ? "image/png" : f.name.endsWith(".jpg") ? "image/jpeg" : "" }));
    }
    return t;
  }, files);
  for (const type of ["dragenter", "dragover", "drop"]) {
    await page.dispatchEvent("body", type, { dataTransfer: transfer });
  }
}

/** An image file of two colors, as nobody compresses them. */
export function bmp(width, height) {
  const b = Buffer.alloc(54 + 3 * width * height);
  b.write("BM");
  for (const [at, v] of [[2, b.length], [10, 54], [14, 40], [18, width], [22, height], [34, 3 * width * height]]) b.writeUInt32LE(v, at);
  b.writeUInt16LE(1, 26);
  b.writeUInt16LE(24, 28);
  for (let i = 0; i < width * height; i++) b.set(i % width < width / 2 ? [255, 0, 0] : [0, 0, 255], 54 + 3 * i);
  return b;
}
