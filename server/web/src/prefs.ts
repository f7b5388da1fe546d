// What the browser remembers of the page's looks.
import { effect, signal } from "@preact/signals";

export type Language = "en" | "de";
export type Theme = "auto" | "light" | "dark";

const stored = (name: string) => {
  try { return localStorage.getItem(`mmserve-${name}`); } catch { return null; }
};
const one = <T extends string>(value: string | null, list: readonly T[], other: T): T =>
  list.includes(value as T) ? (value as T) : other;

export const language = signal<Language>(
  one(stored("language"), ["en", "de"], navigator.language.startsWith("de") ? "de" : "en"));
export const theme = signal<Theme>(one(stored("theme"), ["auto", "light", "dark"], "auto"));

effect(() => {
  document.documentElement.lang = language.value;
  document.documentElement.dataset["theme"] = theme.value;
  try {
    localStorage.setItem("mmserve-language", language.value);
    localStorage.setItem("mmserve-theme", theme.value);
  } catch { /* a browser that keeps nothing */ }
});
