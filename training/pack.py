"""Prompts as token ids, exactly as the chat template and the processor of the exported folder make them, and training batches."""
from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from tokenizers import Tokenizer

import talk
import world as W
from talk import MARK, Conversation

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<end_of_utterance>",
           "<fake_token_around_image>", "<global-img>", "<image>"]
END, BOS, PAD, _, EOS, FAKE, GLOBAL, IMAGE = range(8)


class Codec:
    def __init__(self, path: str, image_tokens: int):
        self.tokenizer = Tokenizer.from_file(path)
        self.image = [FAKE, GLOBAL] + [IMAGE] * image_tokens + [FAKE]
        self._cache: dict[str, tuple[list[int], list[int]]] = {}
        self.prefix = [BOS] + self.encode("User:")[0] + self.image

    def encode(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text without its MARKs, and the index of the token before each MARK."""
        if text not in self._cache:
            marks, plain = [], ""
            for part in text.split(MARK):
                plain += part
                marks.append(len(plain))
            e = self.tokenizer.encode(plain, add_special_tokens=False)
            ends = [end for _, end in e.offsets]
            if len(self._cache) > 300_000:
                self._cache.clear()
            self._cache[text] = e.ids, [max(i for i, end in enumerate(ends) if end <= m) for m in marks[:-1]]
        return self._cache[text]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def tokens(self, c: Conversation) -> tuple[list[int], list[tuple[int, int]], list[tuple[int, list[W.Object]]]]:
        """All ids of a conversation, the spans of its answers, and where its phrases end and what they stand for."""
        ids, spans, phrases = [BOS], [], []
        for i, t in enumerate(c.turns):
            images = self.image * c.images if i == 0 else []
            if images and not c.text_first:
                ids += self.encode("User:")[0] + images
                head = t.ask
            else:
                head = ("\n" if i else "") + "User: " + t.ask
            body, marks = self.encode(head)
            phrases += [(len(ids) + m, o) for m, o in zip(marks, t.phrases)]
            ids += body
            if images and c.text_first:
                ids += images
            ids += [EOS] + self.encode("\nAssistant:")[0]
            start = len(ids)
            ids += self.encode(" " + t.answer)[0] + [EOS]
            spans.append((start, len(ids)))
        return ids, spans, phrases


@dataclass
class Batch:
    """b images, each with k slots of t tokens; n images in all, the first b of them in the prefixes."""

    images: np.ndarray  # n x h x w x 3
    labels: np.ndarray  # n x 3 x patches
    ids: np.ndarray  # b x k x t
    positions: np.ndarray
    mask: np.ndarray  # b*k x t x p+t, additive
    targets: np.ndarray  # b x k x t, -100 where none
    weights: np.ndarray
    where: list[tuple[int, int]] = field(default_factory=list)  # (flat position, image) of each image inside a slot
    phrases: list[tuple[int, list[W.Object], int]] = field(default_factory=list)  # (flat position, objects, flat position of their image or -1)
    answers: list[tuple[str, int, int, int]] = field(default_factory=list)  # (kind, objects, flat start, flat end) of targets
    asked: list[tuple[int, int, int, int]] = field(default_factory=list)  # (start, end, first, last phrase) of answers to phrases
    changed: list[tuple[int, int, int, np.ndarray]] = field(default_factory=list)  # (image, answer's start, end, cells that differ from the first)
    compared: list[tuple[int, int, int]] = field(default_factory=list)  # (start, column, row): 0 before, 1 same, 2 after


def conversation(s: W.Scene, rng: random.Random, world: W.World, first: bool, weights: Optional[dict[str, float]]) -> Conversation:
    """Most question conversations do not begin with the caption: answers would be copied from it."""
    x = rng.random()
    captions, texts = (0.5 if first else 0.05), 0.08
    if weights:
        captions, texts = captions * weights.get("caption", 1), texts * weights.get("text", 1)
    if x < captions:
        turns = [talk.ask_caption(s, rng)]
        if rng.random() < 0.15 and s.kind == "shapes":
            turns.append(talk.question(s, rng, world, weights))
        return Conversation(turns, text_first=rng.random() < 0.1)
    if x < captions + texts:
        turns = [talk.ask_text(rng, world)]
        if rng.random() < 0.15:
            turns.append(talk.ask_text(rng, world))
        return Conversation(turns, images=0)
    turns = [talk.question(s, rng, world, weights)]
    if turns[0].subject is not None and rng.random() < 0.25:
        turns.append(talk.follow(turns[0].subject, rng))
        if rng.random() < 0.2:
            turns.append(talk.follow(turns[0].subject, rng))
    elif rng.random() < 0.08:
        turns.append(talk.question(s, rng, world, weights))
    return Conversation(turns, text_first=rng.random() < 0.12)


def batch(codec: Codec, rng: random.Random, world: W.World, rows: int, slots: int, length: int, size: int, grid: int,
          weights: Optional[dict[str, float]] = None, full: float = 0) -> Batch:
    p = len(codec.prefix)
    shape = (rows, slots, length)
    ids, positions = np.full(shape, PAD, np.int64), np.zeros(shape, np.int64)
    targets, weight = np.full(shape, -100, np.int64), np.zeros(shape, np.float32)
    owner = np.full(shape, -1, np.int64)  # which conversation a token belongs to
    sees = np.zeros(shape, bool)  # whether it sees the prefix
    scenes: list[W.Scene] = []
    extra: list[W.Scene] = []
    b = Batch(None, None, ids, positions, None, targets, weight)
    for r in range(rows):
        share = lambda kind: 0.1 * (weights or {}).get(kind, 1)
        s = W.drawn(rng, world, 3 if full and rng.random() < full else 1, share("chart"), share("sign"))
        scenes.append(s)
        fill, misses, n = [0] * slots, 0, 0
        while misses < 4:
            second = None
            if world.level >= 1 and s.kind == "shapes" and rng.random() < 0.06 * (weights or {}).get("compare", 1):
                other, what, o = W.changed(rng, s, world)
                c, second = Conversation([talk.ask_change(s, other, what, o, rng)], images=2), other
            else:
                c = conversation(s, rng, world, n == 0, weights)
            tokens, spans, phrases = codec.tokens(c)
            shared = c.images > 0 and not c.text_first
            skip = p if shared else 0  # its first tokens are the prefix
            size_ = len(tokens) - skip
            slot = next((i for i in range(slots) if fill[i] + size_ <= length), None)
            if slot is None:
                misses += 1
                continue
            a, z = fill[slot], fill[slot] + size_
            fill[slot] = z
            flat = (r * slots + slot) * length + a - skip
            ids[r, slot, a:z] = tokens[skip:]
            positions[r, slot, a:z] = np.arange(skip, len(tokens))
            owner[r, slot, a:z] = n
            sees[r, slot, a:z] = shared
            phrases_left = phrases
            for t, (start, end) in zip(c.turns, spans):
                at = slice(a - skip + start - 1, a - skip + end - 1)
                targets[r, slot, at] = tokens[start:end]
                weight[r, slot, at] = (end - start) ** -0.5
                b.answers.append((t.kind, len(s.objects), flat + start - 1, flat + end - 1))
                if t.phrases and not c.text_first:
                    mine, phrases_left = phrases_left[: len(t.phrases)], phrases_left[len(t.phrases) :]
                    b.asked.append((flat + start - 1, flat + end - 1, flat + mine[0][0], flat + mine[-1][0]))
                    if len(mine) == 2:
                        (_, [x]), (_, [y]) = mine
                        order = lambda u, v: 1 + (u > v) - (u < v)
                        b.compared.append((flat + start - 1, order(x.column, y.column), order(x.row, y.row)))
            image = -1
            if c.text_first or second is not None:
                at = len(tokens) - 1 - tokens[::-1].index(IMAGE) - (codec.image.count(IMAGE) - 1)
                if second is not None:
                    extra.append(second)
                    image, (start, end) = flat + at, spans[0]
                    b.changed.append((image, flat + start - 1, flat + end - 1, W.differ(s, second, int(codec.image.count(IMAGE) ** 0.5))))
                b.where.append((flat + at, r if second is None else -len(extra)))
            if not c.text_first:  # there the phrases come before the image and cannot know it
                b.phrases += [(flat + at, o, image) for at, o in phrases]
            n += 1
    b.where = [(at, i if i >= 0 else rows - i - 1) for at, i in b.where]
    scenes += extra
    b.images = np.stack([W.render(s, size, rng) for s in scenes])
    b.labels = np.stack([W.labels(s, grid) for s in scenes])
    same = (owner[..., :, None] == owner[..., None, :]) & np.tri(length, dtype=bool)
    seen = np.concatenate((np.broadcast_to(sees[..., None], (*shape, p)), same), -1)
    b.mask = np.where(seen, 0, -1e9).astype(np.float32).reshape(rows * slots, length, p + length)
    return b
