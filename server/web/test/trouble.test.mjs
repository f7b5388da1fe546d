// What the page does when things go wrong or take long, against servers whose pace is set.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { axe, bmp, captions, drop, launch, open, program, root, sample, serve, start } from "./lib.mjs";

let browser, folder;
before(async () => {
  browser = await launch();
  folder = mkdtempSync(join(tmpdir(), "playground-"));
});
after(async () => {
  await browser?.close();
  rmSync(folder, { recursive: true });
});

/** A model folder whose context takes long answers. */
function longModel() {
  const dir = join(folder, "long");
  cpSync(join(root, "model/tiny-vlm"), dir, { recursive: true });
  const path = join(dir, "config.json"), config = JSON.parse(readFileSync(path, "utf8"));
  config.text_config.max_position_embeddings = 4096;
  writeFileSync(path, JSON.stringify(config));
  return dir;
}

/** The embedded model where it sees an image of 256x256 in 3x3 tiles of 64x64, and as a whole. */
function tilingModel() {
  const dir = join(longModel(), "../tiling");
  cpSync(join(folder, "long"), dir, { recursive: true });
  const path = join(dir, "preprocessor_config.json"), config = JSON.parse(readFileSync(path, "utf8"));
  writeFileSync(path, JSON.stringify({ ...config, do_image_splitting: true, size: { longest_edge: 192 } }));
  return dir;
}

const prompt = (page) => page.getByLabel("Prompt", { exact: true });
const send = async (page, text) => { await prompt(page).fill(text); await prompt(page).press("Enter"); };
const coming = (page) => page.waitForFunction(() => document.querySelector(".answer .markdown")?.textContent.split(" ").length > 5);

/** How many answers the server works on. */
async function running(server) {
  const reader = (await fetch(`${server.url}/web/engine`)).body.getReader();
  const first = new TextDecoder().decode((await reader.read()).value);
  await reader.cancel();
  return JSON.parse(first.slice("data: ".length)).engines[0].running;
}

/** Waits until the server works on none; the whole answers of these tests would take 12 s and more. */
async function rests(server) {
  for (const until = Date.now() + 5_000; await running(server) > 0;) assert.ok(Date.now() < until, "the server goes on");
}

test("an answer is stopped, by the button and by Escape, and stays as it is", async () => {
  const server = await serve("--pace=1ms,30ms");
  const { page, context, wrong } = await open(browser, server.url);
  await page.getByLabel("Most tokens").fill("400");
  for (const stop of [() => page.locator(".composer").getByRole("button", { name: "Stop" }).click(), () => page.keyboard.press("Escape")]) {
    await page.getByRole("button", { name: "New chat" }).click();
    await send(page, "Tell me more.");
    await coming(page);
    assert.equal(await page.locator(".composer").getByRole("button", { name: "Stop" }).count(), 1);
    await stop();
    await page.getByText("Stopped.").waitFor();
    const text = await page.locator(".answer .markdown").innerText();
    assert.ok(text.split(" ").length < 400);
    await rests(server);
    assert.equal(await page.locator(".answer .markdown").innerText(), text);
    await page.getByRole("button", { name: "Ask again" }).waitFor();
  }
  assert.deepEqual(await axe(page), []);
  assert.deepEqual(wrong, []);
  await context.close();
  await server.stop();
});

test("a full queue is said, with when to come again", async () => {
  const server = await serve("--pace=1ms,50ms", "--slots=1", "--max-waiting=0");
  const first = await open(browser, server.url), second = await open(browser, server.url, { expected: ["429"] });
  await first.page.getByLabel("Most tokens").fill("400");
  await send(first.page, "Tell me more.");
  await coming(first.page);
  await send(second.page, "red");
  const alert = second.page.locator(".answer").getByRole("alert");
  assert.match(await alert.innerText(), /^All places of the server are taken\. Ask again in \d+ s\.$/);
  await first.page.locator(".composer").getByRole("button", { name: "Stop" }).click();
  await first.page.getByText("Stopped.").waitFor();
  await rests(server);
  await second.page.getByRole("button", { name: "Ask again" }).click();
  await coming(second.page);
  assert.deepEqual([...first.wrong, ...second.wrong], []);
  await first.context.close();
  await second.context.close();
  await server.stop();
});

test("a table waits for places, and loses no row", async () => {
  const server = await serve("--pace=1ms,5ms", "--slots=1", "--max-waiting=0");
  const { page, context } = await open(browser, server.url);
  await page.getByLabel("Most tokens").fill("4");
  await page.getByRole("button", { name: "Table" }).click();
  await drop(page, ...[0, 1, 2, 3, 4, 5].map(sample));
  await prompt(page).fill("Describe the image.");
  await page.getByRole("button", { name: "Ask about each" }).click();
  await page.getByText("6 of 6 answered").waitFor();
  assert.equal(await page.locator("table .failure").count(), 0);
  await context.close();
  await server.stop();
});

test("a server that dies is said, and the page is there again when it is", async () => {
  const server = await serve("--pace=1ms,30ms");
  const { page, context } = await open(browser, server.url);
  await page.getByLabel("Most tokens").fill("400");
  await send(page, "Tell me more.");
  await coming(page);
  await server.kill();
  const alert = page.locator(".answer").last().getByRole("alert");
  assert.match(await alert.innerText(), /^The answer broke off: the connection to the server was lost/);
  await page.locator(".banner", { hasText: "The server does not answer." }).waitFor();
  const text = await page.locator(".answer .markdown").innerText();
  assert.notEqual(text, "");
  await page.getByRole("button", { name: "Ask again" }).click();
  await page.getByText("it may have been stopped, or the network is gone").waitFor();
  assert.deepEqual(await axe(page), []);
  const again = start(["serve", "--listen=127.0.0.1:0", "--http-listen", server.url.slice("http://".length),
    "--admin-address=", "--pace=1ms,1ms"], "ignore");
  await page.locator(".banner").waitFor({ state: "detached" });
  await page.getByRole("button", { name: "Ask again" }).click();
  await page.locator(".answer .timeline").waitFor();
  await context.close();
  again.kill("SIGTERM");
  await new Promise((resolve) => again.on("exit", resolve));
});

test("a server with keys asks for one, which stays in the tab", async () => {
  const keys = join(folder, "keys.jsonl");
  const made = spawnSync(program, ["keys", "new", "--id=test", "--tenant=acme"], { encoding: "utf8" });
  const printed = made.stdout.trim().split("\n"), key = printed[1], line = printed.at(-1);
  writeFileSync(keys, `${line}\n`, { mode: 0o600 });
  const server = await serve("--api-keys-file", keys);
  const { page, context, wrong } = await open(browser, server.url, { expected: ["401", "403"] });
  await page.getByText("This server wants a key.").waitFor();
  assert.deepEqual(await axe(page), []);
  await page.getByLabel("Key", { exact: true }).fill(key);
  await page.getByRole("button", { name: "Use the key" }).click();
  await page.locator(".banner").waitFor({ state: "detached" });
  await drop(page, sample(0));
  await send(page, "Describe the image.");
  await page.locator(".answer .timeline").waitFor();
  assert.equal(await page.locator(".answer .markdown").innerText(), captions[0]);
  assert.equal(await page.evaluate((k) => JSON.stringify(localStorage).includes(k), key), false);
  await page.getByRole("button", { name: "Copy as code" }).click();
  for (const kind of ["curl", "grpcurl", "Python", "Go", "OpenAI SDK"]) {
    await page.getByRole("button", { name: kind, exact: true }).click();
    await page.locator(".snippet", { hasText: "MMSERVE_API_KEY" }).waitFor();
    assert.equal((await page.locator(".snippet").innerText()).includes(key), false);
  }
  await page.getByRole("button", { name: "Close" }).click();
  await page.getByRole("button", { name: "Engine" }).click();
  await page.getByText("This is not allowed here").waitFor();
  const other = await context.newPage(); // another tab asks anew
  await other.goto(server.url);
  await other.getByText("This server wants a key.").waitFor();
  assert.deepEqual(wrong, []);
  await context.close();
  await server.stop();
});

// Layouts are counted, and processor time of the page's thread is bounded; the frames' times are told, as load changes them.
test("an answer of 2,000 tokens streams with one layout a frame", async (t) => {
  const server = await serve("--pace=0ms,2ms", "--model", longModel(), "--no-self-test");
  const { page, context, wrong } = await open(browser, server.url);
  const cdp = await context.newCDPSession(page);
  await cdp.send("Performance.enable", { timeDomain: "threadTicks" });
  const metrics = async () => Object.fromEntries((await cdp.send("Performance.getMetrics")).metrics.map((m) => [m.name, m.value]));
  await page.getByLabel("Most tokens").fill("2000");
  await page.evaluate(() => {
    globalThis.frames = [];
    const frame = (now) => { globalThis.frames.push(now); requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
  });
  const before_ = await metrics();
  await send(page, "Tell me more.");
  await page.locator(".answer .timeline").waitFor({ timeout: 60_000 });
  const after_ = await metrics();
  const frames = await page.evaluate(() => globalThis.frames);
  const gaps = frames.slice(1).map((f, i) => f - frames[i]).sort((a, b) => a - b);
  const used = (name) => after_[name] - before_[name];
  assert.match(await page.locator(".answer .timeline").innerText(), /^2,000 tokens/);
  const layouts = used("LayoutCount") / frames.length;
  const [layout, script] = ["LayoutDuration", "ScriptDuration"].map((name) => 1000 * used(name) / frames.length);
  const at = (q) => gaps[Math.floor(q * (gaps.length - 1))].toFixed(1);
  t.diagnostic(`${frames.length} frames in ${((frames.at(-1) - frames[0]) / 1000).toFixed(1)} s; a frame takes ${at(0.5)} ms at the ` +
    `median, ${at(0.95)} at the 95th percentile; ${layouts.toFixed(2)} layouts, ${layout.toFixed(2)} ms of ` +
    `layout and ${script.toFixed(2)} ms of script a frame`);
  assert.ok(layouts < 1.5, `${layouts} layouts a frame`);
  assert.ok(layout > 0 && script > 0 && layout + script < 12, `${layout} ms of layout and ${script} ms of script a frame`);
  assert.deepEqual(wrong, []);
  await context.close();
  await server.stop();
});

test("the tiles that a model sees an image in are lines over it, at each detail", async () => {
  const server = await serve("--model", tilingModel(), "--no-self-test");
  const { page, context, wrong } = await open(browser, server.url);
  writeFileSync(join(folder, "wide.bmp"), bmp(96, 64));
  await drop(page, sample(0), join(folder, "wide.bmp"));
  await prompt(page).fill("Describe the images.");
  const [one, two] = [1 / 3, 2 / 3];
  for (const [name, detail, text, across, down] of [
    ["sample0.png", "low", "256×256, seen as 64×64 in 1 tile(s): 16 tokens", [], []],
    ["sample0.png", "auto", "256×256, seen as 192×192 in 10 tile(s): 160 tokens", [one, two], [one, two]],
    ["sample0.png", "high", "256×256, seen as 192×192 in 10 tile(s): 160 tokens", [one, two], [one, two]],
    ["wide.bmp", "low", "96×64, seen as 64×64 in 1 tile(s): 16 tokens", [], []],
    ["wide.bmp", "high", "96×64, seen as 192×128 in 7 tile(s): 112 tokens", [one, two], [0.5]],
  ]) {
    await page.getByLabel(`Detail of ${name}`).selectOption(detail);
    const thumb = page.locator(".thumbs > li", { hasText: name });
    await thumb.getByText(text).waitFor();
    const at = (from, other) => thumb.locator(`svg.tiles line[${other}1="0"]`).evaluateAll(
      (lines, a) => lines.map((l) => Number(l.getAttribute(a))), `${from}1`);
    assert.deepEqual([await at("x", "y"), await at("y", "x")], [across, down], `${name} at ${detail}`);
    const [image, lines] = await Promise.all([thumb.locator("img"), thumb.locator("svg.tiles")].map(
      async (l) => (await l.count()) ? l.boundingBox() : null));
    if (lines) for (const side of ["x", "y", "width", "height"]) assert.ok(Math.abs(image[side] - lines[side]) < 1, `${side} of ${name}: ${JSON.stringify([image, lines])}`);
  }
  assert.deepEqual(await axe(page), []);
  assert.deepEqual(wrong, []);
  await context.close();
  await server.stop();
});
