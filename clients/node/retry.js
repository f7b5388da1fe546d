// When to try again a call that the server had no room for, and what a failed call is called.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

// The contract, and what is read of an error's details.
export const proto = loader.loadSync(["mmserve/v1/mmserve.proto", "mmserve/retry.proto"], {
  includeDirs: [fileURLToPath(new URL("proto", import.meta.url))], enums: String, longs: String, oneofs: true,
});

// As deploy/balancers/service-config.json of mmserve has it: gRPC tries again itself what is UNAVAILABLE before the first token.
export const serviceConfig = {
  loadBalancingConfig: [{ round_robin: {} }],
  healthCheckConfig: { serviceName: "mmserve.v1.InferenceService" },
  methodConfig: [{
    name: [{ service: "mmserve.v1.InferenceService" }],
    retryPolicy: {
      maxAttempts: 4, initialBackoff: "0.2s", maxBackoff: "3s", backoffMultiplier: 2, retryableStatusCodes: ["UNAVAILABLE"],
    },
  }],
};

// Options of a channel. A request that is larger than the buffer is not tried again; the default is 1 MiB.
export const channelOptions = {
  "grpc.service_config": JSON.stringify(serviceConfig), "grpc.per_rpc_retry_buffer_size": 64 << 20,
  "grpc.retry_buffer_size": 256 << 20,
};

// Milliseconds after which the call that failed may be tried again; undefined if it may not.
export function retryDelay(error) {
  if (error.code !== grpc.status.RESOURCE_EXHAUSTED) return;
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
