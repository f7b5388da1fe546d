// Small parts that several views are made of.
import { signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useId, useMemo, useRef } from "preact/hooks";
import { t } from "./messages";
import type { Failure, Picked } from "./model";
import { announced } from "./state";

/** Puts text on the clipboard; without HTTPS browsers have the old way alone. */
export async function copy(text: string) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

export function Copy({ text, label }: { text: string; label?: string }) {
  const done = useSignal(false);
  useEffect(() => {
    if (!done.value) return;
    const timer = setTimeout(() => (done.value = false), 2000);
    return () => clearTimeout(timer);
  }, [done.value]);
  return (
    <button type="button" class="small" onClick={async () => {
      await copy(text);
      done.value = true;
      announced.value = t("copied");
    }}>{done.value ? t("copied") : label ?? t("copy")}</button>
  );
}

/** The URL of a file's bytes, for as long as the component is there. */
export function useObjectURL(blob: Blob): string {
  const url = useMemo(() => URL.createObjectURL(blob), [blob]);
  useEffect(() => () => URL.revokeObjectURL(url), [url]);
  return url;
}

/** A small view of an image; unnamed where its name stands beside it. */
export function Thumb({ image, unnamed }: { image: Picked; unnamed?: boolean }) {
  return <img src={useObjectURL(image.blob)} alt={unnamed ? "" : image.name} />;
}

/** A modal dialog; it is there while it is open. */
export function Dialog({ title, onClose, children, wide }: {
  title: string; onClose: () => void; children: ComponentChildren; wide?: boolean;
}) {
  const ref = useRef<HTMLDialogElement>(null), id = useId();
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    ref.current!.showModal();
    return () => before?.focus?.();
  }, []);
  return (
    <dialog ref={ref} aria-labelledby={id} class={wide ? "wide" : ""} onClose={onClose}
      onClick={(e) => e.target === ref.current && onClose()}>
      <header><h2 id={id}>{title}</h2><button type="button" class="small" onClick={onClose}>{t("close")}</button></header>
      <div class="inside">{children}</div>
    </dialog>
  );
}

/** The dialog that is open, if one is. */
export const dialog = signal<ComponentChildren>(null);
export const closeDialog = () => (dialog.value = null);

export function failureText(f: Failure): string {
  const message = f.message.replace(/\.$/, "");
  switch (f.kind) {
    case "network": return t("failNetwork");
    case "cut": return t("failCut");
    case "busy": return t("failBusy", Math.ceil((f.retryAfter ?? 1000) / 1000));
    case "loading": return t("failLoading", message);
    case "key": return t("failKey", message);
    case "forbidden": return t("failForbidden", message);
    case "image": return t("failImage", message);
    case "length": return t("failLength", message);
    case "missing": return t("failMissing", message);
    case "invalid": return t("failInvalid", message);
    case "server": return t("failServer", message);
  }
}

export function Failed({ failure }: { failure: Failure }) {
  return <p class="failure" role="alert">{failureText(failure)}</p>;
}

export function Field({ label, children }: { label: string; children: (id: string) => ComponentChildren }) {
  const id = useId();
  return <div class="field"><label for={id}>{label}</label>{children(id)}</div>;
}
