// Loads mmserve with k6 (v1.4.0): open-loop arrivals, and the time to the first piece of text as a metric of its own.
//
//   k6 run -e ADDR=127.0.0.1:8080 -e RATE=10 -e DURATION=30s -e IMAGE=$PWD/photo.jpg deploy/loadtest/k6.js
//
// IMAGE is optional. A run fails when a threshold does.
import encoding from 'k6/encoding';
import exec from 'k6/execution';
import grpc from 'k6/net/grpc';
import { Counter, Trend } from 'k6/metrics';

const rate = Number(__ENV.RATE || 10);
const image = __ENV.IMAGE ? encoding.b64encode(open(__ENV.IMAGE, 'b')) : '';

export const options = {
  scenarios: {
    open: { executor: 'constant-arrival-rate', rate, timeUnit: '1s', duration: __ENV.DURATION || '30s', preAllocatedVUs: 10 * rate, maxVUs: 100 * rate },
  },
  thresholds: { ttft: ['p(99)<1000'], failures: ['count==0'], dropped_iterations: ['count==0'] },
};

const ttft = new Trend('ttft', true);
const e2e = new Trend('e2e', true);
const tokens = new Counter('output_tokens');
const failures = new Counter('failures');

const client = new grpc.Client();
client.load(['../../proto'], 'mmserve/v1/mmserve.proto');
let connected = false;

export default function () {
  if (!connected) {
    client.connect(__ENV.ADDR || '127.0.0.1:8080', { plaintext: true });
    connected = true;
  }
  const n = exec.scenario.iterationInTest;
  const parts = [{ text: `${n} the file is in name of and with return code this that from when list data new time line text` }];
  if (image) {
    parts.unshift({ image: { data: image } });
  }
  const sent = Date.now();
  let first = 0;
  const stream = new grpc.Stream(client, 'mmserve.v1.InferenceService/GenerateStream');
  stream.on('data', (event) => {
    if (event.delta && !first) {
      first = Date.now();
      ttft.add(first - sent);
    }
    if (event.finish) {
      e2e.add(Date.now() - sent);
      tokens.add(Number(event.finish.usage.completionTokens));
    }
  });
  stream.on('error', () => failures.add(1));
  stream.write({ requestId: `k6-${n}`, maxTokens: 50, ignoreEos: true, chat: { messages: [{ role: 'ROLE_USER', parts }] } });
  stream.end();
}
