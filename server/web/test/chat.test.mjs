// The playground as its user meets it, against the real program with the embedded model.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { axe, captions, drop, launch, open, sample, serve } from "./lib.mjs";

let server, browser;
before(async () => { [server, browser] = [await serve(), await launch()]; });
after(async () => {
  await browser?.close();
  await server?.stop();
});

/** A fresh page, and at its end nothing that is wrong. */
function played(name, options, do_) {
  test(name, async () => {
    const p = await open(browser, server.url, options);
    await do_(p.page, p);
    assert.deepEqual(p.wrong, [], "errors on the console");
    await p.context.close();
  });
}

const prompt = (page) => page.getByLabel("Prompt", { exact: true });
const answer = (page) => page.locator(".answer").last();

async function ask(page, text) {
  await prompt(page).fill(text);
  await prompt(page).press("Enter");
  await finished(page);
}

/** Until no answer is coming any more. */
async function finished(page) {
  await page.locator(".answer[aria-busy=false]").last().waitFor();
  await page.locator(".answer[aria-busy=true]").waitFor({ state: "detached" });
}

async function setMode(page, label) {
  await page.getByLabel("The answer is").selectOption({ label });
}

/** Has the model answer with a text of the test's own. */
async function answers(page, text) {
  await setMode(page, "a match of an expression");
  await page.getByLabel("Regular expression").fill(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  await ask(page, "red");
}

played("an image is dropped, costed, asked about, and timed", {}, async (page) => {
  await drop(page, sample(0));
  await prompt(page).fill("Describe the image.");
  await page.getByText("30 tokens").waitFor();
  assert.match(await page.locator(".cost").innerText(), /14 of text \+ 16 of images, in a context of 512/);
  assert.match(await page.locator(".thumbs").innerText(), /256×256, seen as 64×64 in 1 tile\(s\): 16 tokens/);
  assert.deepEqual(await axe(page), []);
  await ask(page, "Describe the image.");
  assert.equal(await answer(page).locator(".markdown").innerText(), captions[0]);
  await answer(page).locator(".timeline summary").click();
  const times = await answer(page).locator(".timeline dl").innerText();
  for (const stage of ["Decode and resize images", "Tokenize", "Encode images", "Queue", "Prefill", "Decode"]) {
    assert.ok(times.includes(stage), `no ${stage} in ${times}`);
  }
  assert.match(times, /30 \(14 text, 16 images; 0 cached\)/);
  assert.deepEqual(await axe(page), []);
});

played("a second question follows the first", {}, async (page) => {
  await drop(page, sample(1));
  await ask(page, "Describe the image.");
  assert.equal(await answer(page).locator(".markdown").innerText(), captions[1]);
  await ask(page, "Where is the blue shape?");
  assert.equal(await page.locator(".answer").count(), 2);
  assert.notEqual(await answer(page).locator(".markdown").innerText(), "");
  assert.match(await answer(page).locator(".timeline").innerText(), /tokens/);
});

played("the image is swapped under the same prompt, and both branches stay", {}, async (page) => {
  await drop(page, sample(0));
  await ask(page, "Describe the image.");
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Swap image sample0.png" }).click();
  await (await chooser).setFiles(sample(2));
  await page.getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  await finished(page);
  assert.equal(await answer(page).locator(".markdown").innerText(), captions[2]);
  assert.equal(await page.locator(".turn .said").innerText(), "Describe the image.");
  await page.getByRole("button", { name: "Previous branch" }).click();
  assert.equal(await answer(page).locator(".markdown").innerText(), captions[0]);
  assert.deepEqual(await axe(page), []);
});

played("a turn is edited, and an answer asked for again", {}, async (page) => {
  await drop(page, sample(0));
  await ask(page, "Describe the image.");
  await page.getByRole("button", { name: "Edit" }).click();
  await page.locator(".turn textarea").fill("Where is the orange object?");
  await page.getByRole("button", { name: "Send as a new branch" }).click();
  await page.getByRole("img", { name: "Branch 2 of 2" }).waitFor();
  await finished(page);
  assert.equal(await answer(page).locator(".markdown").innerText(), "In the center.");
  await page.getByRole("button", { name: "Ask again" }).click();
  await page.locator(".answer .branches").waitFor();
  await finished(page);
  assert.equal(await answer(page).locator(".markdown").innerText(), "In the center.");
  assert.equal(await page.locator(".answer .branches span").innerText(), "2/2");
});

played("several images go in one turn, pasted and picked", {}, async (page) => {
  await page.evaluate(async (data) => {
    const t = new DataTransfer();
    t.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], "pasted.png", { type: "image/png" }));
    document.getElementById("prompt").dispatchEvent(new ClipboardEvent("paste", { clipboardData: t, bubbles: true }));
  }, readFileSync(sample(3)).toString("base64"));
  const chooser = page.waitForEvent("filechooser");
  await page.getByRole("button", { name: "Add images" }).click();
  await (await chooser).setFiles([sample(0), sample(1)]);
  assert.equal(await page.locator(".composer .thumbs li").count(), 3);
  await page.getByRole("button", { name: "Remove sample1.png" }).click();
  await prompt(page).fill("Describe the image.");
  await page.getByText("+ 32 of images").waitFor();
  await ask(page, "Describe the image.");
  assert.match(await answer(page).locator(".timeline").innerText(), /tokens/);
});

played("an answer is JSON of a schema, which is checked while it is typed", {}, async (page) => {
  await setMode(page, "JSON of a schema");
  const schema = page.getByLabel("JSON schema", { exact: true });
  await page.getByText("The schema is well-formed.").waitFor();
  for (const [text, said] of [['{"type": "objekt"}', "objekt"], ["{", "JSON"], ['{"properties": []}', "#/properties"]]) {
    await schema.fill(text);
    await page.getByText("The schema:").waitFor();
    assert.ok((await page.locator("aside .failure").innerText()).includes(said));
  }
  await schema.fill('{"type":"object","properties":{"n":{"type":"integer"},"s":{"enum":["a","b"]}},"required":["n","s"],' +
    '"additionalProperties":false}');
  await drop(page, sample(0));
  await ask(page, "Describe the image.");
  const value = JSON.parse(await answer(page).locator(".markdown").innerText());
  assert.deepEqual(Object.keys(value), ["n", "s"]);
  assert.ok(Number.isInteger(value.n) && ["a", "b"].includes(value.s));
});

played("what a schema cannot hold is said by the server, in words", { expected: ["400"] }, async (page) => {
  await setMode(page, "JSON of a schema");
  await page.getByLabel("JSON schema", { exact: true }).fill('{"type":"string","minLength":5,"maxLength":2}');
  await ask(page, "red");
  assert.match(await page.getByRole("alert").innerText(), /The request is not valid: response_format.json_schema.schema/);
});

played("choices have scores as bars", {}, async (page) => {
  await setMode(page, "one of these");
  await page.getByLabel("Choices, one a line").fill("orange\nblue\n\n  green ");
  await drop(page, sample(0));
  await ask(page, "What color is the star?");
  assert.deepEqual((await answer(page).locator(".scores dt").allInnerTexts()).sort(), ["blue", "green", "orange"]);
  const list = (await answer(page).locator(".scores dd").allInnerTexts()).map((s) => parseFloat(s));
  assert.ok(Math.abs(list.reduce((a, b) => a + b) - 100) < 0.5, String(list));
  assert.deepEqual(list, list.toSorted((a, b) => b - a));
  const widths = await answer(page).locator(".scores .bar").evaluateAll((l) => l.map((e) => e.getBoundingClientRect().width));
  assert.deepEqual(widths, widths.toSorted((a, b) => b - a));
  assert.equal((await answer(page).locator(".markdown").innerText()), await answer(page).locator(".scores dt").first().innerText());
  assert.deepEqual(await axe(page), []);
});

played("log-probabilities are a heat map with the alternatives", {}, async (page) => {
  await page.getByLabel("Log-probabilities").check();
  await drop(page, sample(0));
  await ask(page, "Describe the image.");
  await answer(page).locator(".heatmap summary").click();
  const tokens = answer(page).locator(".token");
  assert.equal((await tokens.allTextContents()).join("").trim(), captions[0]);
  const shown = () => answer(page).locator(".alternatives").innerText();
  await tokens.nth(3).hover();
  assert.ok((await shown()).includes(JSON.stringify(await tokens.nth(3).textContent())));
  assert.equal(await answer(page).locator(".alternatives li").count(), 5);
  await answer(page).locator(".tokens").focus();
  const before_ = await shown();
  await page.keyboard.press("ArrowRight");
  assert.notEqual(await shown(), before_);
  assert.equal(await tokens.nth(4).getAttribute("class").then((c) => c.includes("current")), true);
  assert.deepEqual(await axe(page), []);
});

played("two settings are compared on the same image", {}, async (page) => {
  await page.getByRole("button", { name: "Compare" }).click();
  await drop(page, sample(0));
  const [a, b] = [page.getByLabel("Setting A"), page.getByLabel("Setting B")];
  await b.getByLabel("Most tokens").fill("3");
  await b.getByLabel("Temperature").fill("0");
  await prompt(page).fill("Describe the image.");
  await page.getByRole("button", { name: "Ask both" }).click();
  await a.locator(".timeline").waitFor();
  await b.locator(".timeline").waitFor();
  assert.equal(await a.locator(".markdown").innerText(), captions[0]);
  assert.ok(captions[0].startsWith(await b.locator(".markdown").innerText()));
  assert.notEqual(await b.locator(".markdown").innerText(), captions[0]);
  assert.deepEqual(await axe(page), []);
});

played("many images are a table, and a CSV", {}, async (page) => {
  await page.getByRole("button", { name: "Table" }).click();
  await drop(page, ...[0, 1, 2, 3, 4].map(sample));
  await prompt(page).fill("Describe the image.");
  await page.getByRole("button", { name: "Ask about each" }).click();
  await page.getByText("5 of 5 answered").waitFor();
  const cells = await page.locator("table.answers tbody td:nth-child(2)").allInnerTexts();
  assert.deepEqual(cells, captions.slice(0, 5));
  assert.deepEqual(await axe(page), []);
  const download = page.waitForEvent("download");
  await page.getByRole("button", { name: "Save as CSV" }).click();
  const csv = readFileSync(await (await download).path(), "utf8").split("\r\n");
  assert.equal(csv[0], "image,answer,finish,completion_tokens,total_ms,error");
  assert.ok(csv[1].startsWith(`sample0.png,${captions[0]},stop,13,`), csv[1]);
  assert.equal(csv.length, 7);
  await setMode(page, "JSON of a schema");
  await page.getByRole("button", { name: "Ask about each" }).click();
  await page.getByText("5 of 5 answered").waitFor();
  assert.deepEqual(await page.locator("table.answers thead th").allInnerTexts(),
    ["Image", "Answer", "caption", "objects", "Tokens", "Time"]);
});

played("the engine is seen at work", {}, async (page) => {
  await page.getByRole("button", { name: "Engine" }).click();
  const panel = page.getByLabel("tiny-vlm");
  await panel.getByRole("heading", { name: "KV cache" }).waitFor();
  assert.match(await panel.innerText(), /\d+ running, \d+ cached, of \d+/);
  assert.match(await panel.innerText(), /Since the start: [\d,]+ steps, [\d,]+ tokens generated/);
  assert.deepEqual(await axe(page), []);
});

played("history stays in the browser, is exported, deleted and imported", {}, async (page) => {
  await drop(page, sample(0));
  await ask(page, "Describe the image.");
  await page.reload();
  await page.getByRole("button", { name: "History" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByRole("button", { name: /^Describe the image/ }).waitFor();
  assert.deepEqual(await axe(page), []);
  const download = page.waitForEvent("download");
  await dialog.getByRole("button", { name: "Export" }).click();
  const file = await (await download).path();
  await dialog.getByRole("button", { name: "Delete all" }).click();
  await dialog.getByText("Nothing yet.").waitFor();
  const turn = { kind: "turn", id: "a", parent: "", text: "x", images: [] };
  const hostile = [
    [{ ...turn, id: "" }], [turn, turn], [{ ...turn, parent: "a" }], [{ ...turn, kind: "x" }], [{ kind: "answer", id: "b", parent: "" }],
    [{ ...turn, images: [{ id: "1", name: "x", detail: "auto", data: "https://x.test/a.png" }] }], null,
  ].map((nodes, i) => {
    const path = `${file}-${i}`;
    writeFileSync(path, JSON.stringify({ format: "mmserve-playground-1", conversations: [{ id: "h", title: "h", updated: 1, nodes, chosen: {} }] }));
    return [path, "This file has no conversations"];
  });
  for (const [path, said] of [...hostile, [sample(0), "This file has no conversations"], [file, "1 conversations were added."]]) {
    const chooser = page.waitForEvent("filechooser");
    await dialog.getByRole("button", { name: "Import" }).click();
    await (await chooser).setFiles(path);
    await dialog.getByText(said).waitFor();
  }
  await dialog.getByRole("button", { name: /^Describe the image/ }).click();
  assert.equal(await answer(page).locator(".markdown").innerText(), captions[0]);
  await page.waitForFunction(() => document.querySelector(".turn img")?.naturalWidth === 256);
  await ask(page, "Where is the orange object?");
  assert.equal(await page.locator(".answer").count(), 2);
});

played("Markdown of a model is elements, and never markup", {}, async (page) => {
  await page.getByLabel("Most tokens").fill("300");
  await answers(page, "**b** <img src=x onerror=alert(1)> [l](javascript:alert(1)) ![i](http://x.test/i.png) `c` <script>alert(1)</script>");
  const md = answer(page).locator(".markdown");
  assert.equal(await md.locator("strong").innerText(), "b");
  assert.equal(await md.locator("code").innerText(), "c");
  assert.equal(await md.locator("img, script").count(), 0);
  assert.deepEqual(await md.locator("a").evaluateAll((l) => l.map((a) => a.getAttribute("href"))), ["http://x.test/i.png"]);
  assert.ok((await md.innerText()).includes("<img src=x onerror=alert(1)>"));
});

played("scripts that get into the page do not run", { expected: ["CSP:", "Content Security Policy", "Trusted"] }, async (page) => {
  const tried = await page.evaluate(() => new Promise((resolve) => setTimeout(() => { // outside of what the debugger may do
    const tried = [];
    for (const run of [
      () => { document.createElement("div").innerHTML = "<img src=x onerror='globalThis.bad=1'>"; },
      () => { const s = document.createElement("script"); s.text = "globalThis.bad=1"; document.body.append(s); },
      () => { new Function("globalThis.bad=1")(); },
      () => { document.body.append(Object.assign(document.createElement("script"), { src: "https://x.test/a.js" })); },
    ]) {
      try { run(); tried.push("ran"); } catch (e) { tried.push(e.name); }
    }
    resolve(tried);
  })));
  assert.deepEqual(tried, ["TypeError", "TypeError", "EvalError", "TypeError"]);
  assert.equal(await page.evaluate(() => globalThis.bad), undefined);
});

played("a broken image and a file that is none are said in words", { expected: ["400"] }, async (page) => {
  await page.evaluate(() => {
    const t = new DataTransfer();
    t.items.add(new File(["\x89PNG\r\n\x1a\nnot really"], "broken.png", { type: "image/png" }));
    t.items.add(new File(["hello"], "notes.txt", { type: "text/plain" }));
    document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: t, bubbles: true, cancelable: true }));
  });
  assert.equal(await page.getByRole("alert").innerText(), "notes.txt is no image that can be sent.");
  await ask(page, "Describe the image.");
  assert.match(await page.locator(".answer").getByRole("alert").innerText(), /^The server cannot read an image: messages\[0\]/);
});

played("everything works by keyboard", {}, async (page) => {
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the prompt");
  await page.keyboard.press("Enter");
  await page.keyboard.type("red");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("blue");
  await page.keyboard.press("Enter");
  await finished(page);
  assert.equal(await page.locator(".said").innerText(), "red\nblue");
  for (const [keys, label] of [["Alt+2", "Compare"], ["Alt+3", "Table"], ["Alt+4", "Engine"], ["Alt+1", "Chat"]]) {
    await page.keyboard.press(keys);
    await page.locator(`nav button[aria-current=page]`, { hasText: label }).waitFor();
  }
  const seen = new Set();
  for (let i = 0; i < 60; i++) { // every control can be reached, and the end is
    await page.keyboard.press("Tab");
    seen.add(await page.evaluate(() => document.activeElement.textContent?.trim() || document.activeElement.id));
  }
  for (const name of ["Chat", "Settings", "Edit", "Ask again", "Copy as code", "prompt", "Send"]) {
    assert.ok(seen.has(name), `no ${name} among ${[...seen]}`);
  }
  await page.keyboard.press("Alt+n");
  await page.getByText("Drop an image here").waitFor();
});

played("German, dark", { locale: "de-DE", colorScheme: "dark" }, async (page) => {
  await page.getByRole("heading", { name: "Ziehen Sie ein Bild hierher" }).waitFor();
  assert.equal(await page.evaluate(() => document.documentElement.lang), "de");
  await drop(page, sample(0));
  await page.getByLabel("Eingabe", { exact: true }).fill("Describe the image.");
  await page.getByText("30 Token").waitFor();
  await page.getByRole("button", { name: "Senden" }).click();
  await finished(page);
  assert.deepEqual(await axe(page), []);
  await page.getByLabel("Sprache").selectOption("en");
  await page.getByLabel("Colors").selectOption("light");
  await page.reload();
  await page.getByText("Drop an image here").waitFor();
  assert.equal(await page.evaluate(() => getComputedStyle(document.documentElement).colorScheme), "light");
});

played("a phone of 360 pixels shows all of it", { viewport: { width: 360, height: 640 }, hasTouch: true, isMobile: true }, async (page) => {
  const fits = async (where) => {
    const [width, inner] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(width <= inner, `${where}: ${width} of ${inner} pixels`);
  };
  await page.getByRole("button", { name: "Take a photo" }).waitFor();
  await drop(page, sample(1));
  await prompt(page).fill("Describe the image.");
  await page.getByText("30 tokens").waitFor();
  await fits("composer");
  await page.getByRole("button", { name: "Send" }).tap();
  await finished(page);
  await answer(page).locator(".timeline summary").tap();
  await fits("answer");
  await page.getByRole("button", { name: "Copy as code" }).tap();
  await page.locator(".snippet", { hasText: "curl" }).waitFor();
  await fits("code");
  await page.getByRole("button", { name: "Close" }).tap();
  await page.getByRole("button", { name: "Settings" }).tap();
  await fits("settings");
  assert.deepEqual(await axe(page), []);
  for (const view of ["Compare", "Table", "Engine"]) {
    await page.getByRole("button", { name: view }).tap();
    await fits(view);
    assert.deepEqual(await axe(page), []);
  }
});
