// The frame of the page.
import { effect, useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { key, setKey } from "./api";
import { Chat } from "./chat";
import { DropZone } from "./composer";
import type { JSX } from "preact";
import { t, type Key } from "./messages";
import { Compare } from "./compare";
import { Engine } from "./engine";
import { HistoryDialog, KeysDialog } from "./historydialog";
import { dialog, Field } from "./parts";
import { TableView } from "./table";
import { Looks, SettingsForm } from "./settings";
import { announced, connect, running, settings, start, status, stopAll, view, type View } from "./state";

effect(() => { document.title = t("title"); });

const views: [View, Key, () => JSX.Element][] = [
  ["chat", "chat", Chat], ["compare", "compare", Compare], ["table", "many", TableView], ["engine", "engine", Engine],
];

/** Keys that work wherever the user is; those without Alt only where nothing is being typed. */
function onKey(e: KeyboardEvent) {
  const typing = (e.target as HTMLElement).matches?.("input, textarea, select");
  if (dialog.value) return;
  if (e.key === "Escape" && Object.keys(running.value).length > 0) stopAll();
  else if (e.altKey && e.key.toLowerCase() === "n") start();
  else if (e.altKey && views[Number(e.key) - 1]) view.value = views[Number(e.key) - 1]![0];
  else if (!typing && e.key === "/") document.getElementById("prompt")?.focus();
  else if (!typing && e.key === "?") dialog.value = <KeysDialog />;
  else return;
  e.preventDefault();
}

export function App() {
  useEffect(() => {
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, []);
  const View = views.find(([v]) => v === view.value)![2];
  const narrow = matchMedia("(max-width: 800px)").matches, open = useSignal(!narrow);
  return (
    <>
      <a class="skip" href={view.value === "engine" ? "#main" : "#prompt"}>{t("skip")}</a>
      <header class="top">
        <h1>mmserve</h1>
        <nav aria-label={t("views")}>
          {views.map(([v, label]) => <button key={v} type="button" aria-current={view.value === v ? "page" : undefined}
            onClick={() => (view.value = v)}>{t(label)}</button>)}
        </nav>
        <span class="gap" />
        <button type="button" onClick={() => start()}>{t("newChat")}</button>
        <button type="button" aria-haspopup="dialog" onClick={() => (dialog.value = <HistoryDialog />)}>{t("history")}</button>
        <button type="button" aria-expanded={open.value} aria-controls="settings"
          onClick={() => (open.value = !open.value)}>{t("settings")}</button>
      </header>
      <Banner />
      <div class="columns">
        <main id="main" tabIndex={-1}><View /></main>
        <aside id="settings" aria-label={t("settings")} hidden={!open.value || view.value === "compare" || view.value === "engine"}>
          <SettingsForm value={settings.value} onChange={(s) => (settings.value = s)} />
          <Looks />
          <button type="button" class="small" aria-haspopup="dialog" onClick={() => (dialog.value = <KeysDialog />)}>
            {t("keyboard")}</button>
        </aside>
      </div>
      <DropZone />
      {dialog.value}
      <p class="hidden" aria-live="polite">{announced.value}</p>
    </>
  );
}

function Banner() {
  switch (status.value) {
    case "down": return <p class="banner failure" role="alert">{t("down")}</p>;
    case "loading": return <p class="banner" role="status">{t("loading")}</p>;
    case "key": return <KeyForm />;
  }
  return null;
}

function KeyForm() {
  const typed = useSignal(key.value);
  return (
    <form class="banner" aria-label={t("access")} onSubmit={(e) => { e.preventDefault(); setKey(typed.value); void connect(); }}>
      <p role="alert">{t("keyHelp")}</p>
      <Field label={t("key")}>{(id) => (
        <input id={id} type="password" autocomplete="off" value={typed.value}
          onInput={(e) => (typed.value = e.currentTarget.value)} />)}
      </Field>
      <button type="submit" class="primary">{t("keyUse")}</button>
    </form>
  );
}
