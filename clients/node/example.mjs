// node example.mjs TARGET IMAGE: a caption, then a streamed answer about the same image.
import { Client } from "./index.js";

const [target, path] = process.argv.slice(2);
const client = new Client(target, { timeout: 30_000 });
console.log(await client.caption(path));
for await (const text of client.stream([{ path }, "Describe the image."], { maxTokens: 32 })) process.stdout.write(text);
console.log();
