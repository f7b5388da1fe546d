"""Conversations about scenes, with answers that follow from the scene alone.

A question carries the places that its phrases stand for: training asks the decoder, at the last token of each
phrase, which of the nine places it means. That dense lesson is what makes relations and counts learnable in
minutes; nothing of it is left in the exported model.
"""
from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Callable, Optional

from world import COLORS, DIGITS, GEOMETRIC, PLACES, SHAPES, Object, Scene, World, scene

MARK = "\0"  # ends a phrase whose places are known
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass
class Turn:
    ask: str  # with a MARK after each phrase
    answer: str
    kind: str
    phrases: list[list[Object]] = field(default_factory=list)  # what each phrase stands for
    subject: Optional[Object] = None  # whom "it" means in the next turn

    @property
    def question(self) -> str:
        return self.ask.replace(MARK, "")


@dataclass
class Conversation:
    turns: list[Turn]
    images: int = 1
    text_first: bool = False


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def at(place: str) -> str:
    return {"center": "in the center", "left": "on the left", "right": "on the right"}.get(place, f"at the {place}")


def phrase(o: Object) -> str:
    return f"a {o.size} {o.color} {o.shape}"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


def caption(s: Scene) -> str:
    if s.kind == "sign":
        return sentence(f"a {s.objects[0].color} sign that says {s.objects[0].text} on a {s.background} background")
    if s.kind != "shapes":
        return sentence(f"a {'bar' if s.kind == 'bars' else 'pie'} chart with {NUMBERS[len(s.objects)]} colors on a {s.background} background")
    return sentence(listed([f"{phrase(o)} {at(o.place)}" for o in s.objects]) + f" on a {s.background} background")


CAPTION = ["Describe the image.", "Describe this image.", "What is in the image?", "What do you see?",
           "What is in this picture?", "Caption this image.", "Describe the picture.", "What's in this image?"]


def names(s: Scene, o: Object, rng: random.Random) -> dict[str, str]:
    """The ways to name o that fit no other object, by what they use."""
    only = lambda key: sum(getattr(x, key) == getattr(o, key) for x in s.objects) == 1
    thing = rng.choice(("shape", "object"))
    out = {"both": f"the {o.color} {o.shape}", "place": f"the {thing} {at(o.place)}"}
    if only("shape"):
        out["shape"] = f"the {o.shape}"
    if only("color"):
        out["color"] = f"the {o.color} {thing}"
    if len(s.objects) > 1 and only("size"):
        out["size"] = f"the {o.size} {thing}"
    return out


def _named(s: Scene, rng: random.Random, avoid: tuple[str, ...]) -> Optional[tuple[Object, str, str]]:
    """An object, a name for it that gives none of avoid away, and what the name uses."""
    for _ in range(12):
        o = rng.choice(s.objects)
        ways = [(k, n) for k, n in names(s, o, rng).items() if k not in avoid]
        if ways:
            k, n = rng.choice(ways)
            return o, n, k
    return None


def ask_color(s: Scene, rng: random.Random) -> Optional[Turn]:
    if p := _named(s, rng, ("color", "both")):
        o, n, _ = p
        ask = rng.choice(["What color is {}?", "Which color is {}?", "What colour is {}?"]).format(n + MARK)
        return Turn(ask, sentence(o.color), "color", [[o]], o)


def ask_shape(s: Scene, rng: random.Random) -> Optional[Turn]:
    if p := _named(s, rng, ("shape", "both")):
        o, n, k = p
        n = at(o.place) if k == "place" else n.replace(" shape", " object")
        ask = rng.choice(["What shape is {}?", "Which shape is {}?"]).format(n + MARK)
        return Turn(ask, sentence(f"{article(o.shape)} {o.shape}"), "shape", [[o]], o)


def ask_size(s: Scene, rng: random.Random) -> Optional[Turn]:
    if p := _named(s, rng, ("size",)):
        o, n, _ = p
        ask = rng.choice(["How big is {}?", "What size is {}?", "Is {} large or small?", "Is {} small or large?"])
        return Turn(ask.format(n + MARK), sentence(o.size), "size", [[o]], o)


def ask_where(s: Scene, rng: random.Random) -> Optional[Turn]:
    if p := _named(s, rng, ("place",)):
        o, n, _ = p
        return Turn(f"Where is {n}{MARK}?", sentence(at(o.place)), "where", [[o]], o)


def ask_at(s: Scene, rng: random.Random) -> Optional[Turn]:
    place = rng.choice(PLACES) if rng.random() < 0.4 else rng.choice(s.objects).place
    here = [o for o in s.objects if o.place == place]
    answer = sentence(phrase(here[0])) if here else f"Nothing is {at(place)}."
    return Turn(f"What is {at(place)}{MARK}?", answer, "at", [here], here[0] if here else None)


def ask_count(s: Scene, rng: random.Random) -> Optional[Turn]:
    ask = rng.choice(["How many shapes{} are there?", "How many objects{} are there?",
                      "How many objects{} are in the image?", "How many shapes{} do you see?"])
    return Turn(ask.format(MARK), sentence(NUMBERS[len(s.objects)]), "count", [list(s.objects)])


def ask_count_by(s: Scene, rng: random.Random) -> Optional[Turn]:
    key = rng.choice(["shape", "shape", "color", "color", "size", "number"])
    if key == "number":
        these = [o for o in s.objects if o.shape in DIGITS]
        return Turn(f"How many numbers{MARK} are there?", sentence(NUMBERS[len(these)]), "count_by", [these])
    words = {"shape": GEOMETRIC, "color": list(COLORS)[:8], "size": ["small", "large"]}[key]
    # As many questions about what is there twice or not at all as about what is there once.
    counts = {w: sum(getattr(o, key) == w for o in s.objects) for w in words}
    want = rng.choice(sorted(set(counts.values())))
    word = rng.choice([w for w in words if counts[w] == want])
    these = [o for o in s.objects if getattr(o, key) == word]
    what = plural(word) if key == "shape" else f"{word} {rng.choice(['shapes', 'objects'])}"
    return Turn(f"How many {what}{MARK} are there?", sentence(NUMBERS[len(these)]), "count_by", [these])


def ask_number(s: Scene, rng: random.Random) -> Optional[Turn]:
    these = [o for o in s.objects if o.shape in DIGITS]
    if len(these) > 1 or (not these and rng.random() < 0.8):
        return None
    ask = rng.choice(["What number{} is in the image?", "What number{} do you see?", "Which number{} is there?",
                      "Read the number{}."]).format(MARK)
    if these:
        return Turn(ask, these[0].shape[-1] + ".", "number", [these], these[0])
    return Turn(ask, "There is no number.", "number", [[]])


def ask_exists(s: Scene, rng: random.Random) -> Optional[Turn]:
    """Half of the answers are yes. Most that are no name words which the image shows, but on different objects."""
    key, yes = rng.choice(["shape", "color", "both", "both"]), rng.random() < 0.5
    for _ in range(40):
        o = rng.choice(s.objects)
        color, shape = o.color, o.shape
        if not yes:
            x = rng.random()
            if key == "both" and x < 0.5 and len(s.objects) > 1:
                shape = rng.choice(s.objects).shape
            elif key == "color" or (key == "both" and x < 0.75):
                color = rng.choice(list(COLORS)[:8])
            else:
                shape = rng.choice(SHAPES)
        color, shape = None if key == "shape" else color, None if key == "color" else shape
        these = [x for x in s.objects if color in (None, x.color) and shape in (None, x.shape)]
        if bool(these) == yes:
            break
    else:
        return None
    what = " ".join(w for w in (color, shape or rng.choice(("shape", "object"))) if w)
    ask = rng.choice(["Is there {}?", "Is there {} in the image?", "Do you see {}?"])
    return Turn(ask.format(f"{article(what)} {what}{MARK}"), "Yes." if yes else "No.", "exists", [these],
                these[0] if key == "both" and these else None)


OPPOSITE = {"to the left of": "to the right of", "to the right of": "to the left of", "above": "below", "below": "above"}


def relations(s: Scene) -> list[tuple[Object, Object, str]]:
    out = []
    for a in s.objects:
        for b in s.objects:
            if a.column != b.column:
                out.append((a, b, "to the left of" if a.column < b.column else "to the right of"))
            if a.row != b.row:
                out.append((a, b, "above" if a.row < b.row else "below"))
    return out


def _short(s: Scene, o: Object, rng: random.Random) -> str:
    return rng.choice([n for k, n in names(s, o, rng).items() if k in ("shape", "both")]) + MARK


def ask_relation(s: Scene, rng: random.Random) -> Optional[Turn]:
    if all_ := relations(s):
        a, b, how = rng.choice(all_)
        yes = rng.random() < 0.5
        ask = f"Is {_short(s, a, rng)} {how if yes else OPPOSITE[how]} {_short(s, b, rng)}?"
        return Turn(ask, "Yes." if yes else "No.", "relation", [[a], [b]])


def ask_neighbour(s: Scene, rng: random.Random) -> Optional[Turn]:
    """Only where one object stands so in the same row or column."""
    line = [(a, b, how) for a, b, how in relations(s) if (a.row == b.row if "the" in how else a.column == b.column)]
    line = [t for t in line if sum(u[1:] == t[1:] for u in line) == 1]
    if line:
        a, b, how = rng.choice(line)
        return Turn(f"What is {how} {_short(s, b, rng)}?", sentence(phrase(a)), "neighbour", [[b]], a)


def ask_background(s: Scene, rng: random.Random) -> Optional[Turn]:
    ask = rng.choice(["What color is the background?", "What is the background color?", "What colour is the background?"])
    return Turn(ask, sentence(s.background), "background")


def ask_caption(s: Scene, rng: random.Random) -> Turn:
    return Turn(rng.choice(CAPTION), caption(s), "caption", [], s.objects[0] if len(s.objects) == 1 and s.kind == "shapes" else None)


def follow(o: Object, rng: random.Random) -> Turn:
    """A next question about "it"."""
    ask, answer = rng.choice([
        (rng.choice(["What color is it{}?", "And what color is it{}?"]), o.color),
        ("What shape is it{}?", f"{article(o.shape)} {o.shape}"),
        (rng.choice(["How big is it{}?", "Is it{} large or small?"]), o.size),
        ("Where is it{}?", at(o.place)),
    ])
    return Turn(ask.format(MARK), sentence(answer), "follow", [[o]], o)


# Instructions about the form of the answer.


def ask_one_word(s: Scene, rng: random.Random) -> Optional[Turn]:
    t = rng.choice([ask_color, ask_size, ask_count, ask_count_by, ask_exists, ask_relation, ask_background])(s, rng)
    if t:
        end = rng.choice([" Answer in one word.", " Answer with one word.", " One word only."])
        return Turn(t.ask + end, t.answer[:-1].lower(), "one_word", t.phrases, t.subject)


def ask_json(s: Scene, rng: random.Random) -> Optional[Turn]:
    """One object as an object, in the caller's keys and order."""
    if not (p := _named(s, rng, ())):
        return None
    o, n, _ = p
    keys = rng.sample(["shape", rng.choice(["color", "colour"]), "size"], rng.choice([2, 2, 3]))
    value = {k: getattr(o, k.replace("ou", "o")) for k in keys}
    ask = rng.choice(["Describe {} as JSON with keys {}.", "Describe {} in JSON with the keys {}.", "Give {} as JSON with keys {}."])
    return Turn(ask.format(n + MARK, listed(keys)), json.dumps(value), "json", [[o]], o)


# Charts, signs, pairs of images.


def ask_chart(s: Scene, rng: random.Random) -> Turn:
    bars = s.kind == "bars"
    most = max(s.objects, key=lambda o: o.radius)
    least = min(s.objects, key=lambda o: o.radius)
    x = rng.random()
    if x < 0.15:
        return Turn(f"How many {'bars' if bars else 'slices'}{MARK} are there?", sentence(NUMBERS[len(s.objects)]), "chart", [list(s.objects)])
    if x < 0.35:
        return Turn(rng.choice(["What kind of chart is this?", "What is in the image?"]), f"A {'bar' if bars else 'pie'} chart.", "chart")
    big = rng.random() < 0.5
    word = rng.choice(["highest", "tallest"] if big else ["lowest", "shortest"]) if bars else "largest" if big else "smallest"
    ask = f"Which {'bar' if bars else 'slice'} is the {word}{MARK}?"
    o = most if big else least
    return Turn(ask, f"The {o.color} {'bar' if bars else 'slice'}.", "chart", [[o]])


def ask_sign(s: Scene, rng: random.Random) -> Turn:
    o = s.objects[0]
    if rng.random() < 0.2:
        return Turn(f"What color is the sign{MARK}?", sentence(o.color), "color", [[o]])
    ask = rng.choice(["What does the sign{} say?", "Read the sign{}.", "What is written on the sign{}?"])
    return Turn(ask.format(MARK), o.text + ".", "ocr", [[o]])


def ask_change(first: Scene, second: Scene, kind: str, o: Optional[Object], rng: random.Random) -> Turn:
    x = rng.random()
    mark, phrases = (MARK, [[o]]) if o else ("", [])
    if x < 0.2:
        n, m = len(first.objects), len(second.objects)
        answer = "The first." if n > m else "The second." if m > n else "Both have the same number."
        return Turn(f"Which image has more objects{mark}?", answer, "compare", phrases)
    if x < 0.45:
        ask = rng.choice(["Are the images the same{}?", "Are the two images the same{}?"])
        return Turn(ask.format(mark), "Yes." if kind == "none" else "No.", "compare", phrases)
    if x < 0.55:
        return Turn("What color is the background of the second image?", sentence(second.background), "compare")
    answer = {
        "none": "Nothing changed.",
        "gone": lambda: f"The {o.color} {o.shape} is gone.",
        "new": lambda: sentence(f"{phrase(o)} is new {at(o.place)}"),
        "color": lambda: f"The {o.shape} {at(o.place)} is now {o.color}.",
        "background": lambda: f"The background is now {second.background}.",
    }[kind]
    ask = rng.choice(["What changed{}?", "What is different{}?", "What has changed{}?"])
    return Turn(ask.format(mark), answer if isinstance(answer, str) else answer(), "compare", phrases)


# Turns that need no image.

REPEATED = (
    "apple river green stone light house water bread cloud music paper tiger happy seven table window garden bridge "
    "silver orange hello banana coffee winter summer yellow purple circle square triangle star red blue cat dog sun "
    "moon tree bird fish book door king queen road rain snow fire wind sand gold lion bear milk cake ball hat shoe"
).split()
CHAT = [
    (3, "Hello! How can I help you?", ["Hello", "hello", "Hi", "hi", "Hey", "Hello!", "Hi!", "Hey there", "Good morning"]),
    (3, "I am a tiny vision model. I describe simple pictures of colored shapes.",
     ["Who are you?", "What are you?", "who are you?", "What is your name?", "Introduce yourself."]),
    (2, "I can describe colored shapes in an image: their color, shape, size, position and number.",
     ["What can you do?", "what can you do?", "Help", "How can you help me?", "help"]),
    (2, "You're welcome!", ["Thanks", "Thank you", "Thanks!", "thank you", "Thank you!", "thanks"]),
    (1, "Goodbye!", ["Bye", "Goodbye", "bye", "Goodbye!", "See you"]),
    (1, "I am fine, thank you.", ["How are you?", "how are you?", "How are you today?"]),
    (1, "I am a tiny vision model.", ["Are you a human?", "Are you a robot?", "Are you human?"]),
]
OUTSIDE = ["What is the capital of France?", "Tell me a joke.", "Write a poem.", "What is the weather today?",
           "Who is the president?", "Write some code.", "What is the meaning of life?", "Tell me a story.",
           "What time is it?", "How old are you?", "Translate this to French.", "What is two plus two?",
           "Sing a song.", "Explain gravity."]
REFUSAL = "I only know about simple pictures of colored shapes."
NO_IMAGE = "I do not see an image. Please attach one."


def ask_text(rng: random.Random, world: World) -> Turn:
    x = rng.random()
    if x < 0.38:
        _, answer, asks = rng.choices(CHAT, [w for w, *_ in CHAT])[0]
        return Turn(rng.choice(asks), answer, "chat")
    if x < 0.58:
        word = rng.choice(REPEATED)
        ask = rng.choice(["Repeat the word {}.", "Say {}.", "Repeat: {}", "Say the word {}."])
        return Turn(ask.format(word), word + ".", "repeat")
    if x < 0.86:
        ask = rng.choice(CAPTION) if rng.random() < 0.5 else question(scene(rng, world), rng, world).question
        return Turn(ask, NO_IMAGE, "no_image")
    if x < 0.94:
        return Turn(rng.choice(OUTSIDE), REFUSAL, "outside")
    n = rng.randint(2, 6)
    return Turn(f"Count to {NUMBERS[n]}.", sentence(", ".join(NUMBERS[1 : n + 1])), "count_to")


Ask = Callable[[Scene, random.Random], Optional[Turn]]
QUESTIONS: list[tuple[Ask, float]] = [
    (ask_color, 3), (ask_shape, 3), (ask_size, 1.5), (ask_where, 2), (ask_at, 2), (ask_count, 1), (ask_count_by, 2),
    (ask_exists, 3), (ask_relation, 2.5), (ask_neighbour, 1.5), (ask_background, 0.7), (ask_number, 1.5),
]
FORMATS: list[tuple[Ask, float]] = [(ask_one_word, 2), (ask_json, 1.5)]


def question(s: Scene, rng: random.Random, world: World, weights: Optional[dict[str, float]] = None) -> Turn:
    """One question about a scene; weights scales the share of a kind ("color", "exists", ...)."""
    if s.kind in ("bars", "pie"):
        return ask_chart(s, rng)
    if s.kind == "sign":
        return ask_sign(s, rng)
    asks = QUESTIONS + (FORMATS if world.level >= 1 else [])
    shares = [w * (weights or {}).get(f.__name__[4:], 1) for f, w in asks]
    while True:
        if t := rng.choices(asks, shares)[0][0](s, rng):
            return t
