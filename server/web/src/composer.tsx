// Where a turn is written: images and text.
import { useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import { Cost, DetailChoice, LayoutText, layoutOf, Tiles } from "./cost";
import { addFiles, complaint, images, text } from "./drafts";
import { choose, pick } from "./images";
import { t } from "./messages";
import { path, type Picked } from "./model";
import { Dialog, dialog, closeDialog, Thumb, useObjectURL } from "./parts";
import { conversation, running, send, stopAll } from "./state";

function submit() {
  if (text.value.trim() === "" && images.value.length === 0) return;
  const last = path(conversation.value).at(-1);
  if (last?.kind === "turn" || Object.keys(running.value).length > 0) return;
  send(last?.id ?? "", text.value.trim(), images.value);
  text.value = "";
  images.value = [];
  complaint.value = "";
}

export function Composer() {
  const busy = Object.keys(running.value).length > 0;
  return (
    <Inputs onSubmit={submit} below={<Cost />}>
      {busy ? <button type="button" class="primary" onClick={stopAll}>{t("stop")}</button>
        : <button type="submit" class="primary">{t("send")}</button>}
    </Inputs>
  );
}

/** A form for text and images; children are the buttons that do something with them. */
export function Inputs({ onSubmit, children, below }: {
  onSubmit: () => void; children: ComponentChildren; below?: ComponentChildren;
}) {
  const area = useRef<HTMLTextAreaElement>(null);
  useEffect(() => {
    const a = area.current!;
    a.style.height = "auto";
    a.style.height = `${Math.min(a.scrollHeight + 2, 240)}px`;
  }, [text.value]);
  return (
    <form class="composer" onSubmit={(e) => { e.preventDefault(); onSubmit(); }}>
      {images.value.length > 0 && <ul class="thumbs" aria-label={t("images")}>
        {images.value.map((p) => <Chosen key={p.id} image={p} />)}
      </ul>}
      {complaint.value && <p class="failure" role="alert">{complaint.value}</p>}
      <div class="row">
        <textarea id="prompt" ref={area} rows={1} aria-label={t("prompt")} placeholder={t("promptHint")} value={text.value}
          onInput={(e) => (text.value = e.currentTarget.value)}
          onPaste={(e) => {
            const files = Array.from(e.clipboardData?.files ?? []);
            if (files.length === 0) return;
            e.preventDefault();
            addFiles(files);
          }}
          onKeyDown={(e) => {
            if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
            e.preventDefault();
            onSubmit();
          }} />
        <div class="buttons">
          <button type="button" onClick={() => choose({ multiple: true }, addFiles)}>{t("addImages")}</button>
          <button type="button" class="touch" onClick={() => choose({ camera: true }, addFiles)}>{t("photo")}</button>
          {children}
        </div>
      </div>
      {below}
    </form>
  );
}

function Chosen({ image }: { image: Picked }) {
  const layout = layoutOf(image);
  const swap = () => choose({}, (files) => {
    const next = pick(files).images[0];
    if (next) images.value = images.value.map((p) => (p === image ? { ...next, detail: image.detail } : p));
  });
  return (
    <li>
      <button type="button" class="framed" aria-label={t("showImage", image.name)}
        onClick={() => (dialog.value = <ImageDialog image={image} />)}>
        <Thumb image={image} /><Tiles layout={layout} />
      </button>
      <div class="about">
        <span class="name">{image.name}</span>
        <LayoutText layout={layout} />
        <span class="actions">
          <DetailChoice image={image} />
          <button type="button" class="small" aria-label={t("swapOne", image.name)} onClick={swap}>{t("swap")}</button>
          <button type="button" class="small" aria-label={t("removeImage", image.name)}
            onClick={() => (images.value = images.value.filter((p) => p !== image))}>×</button>
        </span>
      </div>
    </li>
  );
}

function ImageDialog({ image }: { image: Picked }) {
  const now = images.value.find((p) => p.id === image.id) ?? image, layout = layoutOf(now);
  return (
    <Dialog title={image.name} onClose={closeDialog} wide>
      <div class="framed large"><img src={useObjectURL(image.blob)} alt={image.name} /><Tiles layout={layout} /></div>
      <p><LayoutText layout={layout} /></p>
      <DetailChoice image={now} />
    </Dialog>
  );
}

/** Takes files that are dropped anywhere on the page. */
export function DropZone() {
  const over = useSignal(false);
  useEffect(() => {
    let depth = 0; // entering a child comes before leaving its parent
    const files = (e: DragEvent) => e.dataTransfer?.types.includes("Files");
    const on = {
      dragenter: (e: DragEvent) => { if (files(e)) { depth++; over.value = true; } },
      dragleave: (e: DragEvent) => { if (files(e) && --depth <= 0) over.value = false; },
      dragover: (e: DragEvent) => { if (files(e)) e.preventDefault(); },
      drop: (e: DragEvent) => {
        depth = 0;
        over.value = false;
        if (!files(e)) return;
        e.preventDefault();
        addFiles(e.dataTransfer!.files);
      },
    };
    for (const [name, f] of Object.entries(on)) window.addEventListener(name, f as EventListener);
    return () => { for (const [name, f] of Object.entries(on)) window.removeEventListener(name, f as EventListener); };
  }, []);
  return over.value ? <div class="drop" aria-hidden="true">{t("dropHere")}</div> : null;
}
