// Shows a request as code.
import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { t } from "./messages";
import { pathTo, type Answer } from "./model";
import { closeDialog, Copy, Dialog } from "./parts";
import { body } from "./request";
import { imageURL, kinds, snippet, source, type Kind, type Target } from "./snippets";
import { conversation, server } from "./state";

/** Where the API is, as this browser reaches it. */
function target(): Target {
  const s = server.value;
  const grpc = (s?.grpc || "127.0.0.1:8080").replace(/^(\[::\]|0\.0\.0\.0|):/, `${location.hostname}:`);
  return { http: location.origin, grpc, grpcTLS: !!s?.grpc_tls, keys: !!s?.keys };
}

export function Snippets({ answer }: { answer: Answer }) {
  const kind = useSignal<Kind>("curl"), code = useSignal("");
  useEffect(() => {
    let gone = false;
    void (async () => {
      const nodes = pathTo(conversation.value, answer.parent);
      const from = source(nodes.flatMap((n) => (n.kind === "turn" ? n.images : [])));
      const text = await snippet(kind.value, await body(nodes, answer.settings, imageURL(from)), from, target());
      if (!gone) code.value = text;
    })();
    return () => { gone = true; };
  }, [kind.value]);
  return (
    <Dialog title={t("asCode")} onClose={closeDialog} wide>
      <div class="actions" role="group" aria-label={t("asCode")}>
        {kinds.map(([k, name]) => <button key={k} type="button" class="small" aria-pressed={k === kind.value}
          onClick={() => {
            if (k !== kind.value) code.value = "";
            kind.value = k;
          }}>{name}</button>)}
        <span class="gap" />
        <Copy text={code.value} />
      </div>
      <pre class="snippet" tabIndex={0} role="region" aria-label={t("code")}><code>{code.value}</code></pre>
    </Dialog>
  );
}
