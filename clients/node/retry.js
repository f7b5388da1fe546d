// When to try again a call that the server had no room for.
import { fileURLToPath } from "node:url";
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
