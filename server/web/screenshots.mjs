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
  await drop(page, sample(5));
  await prompt(page).fill("Tell me a story about this.");
  await prompt(page).press("Enter");
  await page.locator(".heatmap summary").click();
  await page.locator(".heatmap .token").nth(2).hover();
  await page.locator(".answer").screenshot({ path: docs("heatmap") });
});
await play({}, async (page) => {
  await page.getByRole("button", { name: "Engine" }).click();
  await page.getByText("tokens generated").waitFor();
  await page.screenshot({ path: docs("engine") });
});
await browser.close();
await server.stop();
