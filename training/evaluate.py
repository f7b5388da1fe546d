"""Held-out questions: draws the set, and has PyTorch answer it.

    evaluate.py draw SET.zip                      scenes of a seed that training never uses
    evaluate.py answer FOLDER SET.zip             the table, by kind of question
    evaluate.py answer FOLDER SET.zip --record    ... and keeps the greedy ids in the set, for `mmserve model eval`

A set is a zip of PNGs and cases.jsonl: a line with id, kind, images, messages, truth, and for instructions about the
form of the answer form and keys. Recorded are generated_ids, and the digest of the model they are of in the zip's comment.
"""
from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import random
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Iterable, Optional

import numpy as np
import torch
from PIL import Image

import talk
import world as W
from export import folder_config, load_folder
from model import VLM
from pack import BOS, EOS, END, IMAGE, PAD, Codec

Case = dict[str, Any]


class Drawn:
    """A set in the making."""

    def __init__(self, seed: int, size: int):
        self.rng, self.size = random.Random(seed), size
        self.cases: list[Case] = []
        self.images: dict[str, bytes] = {}
        self.count: Counter[str] = Counter()

    def image(self, s: W.Scene) -> str:
        """One in ten has grain: it is what makes a PNG large."""
        data = io.BytesIO()
        Image.fromarray(W.render(s, self.size, self.rng, self.rng.random() < 0.1)).save(data, "PNG", optimize=True)
        name = f"{len(self.images):03d}.png"
        self.images[name] = data.getvalue()
        return name

    def ask(self, kind: str, turns: list[talk.Turn], images: Iterable[str] = (), text_first: bool = False) -> None:
        """The last turn is the question, those before it are history."""
        images = list(images)
        places = [{"type": "image"}] * len(images)
        messages = []
        for i, t in enumerate(turns):
            text = [{"type": "text", "text": t.question}]
            parts = (text + places if text_first else places + text) if i == 0 else text
            messages.append({"role": "user", "content": parts})
            if t is not turns[-1]:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": t.answer}]})
        case: Case = {"id": f"{kind} {self.count[kind]}", "kind": kind, "images": images, "messages": messages, "truth": turns[-1].answer}
        if turns[-1].kind == "one_word":
            case["form"] = "word"
        if turns[-1].kind == "json":
            case.update(form="json", keys=list(json.loads(turns[-1].answer)))
        self.count[kind] += 1
        self.cases.append(case)

    def write(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as z:
            lines = "".join(json.dumps(c, ensure_ascii=False) + "\n" for c in self.cases)
            z.writestr(_member("cases.jsonl"), lines, zipfile.ZIP_DEFLATED, 9)
            for name, data in self.images.items():
                z.writestr(_member(name), data, zipfile.ZIP_STORED)


def _member(name: str) -> zipfile.ZipInfo:
    """Without the time of day: the same set is the same bytes."""
    return zipfile.ZipInfo(name)


def draw(seed: int, size: int, scenes: int) -> Drawn:
    """The smallest world's kinds in like numbers, and fewer of what lies beyond it, under names of their own."""
    d = Drawn(seed, size)
    rng, small, wide = d.rng, W.World(0, 4), W.World(0, 6)
    for i in range(scenes):
        s = W.scene(rng, small, 1 + i % 4, 1 + i % 4)
        name = d.image(s)
        d.ask(f"caption, {len(s.objects)} object{'s' if len(s.objects) > 1 else ''}", [talk.ask_caption(s, rng)], [name])
        if i % 6 == 0:
            d.ask("question before the picture", [talk.question(s, rng, small)], [name], True)
        asked = []
        for f in sorted((f for f, _ in talk.QUESTIONS), key=lambda f: (d.count[f.__name__[4:]], rng.random())):
            if len(asked) == 6:
                break
            if t := f(s, rng):
                asked.append(t)
                d.ask(f.__name__[4:], [t], [name])
        subjects = [t for t in asked if t.subject is not None]
        if subjects and i % 2 == 0:
            t = rng.choice(subjects)
            d.ask("follow-up", [t, talk.follow(t.subject, rng)], [name])
        if i % 3 == 0 and (t := talk.ask_one_word(s, rng)):
            d.ask("in one word", [t], [name])
        if i % 3 == 1 and (t := talk.ask_json(s, rng)):
            d.ask("as JSON", [t], [name])
    for i in range(scenes // 3):
        s = W.scene(rng, wide, 5, 6)
        name = d.image(s)
        d.ask("caption, 5 or 6 objects", [talk.ask_caption(s, rng)], [name])
        d.ask("question, 5 or 6 objects", [talk.question(s, rng, W.World(0, 6))], [name])
        s = W.scene(rng, small)
        other, what, o = W.changed(rng, s, small)
        d.ask("two pictures", [talk.ask_change(s, other, what, o, rng)], [d.image(s), d.image(other)])
        s = W.chart(rng, wide)
        d.ask("chart", [talk.ask_chart(s, rng)], [d.image(s)])
        s = W.sign(rng, wide)
        d.ask("sign", [talk.ask_sign(s, rng)], [d.image(s)])
    for _ in range(scenes // 2):
        t = talk.ask_text(rng, small)
        d.ask("no picture" if t.kind == "no_image" else "outside its world" if t.kind == "outside" else "small talk", [t])
    rich = W.World(2, 4)
    for _ in range(scenes // 3):
        s = W.scene(rng, rich)
        name = d.image(s)
        d.ask("caption, ten colors and textures", [talk.ask_caption(s, rng)], [name])
        d.ask("question, ten colors and textures", [talk.question(s, rng, small)], [name])
    return d


def read(path: Path) -> tuple[list[Case], dict[str, bytes]]:
    with zipfile.ZipFile(path) as z:
        cases = [json.loads(line) for line in z.read("cases.jsonl").decode().splitlines()]
        return cases, {n: z.read(n) for n in z.namelist() if n.endswith(".png")}


def prompt(codec: Codec, c: Case) -> list[int]:
    """A case's ids, as the template and the processor make them."""
    ids = [BOS]
    for m in c["messages"]:
        parts = m["content"]
        head = m["role"].capitalize() + (":" if parts[0]["type"] == "image" else ": ")
        for p in parts:
            if p["type"] == "image":
                ids += codec.encode(head)[0] + codec.image
                head = ""
            else:
                head += p["text"]
        ids += (codec.encode(head)[0] if head else []) + [EOS] + codec.encode("\n")[0]
    return ids + codec.encode("Assistant:")[0]


def pixels(data: bytes, size: int) -> np.ndarray:
    im = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(im if im.size == (size, size) else im.resize((size, size), Image.LANCZOS))


def answer(model: VLM, codec: Codec, cases: list[Case], files: dict[str, bytes], most: int = 96) -> list[list[int]]:
    """Greedy ids of each case, the end token included. Prompts of one length go together."""
    size = model.config.image
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    prompts = [prompt(codec, c) for c in cases]
    for i, c in enumerate(cases):
        groups[len(prompts[i]), len(c["images"])].append(i)
    out: list[list[int]] = [[]] * len(cases)
    for (_, n), members in groups.items():
        for at in range(0, len(members), 48):
            some = members[at : at + 48]
            images = torch.from_numpy(np.stack([pixels(files[p], size) for i in some for p in cases[i]["images"]])) if n else None
            ids = model.generate(torch.tensor([prompts[i] for i in some]), images, IMAGE, {EOS, END, PAD}, most)
            for i, a in zip(some, ids):
                out[i] = a
    return out


def valid(c: Case, text: str) -> bool:
    """Whether an answer has the form it was asked for in, right or wrong."""
    if c.get("form") == "word":
        return len(text.split()) == 1
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and list(value) == c["keys"]


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    p = right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def table(cases: list[Case], texts: list[str]) -> str:
    right, total, form = Counter(), Counter(), Counter()
    for c, t in zip(cases, texts):
        for k in (c["kind"], "all"):
            total[k] += 1
            right[k] += t == c["truth"]
        if "form" in c:
            form[c["kind"]] += valid(c, t)
    lines = [f"{'kind':30} {'n':>5} {'exact':>7}  95 % interval"]
    for k in total:
        if k != "all":
            lines.append(_line(k, right[k], total[k], form.get(k)))
    return "\n".join(lines + [_line("all", right["all"], total["all"], None)])


def _line(kind: str, right: int, n: int, form: Optional[int]) -> str:
    low, high = wilson(right, n)
    of_form = f"  valid {100 * form / n:.1f} %" if form is not None else ""
    return f"{kind:30} {n:5} {100 * right / n:6.1f}%  {100 * low:5.1f} to {100 * high:5.1f}{of_form}"


def digest(folder: Path) -> str:
    """What mmserve calls model_digest: of config, tokenizer, and each tensor's name, type, shape and bytes."""
    h = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        raw = (folder / name).read_bytes()
        h.update(f"{name} {len(raw)}\n".encode() + raw)
    data = (folder / "model.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    sums = b""
    for name in sorted(k for k in header if k != "__metadata__"):
        t = header[name]
        a, z = t["data_offsets"]
        shape = " ".join(map(str, t["shape"]))
        sums += hashlib.sha256(f"{name} {t['dtype']} [{shape}]\n".encode() + body[a:z]).digest()
    h.update(hashlib.sha256(sums).digest())
    return h.hexdigest()


def record(path: Path, cases: list[Case], files: dict[str, bytes], ids: list[list[int]], model: str) -> None:
    d = Drawn(0, 0)
    d.cases = [{**c, "generated_ids": i} for c, i in zip(cases, ids)]
    d.images = files
    d.write(path)
    with zipfile.ZipFile(path, "a") as z:
        z.comment = model.encode()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("do", choices=["draw", "answer"])
    p.add_argument("paths", nargs="+", type=Path)
    p.add_argument("--seed", type=int, default=7000003)
    p.add_argument("--size", type=int, default=64)
    p.add_argument("--scenes", type=int, default=150)
    p.add_argument("--record", action="store_true")
    p.add_argument("--wrong", type=int, default=0, help="show so many wrong answers")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.do == "draw":
        d = draw(a.seed, a.size, a.scenes)
        d.write(a.paths[0])
        print(f"{len(d.cases)} questions, {len(d.images)} images, {a.paths[0].stat().st_size} bytes")
        return
    folder, path = a.paths
    model = VLM(folder_config(str(folder))).eval()
    model.load_state_dict(load_folder(str(folder)))
    codec = Codec(str(folder / "tokenizer.json"), model.config.image_tokens)
    cases, files = read(path)
    ids = answer(model, codec, cases, files)
    texts = [codec.decode(i) for i in ids]
    print(table(cases, texts))
    for c, t in [(c, t) for c, t in zip(cases, texts) if t != c["truth"]][: a.wrong]:
        asked = next(p["text"] for p in c["messages"][-1]["content"] if p["type"] == "text")
        print(c["id"], "|", asked, "|", c["truth"], "|", t)
    if a.record:
        record(path, cases, files, ids, digest(folder))


if __name__ == "__main__":
    main()
