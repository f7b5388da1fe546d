"""Answers the gold cases with Hugging Face transformers, and checks that model.py answers alike.

    gold.py FOLDER ../testdata/tiny-vlm-gold/gold.jsonl [--write]

Needs transformers (5.12.1 made the cases) beside what training needs. Images, messages and truths of the cases stay.
"""
from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import evaluate
from export import folder_config, load_folder
from model import VLM
from pack import EOS, END, IMAGE, PAD, Codec


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("cases", type=Path)
    p.add_argument("--write", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(a.folder, use_fast=False)
    reference = AutoModelForImageTextToText.from_pretrained(a.folder, dtype=torch.float32).eval()
    own = VLM(folder_config(str(a.folder))).eval()
    own.load_state_dict(load_folder(str(a.folder)))
    codec = Codec(str(a.folder / "tokenizer.json"), own.config.image_tokens)

    lines, alike, right, known, moved = [], 0, 0, 0, []
    for line in a.cases.read_text().splitlines():
        c = json.loads(line)
        old = dict(c)
        images = [Image.open(a.cases.parent / i) for i in c["images"]]
        c["prompt_text"] = processor.apply_chat_template(c["messages"], add_generation_prompt=True)
        inputs = processor(text=c["prompt_text"], images=[images] if images else None, return_tensors="pt")
        with torch.no_grad():
            out = reference.generate(**inputs, do_sample=False, max_new_tokens=96, output_logits=True, return_dict_in_generate=True)
        n = inputs["input_ids"].shape[1]
        c["prompt_ids"] = inputs["input_ids"][0].tolist()
        c["generated_ids"] = out.sequences[0, n:].tolist()
        top = out.logits[0][0].float().topk(5)
        c["first_step_top5"] = [[int(i), float(v)] for i, v in zip(top.indices, top.values)]
        c["text"] = processor.tokenizer.decode(c["generated_ids"], skip_special_tokens=True)
        if images:
            v = inputs["pixel_values"].numpy()
            c.update(pixel_shape=list(v.shape), pixel_sha256_f32=hashlib.sha256(np.ascontiguousarray(v, "<f4").tobytes()).hexdigest(),
                     pixel_mean=float(v.mean()), pixel_std=float(v.std()))
        seen = ((inputs["pixel_values"][0] * 0.5 + 0.5) * 255).round().byte().permute(0, 2, 3, 1) if images else None
        answer = own.generate(torch.tensor([evaluate.prompt(codec, c)]), seen, IMAGE, {EOS, END, PAD})
        alike += answer == [c["generated_ids"]]
        known += c["truth"] is not None
        right += c["truth"] is not None and c["text"].strip() == c["truth"]
        moved += [k for k in c if k not in old or (c[k] != old[k] and k not in ("first_step_top5", "pixel_mean", "pixel_std"))]
        lines.append(json.dumps(c, ensure_ascii=False))
    print(f"{len(lines)} cases; model.py answers alike in {alike}; {right} of {known} right; fields that changed: "
          f"{ {k: moved.count(k) for k in sorted(set(moved))} }")
    if a.write:
        a.cases.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
