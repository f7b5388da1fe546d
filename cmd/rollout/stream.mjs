// Sends streams at a rate through gRPC's own client with a service config, and prints a JSON line for each that ended.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const [clients, target, config, rate, streams, tokens, prefix] = process.argv.slice(2);
const require = createRequire(`${clients}/node/index.js`);
const grpc = require("@grpc/grpc-js"), loader = require("@grpc/proto-loader");
const proto = loader.loadSync("mmserve/v1/mmserve.proto", {
  includeDirs: [`${clients}/node/proto`], enums: String, longs: Number, oneofs: true,
});
const { InferenceService } = grpc.loadPackageDefinition(proto).mmserve.v1;
const rpc = new InferenceService(target, grpc.credentials.createInsecure(), {
  "grpc.service_config": readFileSync(config, "utf8"),
  "grpc.per_rpc_retry_buffer_size": 64 << 20, "grpc.retry_buffer_size": 256 << 20,
});

async function one(i) {
  const o = {
    id: `${prefix}-${i}`, code: "OK", sent: Date.now(), first: 0, starts: 0, finishes: 0, received: 0, completion: 0,
  };
  const request = { requestId: o.id, maxTokens: Number(tokens), ignoreEos: true, prompt: { parts: [{ text: "red" }] } };
  try {
    for await (const event of rpc.generateStream(request, { deadline: Date.now() + 60_000 })) {
      o.first ||= Date.now();
      if (event.start) o.starts++;
      o.received += event.delta?.tokens ?? 0;
      if (event.finish) {
        o.finishes++;
        o.completion += event.finish.usage.completionTokens;
      }
    }
  } catch (error) {
    Object.assign(o, { code: grpc.status[error.code], error: error.details });
  }
  console.log(JSON.stringify({ ...o, ended: Date.now() }));
}

const began = performance.now(), calls = [];
for (let i = 0; i < Number(streams); i++) {
  await sleep(Math.max(0, began + i / Number(rate) * 1000 - performance.now()));
  calls.push(one(i));
}
await Promise.all(calls);
rpc.close();
