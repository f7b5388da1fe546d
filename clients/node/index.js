// A client of mmserve: text and images in, text out. Errors are gRPC's, with code and details.
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import grpc from "@grpc/grpc-js";
import { channelOptions, outcome, proto, retryDelay } from "./retry.js";
const { InferenceService } = grpc.loadPackageDefinition(proto).mmserve.v1;
// Each part is a text, { path } of an image file or { data } of an image; fields are GenerateRequest's, in camel case.
export async function request(parts, fields) {
  const read = async (p) => typeof p === "string" ? { text: p } : { image: { data: p.data ?? await readFile(p.path) } };
  return { chat: { messages: [{ role: "ROLE_USER", parts: await Promise.all([parts].flat().map(read)) }] }, ...fields };
}
export class Client { // tls: grpc.credentials.createSsl(…); without it a key goes to this machine only. timeout: milliseconds
  constructor(target, { key, tls, timeout = 60_000, retries = 5 } = {}) {
    if (key && !tls && !/^(localhost|127\.0\.0\.1|\[::1\]):\d+$|^unix:/.test(target)) throw new Error("an API key needs TLS, except to this machine");
    const options = { ...channelOptions, ...(key && !tls && { "grpc.enable_http_proxy": 0 }) };
    Object.assign(this, { rpc: new InferenceService(target, tls ?? grpc.credentials.createInsecure(), options), timeout, retries });
    this.metadata = grpc.Metadata.fromHttp2Headers(key ? { authorization: `Bearer ${key}` } : {});
  }
  async chat(parts, fields) {
    const message = await request(parts, fields);
    return this.call((options) => new Promise((resolve, reject) =>
      this.rpc.generate(message, this.metadata, options, (error, answer) => error ? reject(error) : resolve(answer.text))));
  }
  caption(path, fields) { return this.chat([{ path }, "Describe the image."], fields); }
  async *stream(parts, fields) { // texts as they come; leaving the loop cancels the call
    const message = await request(parts, fields);
    const [call, events, deadline] = await this.call(async (options) => {
      const call = this.rpc.generateStream(message, this.metadata, options).on("error", () => {}), events = call[Symbol.asyncIterator]();
      return await events.next() && [call, events, options.deadline]; // a stream that began is not tried again
    });
    try { for await (const { delta } of events) if (delta?.text) yield delta.text; }
    catch (error) { throw outcome(error, deadline); } finally { call.cancel(); }
  }
  async call(start, deadline = Date.now() + this.timeout) { // calls, within the timeout, until there is room
    for (let left = this.retries; ; left--) try { return await start({ deadline }); } catch (error) {
      const delay = retryDelay(error);
      if (delay === undefined || !left || Date.now() + 2 * delay > deadline) throw outcome(error, deadline);
      await sleep(delay * (1 + Math.random()));
    }
  }
}
