// When to try again a call that the server had no room for, and what a failed call is called.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

// The contract, and what is read of an error's details.
export const proto = loader.loadSync(["mmserve/v1/mmserve.proto", "mmserve/retry.proto"], {
  includeDirs: [fileURLToPath(new URL("proto", import.meta.url))], enums: String, longs: String, oneofs: true,
});

// Milliseconds after which the call that failed may be tried again; undefined if it may not.
export function retryDelay(error) {
  for (const bytes of error.metadata?.get("grpc-status-details-bin") ?? []) {
    for (const detail of proto["mmserve.Status"].deserialize(bytes).details ?? []) {
      if (!detail.type_url.endsWith("/google.rpc.RetryInfo")) continue;
      const { seconds = 0, nanos = 0 } = proto["mmserve.RetryInfo"].deserialize(detail.value).retryDelay ?? {};
      return Number(seconds) * 1e3 + nanos / 1e6;
    }
  }
}

// The error that the caller is to see. At the deadline a server resets the stream; where its frame comes before grpc-js's
// own timer, the call counts as cancelled there. The two clocks may differ by some milliseconds.
export function outcome(error, deadline) {
  const { CANCELLED, DEADLINE_EXCEEDED } = grpc.status;
  if (error.code !== CANCELLED || Date.now() + 10 < deadline) return error;
  const text = "Deadline exceeded";
  return Object.assign(error, { code: DEADLINE_EXCEEDED, details: text, message: `${DEADLINE_EXCEEDED} DEADLINE_EXCEEDED: ${text}` });
}
