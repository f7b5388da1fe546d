// What is being written: every view asks with the same text and images.
import { signal } from "@preact/signals";
import { pick } from "./images";
import { t } from "./messages";
import type { Picked } from "./model";
import { server, view } from "./state";

export const text = signal("");
export const images = signal<Picked[]>([]);
export const complaint = signal("");

/** Of a table each image goes into a request of its own. */
const mostOfTable = 1000;

/** Adds files to the turn that is being written. */
export function addFiles(files: Iterable<File>) {
  const { images: more, others } = pick(files);
  const most = view.value === "table" ? mostOfTable : server.value?.max_images ?? 16;
  complaint.value = others.length > 0 ? t("noImages", others.join(", ")) : "";
  if (images.value.length + more.length > most) complaint.value = t("tooMany", most);
  images.value = [...images.value, ...more].slice(0, most);
}
