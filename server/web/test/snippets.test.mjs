// Every snippet is copied from the page, runs as it is, and gets the answer that the page got.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { bmp, drop, launch, open, root, sample, serve } from "./lib.mjs";

const run = promisify(execFile);
let server, browser, folder;
before(async () => {
  [server, browser] = [await serve("--model", join(root, "model/tiny-vlm")), await launch()];
  folder = mkdtempSync(join(tmpdir(), "snippets-"));
  writeFileSync(join(folder, "large.bmp"), bmp(160, 160)); // more bytes than a snippet holds
  mkdirSync(join(folder, "node_modules"));
  symlinkSync(join(root, "clients/openai/node/node_modules/openai"), join(folder, "node_modules/openai"));
  await run("go", ["mod", "init", "try"], { cwd: folder });
  await run("go", ["mod", "edit", "-require=github.com/mmserve/mmserve@v0.0.0",
    `-replace=github.com/mmserve/mmserve=${root}`], { cwd: folder });
  cpSync(join(root, "go.sum"), join(folder, "go.sum"));
});
after(async () => {
  await browser?.close();
  await server?.stop();
  if (folder) rmSync(folder, { recursive: true });
});

/** What prints the answer of a snippet, given the path of the file that it is in. */
const runners = {
  curl: async (code) => JSON.parse((await run("bash", ["-c", code], { cwd: folder })).stdout).choices[0].message.content,
  grpcurl: async (code) => JSON.parse((await run("bash", ["-c", code], {
    cwd: folder, env: { ...process.env, PATH: `${join(root, "bin")}:${process.env.PATH}` },
  })).stdout).text,
  Python: async (code) => {
    writeFileSync(join(folder, "ask.py"), code);
    return (await run("python3", ["ask.py"], { cwd: folder })).stdout.replace(/\n$/, "");
  },
  "OpenAI SDK": async (code) => {
    writeFileSync(join(folder, "ask.mjs"), code);
    return (await run("node", ["ask.mjs"], { cwd: folder })).stdout.replace(/\n$/, "");
  },
  Go: async (code) => {
    writeFileSync(join(folder, "main.go"), code);
    const formatted = await run("gofmt", ["-l", "main.go"], { cwd: folder });
    assert.equal(formatted.stdout, "", "gofmt would change it");
    return (await run("go", ["run", "-mod=mod", "."], { cwd: folder })).stdout.replace(/\n$/, "");
  },
};

const prompt = (page) => page.getByLabel("Prompt", { exact: true });

async function ask(page, text) {
  const had = await page.locator(".answer .timeline").count();
  await prompt(page).fill(text);
  await page.getByRole("button", { name: "Send" }).click();
  await page.locator(".answer .timeline").nth(had).waitFor();
}

const nasty = "Say \"it's\" $HOME `id` $(id) \\n \\u0041 %s {0} é 😀 \u2028\nJSON\n'''\nimage-1-0. <b>&amp;";

const cases = {
  "an image": async (page) => {
    await drop(page, sample(0));
    await ask(page, "Describe the image.");
  },
  "settings, an earlier turn, and characters that shells and languages read": async (page) => {
    await page.getByLabel("System prompt").fill(nasty);
    for (const [label, value] of [["Most tokens", "20"], ["Temperature", "0.7"], ["Top-p", "0.9"], ["Seed", "7"]]) {
      await page.getByLabel(label).fill(value);
    }
    await page.getByLabel("Log-probabilities").check();
    await drop(page, sample(1));
    await page.getByLabel("Detail of sample1.png").selectOption("low");
    await ask(page, nasty);
    await ask(page, "Where is the blue shape?");
  },
  "a schema": async (page) => {
    await page.getByLabel("The answer is").selectOption({ label: "JSON of a schema" });
    await page.getByLabel("JSON schema", { exact: true }).fill('{"type":"object","properties":{"$n":{"enum":["it\'s","b"]}},"required":["$n"],"additionalProperties":false}');
    await drop(page, sample(2));
    await ask(page, "Describe the image.");
  },
  "choices": async (page) => {
    await page.getByLabel("Model").selectOption({ index: 0 });
    await page.getByLabel("The answer is").selectOption({ label: "one of these" });
    await page.getByLabel("Choices, one a line").fill("orange\n\"blue\"\n$green");
    await drop(page, sample(0));
    await ask(page, "What color is the star?");
  },
  "a large image, which is read from a file": async (page) => {
    await drop(page, join(folder, "large.bmp"));
    await ask(page, "Describe the image: $HOME \\n `id`");
  },
};

for (const [name, do_] of Object.entries(cases)) {
  test(name, async (t) => {
    const { page, context, wrong } = await open(browser, server.url, { permissions: ["clipboard-read", "clipboard-write"] });
    await do_(page);
    const want = await page.locator(".answer .markdown").last().innerText();
    await page.getByRole("button", { name: "Copy as code" }).last().click();
    for (const [kind, runner] of Object.entries(runners)) {
      await t.test(kind, async (t2) => {
        if (kind === "grpcurl" && !existsSync(join(root, "bin/grpcurl"))) return t2.skip("no bin/grpcurl: make bin/grpcurl");
        await page.getByRole("button", { name: kind, exact: true }).click();
        await page.locator(".snippet", { hasText: server.url.slice(-5) }).or(page.locator(".snippet", { hasText: server.grpc })).waitFor();
        await page.getByRole("dialog").getByRole("button", { name: "Copy" }).click();
        await page.getByRole("button", { name: "Copied" }).waitFor();
        const code = await page.evaluate(() => navigator.clipboard.readText());
        assert.equal((await runner(code)).trim(), want.trim());
      });
    }
    assert.deepEqual(wrong, []);
    await context.close();
  });
}
