// The list of conversations that this browser keeps.
import { useSignal } from "@preact/signals";
import { exported, imported, kept, load, remove, removeAll } from "./history";
import { t } from "./messages";
import { language } from "./prefs";
import { closeDialog, Dialog } from "./parts";
import { conversation, start } from "./state";
import { save } from "./table";

export function HistoryDialog() {
  const said = useSignal("");
  const open = async (id: string) => {
    const c = await load(id);
    if (!c) return;
    start(c);
    closeDialog();
  };
  const take = () => {
    const input = document.createElement("input");
    input.type = "file";
    input.accept = ".json,application/json";
    input.onchange = async () => {
      try {
        said.value = t("imported", await imported(await input.files![0]!.text()));
      } catch {
        said.value = t("notImported");
      }
    };
    input.click();
  };
  return (
    <Dialog title={t("history")} onClose={closeDialog}>
      <p class="note">{t("historyNote")}</p>
      <ul class="history">
        {kept.value.map((c) => <li key={c.id}>
          <button type="button" class="title" aria-current={c.id === conversation.value.id ? "true" : undefined}
            onClick={() => void open(c.id)}>{c.title || t("untitled")}
            <span class="name">{new Date(c.updated).toLocaleString(language.value)}</span></button>
          <button type="button" class="small" aria-label={t("deleteOne", c.title || t("untitled"))}
            onClick={() => void remove(c.id)}>×</button>
        </li>)}
      </ul>
      {kept.value.length === 0 && <p>{t("noHistory")}</p>}
      <div class="actions">
        <button type="button" onClick={async () => save("mmserve-history.json", "application/json", await exported())}
          disabled={kept.value.length === 0}>{t("export")}</button>
        <button type="button" onClick={take}>{t("import")}</button>
        <button type="button" onClick={() => void removeAll()} disabled={kept.value.length === 0}>{t("deleteAll")}</button>
      </div>
      <p role="status">{said.value}</p>
    </Dialog>
  );
}

export function KeysDialog() {
  return (
    <Dialog title={t("keyboard")} onClose={closeDialog}>
      <dl class="keys">
        {([["Enter", "keySend"], ["Shift+Enter", "keyLine"], ["Esc", "keyStop"], ["Alt+N", "newChat"],
          ["Alt+1 … 4", "keyViews"], ["/", "skip"], ["?", "keyboard"], ["← →", "keyTokens"]] as const).map(([k, what]) => (
          <div key={k}><dt><kbd>{k}</kbd></dt><dd>{t(what)}</dd></div>))}
      </dl>
    </Dialog>
  );
}
