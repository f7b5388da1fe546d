// What a request says besides its messages.
import { t, languages } from "./messages";
import type { Mode, Settings } from "./model";
import { Field } from "./parts";
import { language, theme, type Language, type Theme } from "./prefs";
import { fault } from "./schema";
import { models } from "./state";

export function SettingsForm({ value, onChange }: { value: Settings; onChange: (s: Settings) => void }) {
  const set = <K extends keyof Settings>(k: K, v: Settings[K]) => onChange({ ...value, [k]: v });
  const numeric = (k: "maxTokens" | "temperature" | "topP" | "seed", label: string, more: { min?: number; max?: number; step: number }) => (
    <Field label={label}>{(id) => (
      <input id={id} type="number" inputMode="decimal" placeholder={t("serverDefault")} value={value[k]} {...more}
        onInput={(e) => set(k, e.currentTarget.value)} />)}
    </Field>
  );
  return (
    <div class="settings">
      <Field label={t("model")}>{(id) => (
        <select id={id} value={value.model} onChange={(e) => set("model", e.currentTarget.value)}>
          <option value="">{models.value[0] ? models.value[0].id : t("firstModel")}</option>
          {models.value.slice(1).map((m) => <option key={m.id} value={m.id}>{m.id}</option>)}
        </select>)}
      </Field>
      <Field label={t("system")}>{(id) => (
        <textarea id={id} rows={2} value={value.system} onInput={(e) => set("system", e.currentTarget.value)} />)}
      </Field>
      <div class="pair">
        {numeric("maxTokens", t("maxTokens"), { min: 1, step: 1 })}
        {numeric("temperature", t("temperature"), { min: 0, max: 2, step: 0.1 })}
        {numeric("topP", t("topP"), { min: 0, max: 1, step: 0.05 })}
        {numeric("seed", t("seed"), { min: 0, step: 1 })}
      </div>
      <ModeForm value={value} set={set} />
      <label class="check">
        <input type="checkbox" checked={value.logprobs} onChange={(e) => set("logprobs", e.currentTarget.checked)} />
        {t("logprobs")}
      </label>
    </div>
  );
}

const modes: [Mode, Parameters<typeof t>[0]][] = [
  ["text", "modeText"], ["schema", "modeSchema"], ["choices", "modeChoices"], ["regex", "modeRegex"],
];

function ModeForm({ value, set }: {
  value: Settings; set: <K extends keyof Settings>(k: K, v: Settings[K]) => void;
}) {
  const wrong = value.mode === "schema" ? fault(value.schema) : "";
  return (
    <>
      <Field label={t("mode")}>{(id) => (
        <select id={id} value={value.mode} onChange={(e) => set("mode", e.currentTarget.value as Mode)}>
          {modes.map(([m, label]) => <option key={m} value={m}>{t(label)}</option>)}
        </select>)}
      </Field>
      {value.mode === "schema" && <Field label={t("schema")}>{(id) => (
        <textarea id={id} class="mono" rows={8} spellcheck={false} value={value.schema}
          onInput={(e) => set("schema", e.currentTarget.value)} />)}
      </Field>}
      {value.mode === "schema" && <p class={wrong ? "failure" : "note"} role="status">
        {wrong ? t("schemaBad", wrong) : t("schemaGood")}</p>}
      {value.mode === "choices" && <Field label={t("choicesLabel")}>{(id) => (
        <textarea id={id} rows={4} value={value.choices} onInput={(e) => set("choices", e.currentTarget.value)} />)}
      </Field>}
      {value.mode === "regex" && <Field label={t("regex")}>{(id) => (
        <input id={id} class="mono" value={value.regex} onInput={(e) => set("regex", e.currentTarget.value)} />)}
      </Field>}
    </>
  );
}

export function Looks() {
  return (
    <div class="pair">
      <Field label={t("language")}>{(id) => (
        <select id={id} value={language.value} onChange={(e) => (language.value = e.currentTarget.value as Language)}>
          {Object.entries(languages).map(([k, name]) => <option key={k} value={k}>{name}</option>)}
        </select>)}
      </Field>
      <Field label={t("theme")}>{(id) => (
        <select id={id} value={theme.value} onChange={(e) => (theme.value = e.currentTarget.value as Theme)}>
          {(["auto", "light", "dark"] as const).map((k) => <option key={k} value={k}>{t(k)}</option>)}
        </select>)}
      </Field>
    </div>
  );
}
