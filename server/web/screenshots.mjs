// Makes the images of docs/playground.md anew: node screenshots.mjs, after make build.
import { join } from "node:path";
import { drop, launch, open, root, sample, serve } from "./test/lib.mjs";

const server = await serve(), browser = await launch();
const docs = (name) => join(root, "docs", `playground-${name}.png`);
const prompt = (page) => page.getByLabel("Prompt", { exact: true });

async function play(options, do_) {
  const { page, context } = await open(browser, server.url, { viewport: { width: 1100, height: 700 }, ...options });
  await do_(page);
  await context.close();
}

async function ask(page, ...images) {
  await drop(page, ...images);
  await prompt(page).fill("Describe the image.");
  await page.locator(".cost").waitFor();
  await prompt(page).press("Enter");
  await page.locator(".answer .timeline").last().waitFor();
}

await play({}, async (page) => {
  await ask(page, sample(0));
  await prompt(page).fill("Where is the orange object?");
  await drop(page, sample(1));
  await page.getByText("of images, in a context").waitFor();
  await page.screenshot({ path: docs("light") });
});
await play({ colorScheme: "dark", locale: "de-DE" }, async (page) => {
  await page.getByRole("button", { name: "Vergleich" }).click();
  await drop(page, sample(3));
  await page.getByLabel("Eingabe", { exact: true }).fill("Describe the image.");
  await page.getByRole("button", { name: "Beide fragen" }).click();
  await page.locator(".timeline").nth(1).waitFor();
  await page.screenshot({ path: docs("dark") });
});
await play({ viewport: { width: 360, height: 700 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 }, async (page) => {
  await ask(page, sample(2));
  await page.screenshot({ path: docs("phone") });
});
await play({}, async (page) => {
  await ask(page, sample(0));
  await page.locator(".timeline summary").click();
  await page.locator(".answer").screenshot({ path: docs("timeline") });
});
await play({}, async (page) => {
  await page.getByLabel("Log-probabilities").check();
  await page.getByLabel("Temperature").fill("1.9");
  await page.getByLabel("Seed").fill("4");
  await drop(page, sample(6));
  await prompt(page).fill("Tell me a story about this.");
  await prompt(page).press("Enter");
  await page.locator(".heatmap summary").click();
  const unsure = page.locator(".heatmap .token:is(.heat3, .heat4, .heat5)").first();
  await ((await unsure.count()) > 0 ? unsure : page.locator(".heatmap .token").nth(2)).hover();
  await page.locator(".answer").screenshot({ path: docs("heatmap") });
});
await play({}, async (page) => {
  await page.getByRole("button", { name: "Engine" }).click();
  await page.getByText("tokens generated").waitFor();
  const body = JSON.stringify({ messages: [{ role: "user", content: "red" }], max_tokens: 300, min_tokens: 300 });
  const headers = { "Content-Type": "application/json" };
  const ask = () => fetch(`${server.url}/v1/chat/completions`, { method: "POST", headers, body }).then((r) => r.text());
  for (let i = 1; i <= 6; i++) { // more at once, from second to second
    const until = Date.now() + 1500;
    void Promise.all(Array.from({ length: 2 * i }, async () => { while (Date.now() < until) await ask(); }));
    await page.waitForTimeout(1500);
  }
  await page.screenshot({ path: docs("engine") });
});
await browser.close();
await server.stop();
