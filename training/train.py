"""Trains the model: the tower alone on dense labels, then the whole on conversations.

    train.py tower OUT.pt --minutes 12
    train.py talk OUT.pt --init TOWER.pt --minutes 60      (or --init FOLDER, or --resume)

One line of JSON per interval goes to OUT.pt's side as OUT.log. The world widens by itself while the held-out
answers are good. Nothing here is needed to run the model.
"""
from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pack
import world as W
from export import load_folder
from model import VLM, Config, pixels_of, warm_start
from optim import optimizers


class TowerHeads(nn.Module):
    """What each patch shows, read off the tower's output; for training only."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleDict({k: nn.Linear(width, n + 1) for k, n in W.KNOWN.items()})

    def forward(self, v: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
        v = v.flatten(0, 1)
        lab = labels.transpose(0, 1).flatten(1)
        weights = torch.where(lab > 0, 1.0, torch.where(lab == 0, 0.3, 0.0))
        loss, right = v.new_zeros(()), {}
        for i, (k, head) in enumerate(self.heads.items()):
            out = head(v)
            each, weight = F.cross_entropy(out, lab[i].clamp(min=0), reduction="none"), weights[i]
            loss = loss + (each * weight).sum() / weight.sum().clamp(min=1) / (3 if i < 4 else 6)
            on = lab[i] > 0
            right["v_" + k] = (out[on].argmax(-1) == lab[i][on]).float().mean().nan_to_num().item()
        return loss, right


class PhraseHeads(nn.Module):
    """What a phrase of the question means, taught at its last token in the middle layers: where their first head has to look,
    which of the nine places are meant, and what is there. And that answers are in the phrases: in the last two layers, one
    head looks from the answer at the first phrase of its question, another one at the last, and before the last layer it
    is known how the places of two compare. Of a second image's tokens, that one head of the first layer looks at the same cell of
    the first image, that it is known after the second layer which cells differ, and that answers look at those."""

    def __init__(self, width: int, layers: tuple[int, ...] = (1, 2)):
        super().__init__()
        self.layers = layers
        self.places = nn.ModuleList(nn.Linear(width, 9) for _ in layers)
        self.known = [W.KNOWN[k] for k in ("shape", "color", "size")]
        self.objects = nn.ModuleList(nn.Linear(width, sum(self.known)) for _ in layers)
        self.order = nn.Linear(width, 6)
        self.differs = nn.Linear(width, 1)

    def forward(self, hidden: list[Tensor], looked: list[Tensor], image: slice, b: pack.Batch) -> tuple[Tensor, dict[str, float]]:
        """image says where the image tokens are among the keys."""
        phrases = b.phrases
        length = looked[0].shape[3]
        prefix = looked[0].shape[4] - length
        seen = [a[:, 0, 0].flatten(0, 1) for a in looked]
        at = torch.tensor([f for f, *_ in phrases])
        placed = [i for i, (_, objects, _) in enumerate(phrases) if all(o.size for o in objects)]  # not in charts
        places = torch.zeros(len(phrases), 9)
        single = [i for i, (_, o, _) in enumerate(phrases) if len(o) == 1]
        what = torch.tensor([[W.KINDS.index(o.shape), list(W.COLORS).index(o.color), int(o.size == "large") if o.size else -100]
                             for i in single for o in phrases[i][1]])
        for i, (_, objects, _) in enumerate(phrases):
            for o in objects:
                places[i, W.PLACES.index(o.place)] = 1
        cells = image.stop - image.start
        side = int(cells**0.5)
        pairs = [(f, o, 1 / len(objects), image.start if p < 0 else prefix + p % length) for f, objects, p in phrases for o in objects]
        cover = torch.stack([torch.from_numpy(W.cover(o, side)) for _, o, *_ in pairs])
        pair_at, share = torch.tensor([f for f, *_ in pairs]), torch.tensor([s for *_, s, _ in pairs])
        keys = torch.tensor([k for *_, k in pairs])[:, None] + torch.arange(cells)
        loss, right = hidden[0].new_zeros(()), {}
        for n, layer in enumerate(self.layers):
            given = seen[layer][pair_at].gather(1, keys)
            aware = given.detach().sum(-1) > 0  # not where the image is another one
            given = (given * cover).sum(-1)
            loss = loss - (given[aware] * 0.999 + 0.001).log().mul(share[aware]).sum() / share[aware].sum() * 0.5
            right[f"p_look{layer}"] = given[aware].mean().item()
            h = F.layer_norm(hidden[layer][at], hidden[layer].shape[-1:])
            out = self.places[n](h)
            loss = loss + F.binary_cross_entropy_with_logits(out[placed], places[placed]) * 2
            right[f"p_place{layer}"] = ((out > 0).float() == places)[placed].all(-1).float().mean().item()
            for part, t in zip(self.objects[n](h[single]).split(self.known, -1), what.T if single else ()):
                loss = loss + F.cross_entropy(part, t, reduction="sum") / (t >= 0).sum().clamp(min=1) * 0.15
        spans = torch.tensor([(at, first, last) for start, end, first, last in b.asked for at in range(start, end)])
        line, row = spans[:, 0] // length, spans[:, 0] % length
        for layer in (-2, -1):
            for head in (0, 1):
                given = looked[layer][line, -1, head, row, prefix + spans[:, 1 + head] % length]
                loss = loss - (given * 0.999 + 0.001).log().mean() * 0.25
                right[f"p_answer{head}"] = given.mean().item()
        if b.compared:
            at, *orders = torch.tensor(b.compared).T
            out = self.order(F.layer_norm(hidden[-2][at], hidden[-2].shape[-1:])).split(3, -1)
            loss = loss + sum(F.cross_entropy(o, t) for o, t in zip(out, orders)) * 0.5
            right["p_order"] = torch.stack([o.argmax(-1) == t for o, t in zip(out, orders)]).all(0).float().mean().item()
        if b.changed:
            more, right2 = self.images(hidden, looked, image, b)
            loss, right = loss + more, {**right, **right2}
        return loss / len(self.layers), right

    def images(self, hidden: list[Tensor], looked: list[Tensor], image: slice, b: pack.Batch) -> tuple[Tensor, dict[str, float]]:
        """The lessons of two images."""
        length = looked[0].shape[3]
        prefix, cells = looked[0].shape[4] - length, image.stop - image.start
        start = torch.tensor([f for f, *_ in b.changed])
        differs = torch.stack([torch.from_numpy(m) for *_, m in b.changed])
        each = torch.arange(cells)
        same = looked[0][start[:, None] // length, 1, 1, start[:, None] % length + each, image.start + each]
        loss = -(same * 0.999 + 0.001).log().mean() * 0.5
        h = hidden[1][(start[:, None] + each)]
        out = self.differs(F.layer_norm(h, h.shape[-1:])).squeeze(-1)
        weight = torch.where(differs > 0, 3.0, 1.0)
        loss = loss + F.binary_cross_entropy_with_logits(out, differs, weight)
        right = dict(d_same=same.mean().item(), d_cells=((out > 0) == (differs > 0)).float().mean().item(),
                     d_all=((out > 0) == (differs > 0)).all(-1).float().mean().item())
        spans = [(at, f, m) for f, a, z, m in b.changed if m.any() for at in range(a, z)]
        if spans:
            at, key, mask = torch.tensor([s for s, *_ in spans]), torch.tensor([k for _, k, _ in spans]), torch.stack([torch.from_numpy(m) for *_, m in spans])
            given = looked[-2][at // length, 0, 1, at % length].gather(1, prefix + key[:, None] % length + each)
            given = (given * mask).sum(-1)
            loss = loss - (given * 0.999 + 0.001).log().mean() * 0.5
            right["d_look"] = given.mean().item()
        return loss, right


class Trainer:
    def __init__(self, a: argparse.Namespace):
        self.a = a
        self.out = Path(a.out)
        held = torch.load(a.out, weights_only=False) if a.resume else None
        self.config = Config(**held["config"]) if held else Config(image=a.size, shuffle=a.shuffle, vision_layers=a.vision_layers,
                                                                   layers=a.layers, mlp=a.mlp)
        self.codec = pack.Codec(a.tokenizer, self.config.image_tokens)
        self.model = VLM(self.config, a.seed)
        self.tower = TowerHeads(self.config.vision_width)
        self.phrases = PhraseHeads(self.config.width)
        self.world = W.World(a.level, a.most)
        self.rng = random.Random(a.seed)
        self.steps = self.rows = 0
        self.seconds = 0.0
        self.modules = {"model": self.model, "tower": self.tower, "phrases": self.phrases}
        if held:
            for k, m in self.modules.items():
                m.load_state_dict(held[k])
        elif a.init:
            self._warm(a.init)
        else:
            self.model.whiten(torch.from_numpy(self._scenes(random.Random(5), 600)[0]))
        trained = {"tower": {"tower": self.tower, "model": self.model.model.vision_model}, "talk": self.modules}[a.stage]
        if a.freeze_tower:
            self.model.model.vision_model.requires_grad_(False)
        self.optimizers = optimizers(trained, a.matrix_rate, a.rate)
        if held:
            for o, s in zip(self.optimizers, held["optimizers"]):
                full = [g["full"] for g in o.param_groups]  # by this run's flags
                o.load_state_dict(s)
                for g, f in zip(o.param_groups, full):
                    g["full"] = f
            self.steps, self.rows, self.seconds = held["steps"], held["rows"], held["seconds"]
            self.world = W.World(**held["world"])
            self.rng.setstate(held["rng"])
        self.held_out = self._held_out()

    def _warm(self, init: str) -> None:
        if Path(init).is_dir():
            left = warm_start(self.model, load_folder(init))
        else:
            held = torch.load(init, weights_only=False)
            left = warm_start(self.model, held["model"])
            for k in ("tower", "phrases"):
                left += self.modules[k].load_state_dict(held[k], strict=False).missing_keys
        self._say(dict(init=init, left=left))

    def _say(self, line: dict) -> None:
        text = json.dumps(line)
        print(text, flush=True)
        with open(self.out.with_suffix(".log"), "a") as f:
            f.write(text + "\n")

    def _scenes(self, rng: random.Random, n: int) -> tuple[np.ndarray, np.ndarray]:
        weights = json.loads(self.a.weights) if self.a.weights else {}
        scenes = [W.drawn(rng, self.world, 1, 0.1 * weights.get("chart", 1), 0.1 * weights.get("sign", 1)) for _ in range(n)]
        return (np.stack([W.render(s, self.config.image, rng) for s in scenes]),
                np.stack([W.labels(s, self.config.grid) for s in scenes]))

    def _batch(self, rng: random.Random, rows: int) -> pack.Batch:
        a = self.a
        weights = json.loads(a.weights) if a.weights else None
        return pack.batch(self.codec, rng, self.world, rows, a.slots, a.length, self.config.image, self.config.grid, weights, a.full)

    def _held_out(self) -> list:
        """Scenes of their own seed, drawn anew when the world widens."""
        rng = random.Random(424242)
        if self.a.stage == "tower":
            return [self._scenes(rng, 300)]
        return [self._batch(rng, 24) for _ in range(6)]

    def _run(self, b: pack.Batch) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, float]]:
        """Losses, logits at and ids of the targets, and what the training-only heads got right."""
        rows, slots, length = b.ids.shape
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.a.freeze_tower):
            v = self.model.model.vision_model(pixels_of(torch.from_numpy(b.images)))
        f = self.model.model.connector(v)
        text = self.model.model.text_model
        n = self.config.image_tokens
        prefix = text.embed_tokens(torch.tensor(self.codec.prefix)).repeat(rows, 1, 1)
        first = self.codec.prefix.index(pack.IMAGE)
        prefix = torch.cat((prefix[:, :first], f[:rows], prefix[:, first + n :]), 1)
        x = text.embed_tokens(torch.from_numpy(b.ids)).flatten(0, 2)
        if b.where:
            at = torch.cat([torch.arange(p, p + n) for p, _ in b.where])
            x = x.index_copy(0, at, f[[i for _, i in b.where]].flatten(0, 1))
        hidden, looked = text.packed(prefix, x.view(rows, slots, length, -1), torch.from_numpy(b.positions), torch.from_numpy(b.mask))
        target = torch.from_numpy(b.targets).flatten()
        at = (target >= 0).nonzero().squeeze(1)
        logits = self.model.logits(hidden[-1][at])
        weight = torch.from_numpy(b.weights).flatten()[at]
        answer = (F.cross_entropy(logits, target[at], reduction="none") * weight).sum() / weight.sum()
        tower, right = self.tower(v, torch.from_numpy(b.labels))
        places, more = self.phrases(hidden, looked, slice(first, first + n), b)
        return dict(answer=answer, tower=tower, phrases=places), logits, at, {**right, **more}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The share of answers that are right in every token, by kind. For a first turn that is a greedy exact match."""
        if self.a.stage == "tower":
            images, labels = self.held_out[0]
            return self.tower(self.model.see(torch.from_numpy(images))[0], torch.from_numpy(labels))[1]
        right, total, heads = Counter(), Counter(), Counter()
        for b in self.held_out:
            _, logits, at, more = self._run(b)
            hit = np.ones(b.targets.size, bool)
            hit[at.numpy()] = logits.argmax(-1).numpy() == b.targets.reshape(-1)[at.numpy()]
            for kind, n, start, end in b.answers:
                for k in (kind, f"caption{n}") if kind == "caption" else (kind,):
                    total[k] += 1
                    right[k] += hit[start:end].all()
            heads.update(more)
        asked = [k for k in total if k not in ("caption", "chat", "repeat", "no_image", "outside", "count_to", "follow") and k[:7] != "caption"]
        return {"questions": sum(right[k] for k in asked) / sum(total[k] for k in asked),
                **{k: right[k] / total[k] for k in sorted(total)},
                **{k: v / len(self.held_out) for k, v in heads.items()}}

    def save(self) -> None:
        held = {k: m.state_dict() for k, m in self.modules.items()}
        held.update(config=asdict(self.config), optimizers=[o.state_dict() for o in self.optimizers], steps=self.steps, rows=self.rows,
                    seconds=self.seconds, world=asdict(self.world), rng=self.rng.getstate(), arguments=vars(self.a))
        torch.save(held, str(self.out) + ".tmp")
        os.replace(str(self.out) + ".tmp", self.out)

    def progress(self) -> float:
        a = self.a
        return max(self.seconds / (a.minutes * 60), self.rows / a.rows if a.rows else 0)

    def widen(self, e: dict[str, float]) -> bool:
        """Lets more of the world in when what is in it is mastered, not after the last decay has begun."""
        a = self.a
        if self.progress() > 1 - a.decay:
            return False
        good = e["v_shape"] > 0.9 if a.stage == "tower" else e["questions"] > a.mastery and e["caption"] > a.mastery
        if good and self.world.most < a.most_objects:
            self.world = replace(self.world, most=self.world.most + 1)
        elif good and self.world.level < a.most_level:
            self.world = replace(self.world, level=self.world.level + 1)
        else:
            return False
        self.held_out = self._held_out()
        return True

    def run(self) -> None:
        a = self.a
        mean: dict[str, float] = {}
        begun, spent = time.thread_time(), self.seconds  # not the clock's: the process may be stopped for a while
        next_, saved = 0.0, 0.0
        while True:
            self.seconds = spent + time.thread_time() - begun
            done = self.steps >= a.at[-1] if a.at else self.progress() >= 1
            if (self.steps in a.at) if a.at else (self.seconds >= next_ or done):
                e = self.evaluate()
                self._say(dict(minutes=round(self.seconds / 60, 1), steps=self.steps, rows=self.rows, level=self.world.level, most=self.world.most,
                               **{k: round(v, 4) for k, v in mean.items()}, **{k: round(v, 3) for k, v in e.items()}))
                self.save()
                if done:
                    return
                self.widen(e)
                next_ = self.seconds + a.interval
            rate = min(1, (self.steps + 1) / 50) * min(1, max(0.01, (1 - self.progress()) / a.decay))
            for o in self.optimizers:
                o.zero_grad(set_to_none=True)
                for g in o.param_groups:
                    g["lr"] = g["full"] * rate
            if a.stage == "tower":
                images, labels = self._scenes(self.rng, a.batch)
                losses = dict(tower=self.tower(self.model.see(torch.from_numpy(images))[0], torch.from_numpy(labels))[0])
                loss = losses["tower"]
            else:
                losses, *_ = self._run(self._batch(self.rng, a.batch))
                loss = losses["answer"] + a.tower_weight * losses["tower"] + a.phrase_weight * losses["phrases"]
            loss.backward()
            for o in self.optimizers:
                o.step()
            self.steps += 1
            self.rows += a.batch
            for k, v in losses.items():
                mean[k] = 0.98 * mean.get(k, v.item()) + 0.02 * v.item()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=["tower", "talk"])
    p.add_argument("out", help="the checkpoint, written at every interval")
    p.add_argument("--init", help="a checkpoint or an exported folder to begin from")
    p.add_argument("--resume", action="store_true", help="go on with OUT as it was")
    p.add_argument("--tokenizer", default=str(Path(__file__).parent.parent / "model/tiny-vlm/tokenizer.json"))
    p.add_argument("--minutes", type=float, default=60, help="the planned length; the rate falls over its last part")
    p.add_argument("--rows", type=int, default=0, help="end after so many images, if that comes first")
    p.add_argument("--batch", type=int, default=16, help="images a step")
    p.add_argument("--slots", type=int, default=4, help="lines of conversations per image")
    p.add_argument("--length", type=int, default=64, help="tokens a line")
    p.add_argument("--size", type=int, default=64, help="pixels a side")
    p.add_argument("--shuffle", type=int, default=2)
    p.add_argument("--vision-layers", type=int, default=4)
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--mlp", type=int, default=384)
    p.add_argument("--level", type=int, default=0, help="how wide the world is at first, 0 to 4")
    p.add_argument("--most", type=int, default=4, help="objects at first")
    p.add_argument("--full", type=float, default=0, help="share of the images with at least three objects, beside those drawn so anyway")
    p.add_argument("--most-level", type=int, default=4)
    p.add_argument("--most-objects", type=int, default=6)
    p.add_argument("--mastery", type=float, default=0.9, help="right answers that widen the world")
    p.add_argument("--weights", help='JSON: how much more often a kind is asked, as {"relation": 2, "caption": 0.5, "text": 0.5}')
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument("--matrix-rate", type=float, default=0.02)
    p.add_argument("--decay", type=float, default=0.35, help="the last part of the run, over which the rate falls")
    p.add_argument("--tower-weight", type=float, default=0.3)
    p.add_argument("--phrase-weight", type=float, default=0.5)
    p.add_argument("--freeze-tower", action="store_true")
    p.add_argument("--interval", type=float, default=120, help="seconds between evaluations")
    p.add_argument("--at", type=int, nargs="+", default=[], help="evaluate after so many steps instead, and end with the last: for another run's curve again")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    Trainer(a).run()


if __name__ == "__main__":
    main()
