// What the client does with a server: go test -run TestClientNode ./cmd/mmserve starts them and sets the variables.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import grpc from "@grpc/grpc-js";
import { Client, request } from "./index.js";
import { outcome, retryDelay } from "./retry.js";

const { TARGET, BUSY, IMAGE, WANT, SECURE, ROOTS, KEY } = process.env;
const skip = TARGET ? false : "TARGET names no server";
const any = { maxTokens: 60, ignoreEos: true }; // on the busy server: 60 tokens of 10 ms
const code = (c) => (error) => assert.equal(error.code, c, error) ?? true;

async function whole(texts) {
  let all = "";
  for await (const text of texts) all += text;
  return all;
}

test("answers", { skip }, async () => {
  const client = new Client(TARGET);
  assert.equal(await client.caption(IMAGE), WANT);
  assert.equal(await client.chat([{ data: await readFile(IMAGE) }, "Describe the image."]), WANT);
  const texts = [];
  for await (const text of client.stream([{ path: IMAGE }, "Describe the image."])) texts.push(text);
  assert.equal(texts.join(""), WANT);
  assert(texts.length > 1);
  assert((await client.chat("red", { maxTokens: 1 })).length < (await client.chat("red", { maxTokens: 20, ignoreEos: true })).length);
});

test("refusals are not tried again", { skip }, async () => {
  await assert.rejects(new Client(TARGET).chat([{ data: Buffer.from("no image") }]),
    (error) => code(grpc.status.INVALID_ARGUMENT)(error) && retryDelay(error) === undefined);
});

test("waits for room", { skip }, async () => {
  const running = new Client(BUSY, { retries: 50 }).stream("red", any);
  await running.next();
  await assert.rejects(new Client(BUSY, { retries: 0 }).chat("red"),
    (error) => code(grpc.status.RESOURCE_EXHAUSTED)(error) && retryDelay(error) > 0);
  await assert.rejects(whole(new Client(BUSY, { retries: 0 }).stream("red")), code(grpc.status.RESOURCE_EXHAUSTED));
  const client = new Client(BUSY, { retries: 50 });
  const second = client.chat("red", { maxTokens: 3 });
  assert(await whole(running));
  assert(await second);
});

test("leaving the loop cancels", { skip }, async () => {
  const client = new Client(BUSY, { retries: 50 });
  for await (const _ of client.stream("red", { maxTokens: 450, ignoreEos: true })) break; // of 4.5 s
  const began = Date.now();
  await client.chat("red", { maxTokens: 1 });
  assert(Date.now() - began < 4000);
});

test("timeout", { skip }, async () => {
  const client = new Client(BUSY, { timeout: 300, retries: 50 });
  await assert.rejects(client.chat("red", { maxTokens: 450, ignoreEos: true }), code(grpc.status.DEADLINE_EXCEEDED));
});

test("a reset at the deadline", () => {
  const cancelled = () => Object.assign(new Error("1 CANCELLED: Call cancelled"), { code: grpc.status.CANCELLED });
  assert.equal(outcome(cancelled(), Date.now()).code, grpc.status.DEADLINE_EXCEEDED);
  assert.equal(outcome(cancelled(), Date.now() + 60_000).code, grpc.status.CANCELLED);
});

test("a key stays here", () => {
  for (const target of ["10.0.0.1:80", "mm.example:443", "localhost.example:80", "127.0.0.1:80.example", "localhost:1\n", ""])
    assert.throws(() => new Client(target, { key: "secret" }), /needs TLS/, target);
  for (const [target, tls] of [["localhost:1"], ["unix:///s"], ["mm.example:443", grpc.credentials.createSsl()]])
    assert.deepEqual(new Client(target, { key: "secret", tls }).metadata.get("authorization"), ["Bearer secret"]);
});

test("request", async () => {
  const message = await request(["a", { data: Buffer.from("x") }], { maxTokens: 3 });
  assert.deepEqual(message.chat.messages[0].parts, [{ text: "a" }, { image: { data: Buffer.from("x") } }]);
  assert.equal(message.maxTokens, 3);
});

test("TLS and key", { skip: SECURE ? false : "SECURE names no server" }, async () => {
  const tls = grpc.credentials.createSsl(await readFile(ROOTS));
  assert.equal(await new Client(SECURE, { key: KEY, tls }).caption(IMAGE), WANT);
  await assert.rejects(new Client(SECURE, { key: "wrong", tls }).caption(IMAGE), code(grpc.status.UNAUTHENTICATED));
});
