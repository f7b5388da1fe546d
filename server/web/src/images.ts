// Image files as the user gives them: dropped, pasted, picked, or photographed.
import { newID, type Picked } from "./model";

/** What the server reads. Its own check is by the bytes; this one is for files that are plainly something else. */
export const accept = "image/*";

export function pick(files: Iterable<File>): { images: Picked[]; others: string[] } {
  const images: Picked[] = [], others: string[] = [];
  for (const f of files) {
    if (f.type !== "" && !f.type.startsWith("image/") || f.size === 0) others.push(f.name);
    else images.push({ id: newID(), name: f.name || "image", blob: f, detail: "auto" });
  }
  return { images, others };
}

/** Opens the browser's own dialog for files. */
export function choose(o: { multiple?: boolean; camera?: boolean }, given: (files: File[]) => void) {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = accept;
  input.multiple = !!o.multiple;
  if (o.camera) input.setAttribute("capture", "environment");
  input.onchange = () => given(Array.from(input.files ?? []));
  input.click();
}
