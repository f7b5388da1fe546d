"""Tests of the recipe: python3 -m unittest, in this folder. They need what training needs; the one about the template transformers, too."""
from __future__ import annotations

import dataclasses
import random
import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
import torch

import evaluate
import export
import pack
import talk
import train
import world as W
from model import VLM, Config

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "model/tiny-vlm"
SET = ROOT / "model/tiny-vlm-questions.zip"
torch.set_num_threads(1)


def embedded() -> VLM:
    m = VLM(export.folder_config(str(FOLDER))).eval()
    m.load_state_dict(export.load_folder(str(FOLDER)))
    return m


def named(s: W.Scene, words: str) -> list[W.Object]:
    """The objects that a name like "red star", "large object" or "number 5" fits."""
    out = list(s.objects)
    for word in re.sub(r"number (\d)", r"number_\1", words).split():
        word = word.replace("_", " ")
        if word not in ("shape", "object", "shapes", "objects"):
            out = [o for o in out if word in (o.color, o.shape, o.size, talk.plural(o.shape))]
    return out


class Answers(unittest.TestCase):
    """Questions are read again here, by their words alone."""

    def turns(self, ask, n=400, level=W.World(0, 6)):
        rng = random.Random(11)
        for _ in range(n):
            s = W.scene(rng, level)
            if t := ask(s, rng):
                yield s, t

    def test_relations(self):
        yes = 0
        for s, t in (all_ := list(self.turns(talk.ask_relation))):
            a, how, b = re.fullmatch(r"Is the (.*?) (to the left of|to the right of|above|below) the (.*)\?", t.question).groups()
            (a,), (b,) = named(s, a), named(s, b)
            holds = {"to the left of": a.column < b.column, "to the right of": a.column > b.column, "above": a.row < b.row, "below": a.row > b.row}
            self.assertEqual(t.answer, "Yes." if holds[how] else "No.", t.question)
            yes += holds[how]
        self.assertAlmostEqual(yes / len(all_), 0.5, delta=0.1)

    def test_existence(self):
        yes = 0
        for s, t in (all_ := list(self.turns(talk.ask_exists))):
            what = re.fullmatch(r"(?:Is there|Do you see) an? (.*?)(?: in the image)?\?", t.question)[1]
            self.assertEqual(t.answer, "Yes." if named(s, what) else "No.", t.question)
            self.assertEqual(t.phrases, [named(s, what)])
            yes += t.answer == "Yes."
        self.assertAlmostEqual(yes / len(all_), 0.5, delta=0.1)

    def test_counts(self):
        for s, t in self.turns(talk.ask_count_by):
            what = re.fullmatch(r"How many (.*) are there\?", t.question)[1]
            n = sum(o.shape in W.DIGITS for o in s.objects) if what == "numbers" else len(named(s, what))
            self.assertEqual(t.answer, talk.sentence(talk.NUMBERS[n]), t.question)

    def test_captions_name_everything(self):
        for s, t in self.turns(talk.ask_caption):
            self.assertTrue(t.answer.endswith(f" on a {s.background} background."))
            found = re.findall(r"a (small|large) (\w+) (number \d|\w+) (in the center|on the left|on the right|at the (?:top|bottom)(?: left| right)?)",
                               t.answer.lower())
            self.assertEqual(found, [(o.size, o.color, o.shape, talk.at(o.place)) for o in s.objects])

    def test_json(self):
        for s, t in self.turns(talk.ask_json, 100):
            keys = re.search(r"keys (.*)\.$", t.question)[1].replace(" and ", ", ").split(", ")
            case = {"keys": keys, "form": "json"}
            self.assertTrue(evaluate.valid(case, t.answer), t.question)
            self.assertFalse(evaluate.valid(case, t.answer[:-1]))


class Lessons(unittest.TestCase):
    """What training tells of charts, signs and pairs of images, against their pixels."""

    def drawn(self, make, n=60):
        rng = random.Random(14)
        for _ in range(n):
            s = make(rng, W.World(4, 6))
            yield s, W.labels(s, 8), W.render(s, 64).astype(int)

    def test_charts(self):
        for s, lab, image in self.drawn(W.chart):
            shape, color, size = lab[:3].reshape(3, 8, 8)
            for row, column in np.argwhere(color > 0):
                patch = image[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                want = W.COLORS[list(W.COLORS)[color[row, column] - 1]][0]
                self.assertGreater((np.abs(patch - want).max(-1) < 12).mean(), 0.1)
                self.assertEqual(W.KINDS[shape[row, column] - 1], s.objects[0].shape)
            names = list(W.COLORS)
            for rank, pick in ((1, min), (2, max)):
                self.assertEqual({names[c - 1] for c in color[size == rank]}, {pick(s.objects, key=lambda o: o.radius).color})
            for o in s.objects:
                cells = W.cover(o, 4).reshape(4, 4).repeat(16, 0).repeat(16, 1)
                mine = np.abs(image - W.COLORS[o.color][0]).max(-1) < 12
                self.assertGreater((mine & (cells > 0)).sum(), mine.sum() * 0.4, o)

    def test_signs(self):
        for s, lab, image in self.drawn(W.sign):
            o, board = s.objects[0], lab[1] > 0
            self.assertGreater(board.sum(), 13)
            text = [{W.CHARACTERS[i - 1] if i else "" for i in lab[4 + n][board]} for n in range(W.LONGEST)]
            self.assertEqual(text, [{c} for c in o.text] + [{""}] * (W.LONGEST - len(o.text)))
            self.assertTrue((lab[3:][:, ~board] == -1).all())
            read = [W.CHARACTERS[i - 1] for i in lab[3].reshape(8, 8).max(0) if i > 0]  # narrow ones fill no patch
            once = [c for i, c in enumerate(read) if not i or c != read[i - 1]]
            rest = iter(o.text)
            self.assertTrue(all(c in rest for c in once) and len(once) >= len(set(o.text)) - 2, (o.text, once))
            behind, most = image[int(o.y) - 10, 6], 0
            for _, (left, top, right, bottom) in W.letters(o):
                box = image[int(top) : int(bottom), int(left) : int(np.ceil(right))]
                most = max(most, (np.abs(box - behind).max(-1) > 60).mean())
            self.assertGreater(most, 0.2)

    def test_what_differs(self):
        rng, world, seen = random.Random(15), W.World(0, 4), set()
        for _ in range(100):
            s = W.scene(rng, world)
            other, kind, o = W.changed(rng, s, world)
            cells = W.differ(s, other, 4)
            seen.add(kind)
            if kind == "none":
                self.assertEqual(cells.sum(), 0)
            elif kind == "background":
                far = np.subtract(*(W.BACKGROUNDS[x.background][x.tone % len(W.BACKGROUNDS[x.background])] for x in (s, other)))
                self.assertEqual(cells.sum() > 8, np.abs(far).max() > 30)
            else:
                self.assertGreater((cells * W.cover(o, 4)).sum(), 0, kind)
                self.assertLess(cells.sum(), 12)
        self.assertEqual(seen, {"none", "gone", "new", "color", "background"})

    def test_second_images_are_where_lessons_look(self):
        codec = pack.Codec(str(FOLDER / "tokenizer.json"), 16)
        b = pack.batch(codec, random.Random(16), W.World(4, 6), 8, 2, 96, 64, 8, {"compare": 12})
        ids = b.ids.reshape(-1)
        self.assertGreater(len(b.changed), 3)
        for at, start, end, cells in b.changed:
            self.assertTrue((ids[at : at + 16] == pack.IMAGE).all() and len(cells) == 16)
            self.assertEqual((ids[at - 1], ids[at + 16]), (pack.GLOBAL, pack.FAKE))
            self.assertEqual(b.targets.reshape(-1)[end - 1], pack.EOS)
            self.assertIn(("compare", start, end), [(k, a, z) for k, _, a, z in b.answers])
        images = {at for at, *_ in b.changed}
        asked = [p for _, _, p in b.phrases if p >= 0]
        self.assertTrue(asked and set(asked) <= images)


class Ids(unittest.TestCase):
    def conversations(self, n):
        rng, world = random.Random(12), W.World(1, 6)
        for i in range(n):
            yield pack.conversation(W.scene(rng, world), rng, world, i % 2 == 0, None)

    def test_template(self):
        try:
            from transformers import AutoProcessor
        except ImportError as e:
            self.skipTest(str(e))
        processor = AutoProcessor.from_pretrained(FOLDER, use_fast=False)
        codec = pack.Codec(str(FOLDER / "tokenizer.json"), 16)
        image = np.zeros((64, 64, 3), np.uint8)
        for c in self.conversations(60):
            ids, spans, _ = codec.tokens(c)
            messages = []
            for i, t in enumerate(c.turns):
                parts = [{"type": "text", "text": t.question}]
                images = [{"type": "image"}] * c.images if i == 0 else []
                messages.append({"role": "user", "content": parts + images if c.text_first else images + parts})
                start, end = spans[i]
                text = processor.apply_chat_template(messages, add_generation_prompt=True)
                want = processor(text=text, images=[[image] * c.images] if c.images else None, return_tensors="np")["input_ids"][0].tolist()
                self.assertEqual(ids[:start], want)
                self.assertEqual(evaluate.prompt(codec, {"messages": messages}), want)
                self.assertEqual(codec.decode(ids[start:end]), t.answer)
                messages.append({"role": "assistant", "content": [{"type": "text", "text": t.answer}]})

    def test_phrases_end_where_they_end(self):
        codec = pack.Codec(str(FOLDER / "tokenizer.json"), 16)
        seen = 0
        for c in self.conversations(60):
            ids, _, phrases = codec.tokens(c)
            asked = [p for t in c.turns for p in t.ask.split(talk.MARK)[:-1]]
            self.assertEqual(len(asked), len(phrases))
            for text, (at, _) in zip(asked, phrases):
                self.assertTrue(codec.tokenizer.decode(ids[: at + 1]).endswith(text[-6:]), text)
                seen += 1
        self.assertGreater(seen, 20)


class Pass(unittest.TestCase):
    """The packed training pass against one conversation after the other."""

    @classmethod
    def setUpClass(cls):
        cls.model = VLM(Config(), 3).eval()
        cls.codec = pack.Codec(str(FOLDER / "tokenizer.json"), 16)
        cls.batch = pack.batch(cls.codec, random.Random(13), W.World(1, 4), 3, 2, 64, 64, 8)

    @torch.no_grad()
    def packed(self, b):
        c, text = self.model.config, self.model.model.text_model
        f = self.model.see(torch.from_numpy(b.images))[1]
        rows, slots, length = b.ids.shape
        prefix = text.embed_tokens(torch.tensor(self.codec.prefix)).repeat(rows, 1, 1)
        prefix[:, np.array(self.codec.prefix) == pack.IMAGE] = f[:rows]
        x = text.embed_tokens(torch.from_numpy(b.ids)).flatten(0, 2)
        for at, image in b.where:
            x[at : at + c.image_tokens] = f[image]
        hidden, _ = text.packed(prefix, x.view(rows, slots, length, -1), torch.from_numpy(b.positions), torch.from_numpy(b.mask))
        return prefix, x, hidden[-1]

    def segments(self, b):
        """(row, flat start, flat end, whether the prefix belongs to it) of each conversation."""
        ids, at = b.ids.reshape(-1), b.positions.reshape(-1)
        length, p = b.ids.shape[2], len(self.codec.prefix)
        starts = [i for i in range(len(ids)) if ids[i] != pack.PAD and (i % length == 0 or at[i] != at[i - 1] + 1)]
        for i in starts:
            end = i + 1
            while end % length and ids[end] != pack.PAD and at[end] == at[end - 1] + 1:
                end += 1
            yield i // (length * b.ids.shape[1]), i, end, at[i] == p

    def test_equals_step_by_step(self):
        text = self.model.model.text_model
        prefix, x, hidden = self.packed(self.batch)
        n, alone = 0, 0
        for row, a, z, shared in self.segments(self.batch):
            cache = []
            with torch.no_grad():
                if shared:
                    text.step(prefix[row : row + 1], 0, cache)
                start = len(self.codec.prefix) if shared else 0
                out = [text.step(x[None, i : i + 1], start + i - a, cache)[0] for i in range(a, z)]
            torch.testing.assert_close(torch.cat(out), hidden[a:z], atol=2e-5, rtol=1e-4)
            n, alone = n + 1, alone + (not shared)
        self.assertGreater(n, 6)
        self.assertGreater(alone, 0)

    def test_others_are_not_seen(self):
        segments = list(self.segments(self.batch))
        for _, a, z, _ in segments[:4]:
            other = dataclasses.replace(self.batch, ids=self.batch.ids.copy())
            flat = other.ids.reshape(-1)
            flat[a:z] = np.where(flat[a:z] == pack.IMAGE, pack.IMAGE, 300)
            before, after = self.packed(self.batch)[2], self.packed(other)[2]
            self.assertFalse(torch.equal(before[a:z], after[a:z]))
            for _, b, e, _ in segments:
                if b != a:
                    self.assertTrue(torch.equal(before[b:e], after[b:e]))


class Folder(unittest.TestCase):
    def test_round_trip(self):
        c = Config(width=64, heads=2, kv_heads=1, layers=2, vision_layers=1)
        m = VLM(c, 4)
        with tempfile.TemporaryDirectory() as t:
            for dtype, most in (("float32", 0), ("float16", 1e-3)):
                export.write(Path(t), c, m.state_dict(), FOLDER / "tokenizer.json", dtype)
                self.assertEqual(export.folder_config(t), c)
                back = export.load_folder(t)
                self.assertEqual(set(back), set(m.state_dict()))
                for k, v in m.state_dict().items():
                    torch.testing.assert_close(back[k], v, atol=most, rtol=most)

    def test_recorded_answers(self):
        """The set's ids are the embedded model's, and it is right on what it was trained for."""
        cases, images = evaluate.read(SET)
        some = [c for c in cases if c["kind"] in ("caption, 1 object", "question before the picture", "follow-up")]
        model, codec = embedded(), pack.Codec(str(FOLDER / "tokenizer.json"), 16)
        ids = evaluate.answer(model, codec, some, images)
        self.assertEqual(ids, [c["generated_ids"] for c in some])
        right = sum(codec.decode(i) == c["truth"] for i, c in zip(ids, some))
        self.assertGreater(right / len(some), 0.9)


class Training(unittest.TestCase):
    def train(self, out, *flags):
        argv = ["train.py", "talk", str(out), "--tokenizer", str(FOLDER / "tokenizer.json"), "--batch", "2", "--slots", "1", "--minutes", "60", *flags]
        with mock.patch.object(sys, "argv", argv), mock.patch.object(train.Trainer, "evaluate", return_value={}), \
                mock.patch.object(train.Trainer, "widen"), mock.patch("builtins.print"):
            train.main()
        return torch.load(out, weights_only=False)

    def test_resume_goes_on_as_if_it_had_not_stopped(self):
        with tempfile.TemporaryDirectory() as t:
            whole = self.train(Path(t) / "whole.pt", "--at", "6")
            self.train(Path(t) / "parts.pt", "--at", "3")
            parts = self.train(Path(t) / "parts.pt", "--at", "6", "--resume")
        self.assertEqual(parts["steps"], 6)
        for k, v in whole["model"].items():
            self.assertTrue(torch.equal(v, parts["model"][k]), k)
        other = VLM(Config(), 1).state_dict()
        self.assertFalse(torch.equal(other["model.text_model.layers.0.mlp.up_proj.weight"], whole["model"]["model.text_model.layers.0.mlp.up_proj.weight"]))


if __name__ == "__main__":
    unittest.main()
