"""Drawn scenes whose truth is known exactly: objects on a jittered 3x3 layout, on plain or textured backgrounds.

Lengths are in units of a 64th of the image's side, so one scene can be drawn at any size.
"""
from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GEOMETRIC = ["circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring"]
DIGITS = [f"number {i}" for i in range(10)]
SHAPES = GEOMETRIC + DIGITS
# Several typical values for each word; an object takes one of them and a little jitter.
COLORS = {
    "red": [(220, 30, 35), (255, 0, 0), (200, 15, 15)],
    "orange": [(248, 135, 20), (255, 165, 0), (240, 120, 10)],
    "yellow": [(245, 222, 35), (255, 255, 0), (250, 235, 60)],
    "green": [(35, 165, 60), (0, 128, 0), (0, 200, 0), (0, 255, 0)],
    "cyan": [(45, 205, 215), (0, 255, 255), (30, 190, 200)],
    "blue": [(40, 70, 220), (0, 0, 255), (30, 90, 230)],
    "purple": [(130, 45, 180), (128, 0, 128), (150, 50, 200)],
    "pink": [(248, 130, 190), (255, 105, 180), (255, 175, 200)],
    # From level 2 on. Both are backgrounds too, and are never drawn on their own.
    "gray": [(128, 128, 128), (145, 145, 145), (110, 110, 110)],
    "brown": [(110, 70, 40), (130, 80, 40), (100, 60, 30)],
}
BACKGROUNDS = {
    "white": [(245, 245, 245), (255, 255, 255)],
    "gray": [(128, 128, 128), (160, 160, 160), (100, 100, 100)],
    "black": [(14, 14, 14), (0, 0, 0)],
    "beige": [(236, 221, 186), (245, 235, 215)],
    "brown": [(110, 70, 40), (125, 75, 35)],
    "navy": [(20, 22, 80), (0, 0, 100)],
}
PLACES = ["top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"]
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"
MAX_OBJECTS = 6


@dataclass(frozen=True)
class Object:
    shape: str
    color: str
    size: str
    place: str
    x: float
    y: float
    radius: float
    turn: float  # degrees
    tone: int = 0  # which of the colour's values
    # A wedge's angles or a bar's box, where a chart draws it; a sign's word.
    box: tuple[float, float, float, float] | None = None
    text: str = ""

    @property
    def column(self) -> int:
        return PLACES.index(self.place) % 3

    @property
    def row(self) -> int:
        return PLACES.index(self.place) // 3


@dataclass(frozen=True)
class Scene:
    background: str
    objects: tuple[Object, ...]  # in reading order
    kind: str = "shapes"  # or "bars", "pie", "sign"
    tone: int = 0
    texture: int = 0  # 0 plain, 1 stripes, 2 squares, 3 dots


@dataclass(frozen=True)
class World:
    """How wide the world is. Each level holds the ones below it.

    0 the plain world; 1 instructions about the form of the answer, and pairs of images; 2 two more colours, textured
    backgrounds, more rotation; 3 charts; 4 signs."""

    level: int = 0
    most: int = 4  # objects

    @property
    def colors(self) -> list[str]:
        return list(COLORS)[: 8 if self.level < 2 else 10]

    @property
    def turn(self) -> float:
        return 12 if self.level < 2 else 25


WORDS = (
    "open closed exit stop go push pull cafe hotel sale free taxi bus bank park zoo shop bread milk book fish "
    "hot cold left right up down yes no one two three sun moon star tree bird king door road snow fire gold"
).split()


def outline(shape: str) -> list[tuple[float, float]]:
    """The shape's corners around the origin, at radius 1."""
    round_ = [2 * math.pi * i / 40 for i in range(40)]
    if shape in ("circle", "ring"):
        return [(math.cos(a), math.sin(a)) for a in round_]
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0, -1), (1, 0.8), (-1, 0.8)]
    if shape == "diamond":
        return [(0, -1.1), (0.85, 0), (0, 1.1), (-0.85, 0)]
    if shape == "heart":
        bend = lambda a: 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        return [(math.sin(a) ** 3, -bend(a) / 16) for a in round_]
    if shape == "cross":
        quarter = [(-0.34, -1), (0.34, -1), (0.34, -0.34)]
        return [(x, y) if q == 0 else (-y, x) if q == 1 else (-x, -y) if q == 2 else (y, -x)
                for q in range(4) for x, y in quarter]
    points = []
    for i in range(10):
        r, a = (1.1, 0.45)[i % 2], i * math.pi / 5
        points.append((r * math.sin(a), -r * math.cos(a)))
    return points


OUTLINES = {s: outline(s) for s in GEOMETRIC}
_fonts: dict[int, ImageFont.FreeTypeFont] = {}


def font(pixels: int) -> ImageFont.FreeTypeFont:
    pixels = max(4, pixels)
    if pixels not in _fonts:
        _fonts[pixels] = ImageFont.truetype(FONT, pixels)
    return _fonts[pixels]


def scene(rng: random.Random, world: World, least: int = 1, most: int | None = None) -> Scene:
    """A scene of objects that do not touch. Some draw on few colours or shapes, so that counting is not trivial."""
    most = most or world.most
    while True:
        n = rng.randint(least, most)
        background = rng.choice(list(BACKGROUNDS))
        colors = [c for c in world.colors if c != background]
        if rng.random() < 0.3:
            colors = rng.sample(colors, 2)
        shapes = rng.sample(GEOMETRIC, 2) if rng.random() < 0.25 else GEOMETRIC
        digits = rng.random() < 0.6
        small = 0.5 if n < 3 else 0.6 if n < 5 else 0.8
        objects: list[Object] = []
        seen: set[tuple[str, str]] = set()
        for place in rng.sample(PLACES, 9):
            if len(objects) == n:
                break
            for _ in range(50):
                color = rng.choice(colors)
                shape = rng.choice(DIGITS) if digits and rng.random() < 1 / 3 else rng.choice(shapes)
                if (color, shape) not in seen:
                    break
            size = "small" if rng.random() < small else "large"
            radius = rng.uniform(6.6, 8.2) if size == "small" else rng.uniform(11.3, 13)
            if n == 1 and place == "center" and size == "large":
                radius = rng.uniform(11.3, 19)
            reach = radius * 1.06
            i = PLACES.index(place)
            x, y = (min(64 - reach, max(reach, (12, 32, 52)[q] + rng.uniform(-3, 3))) for q in (i % 3, i // 3))
            near = lambda o: max(abs(x - o.x), abs(y - o.y)) < reach + o.radius + 1
            if (color, shape) in seen or any(map(near, objects)):
                continue
            seen.add((color, shape))
            objects.append(Object(shape, color, size, place, x, y, radius, rng.uniform(-world.turn, world.turn),
                                  rng.randrange(len(COLORS[color]))))
        if len(objects) == n:
            objects.sort(key=lambda o: PLACES.index(o.place))
            texture = rng.choice((0, 0, 0, 1, 2, 3)) if world.level >= 2 else 0
            return Scene(background, tuple(objects), "shapes", rng.randrange(len(BACKGROUNDS[background])), texture)


def changed(rng: random.Random, s: Scene, world: World) -> tuple[Scene, str, Object | None]:
    """A scene with one difference from s, what kind of difference it is, and the object it is about."""
    kind = rng.choice(["none", "gone", "new", "color", "background"])
    o = rng.choice(s.objects)
    if kind == "gone" and len(s.objects) > 1:
        return replace(s, objects=tuple(x for x in s.objects if x is not o)), kind, o
    if kind == "color":
        taken = {(x.color, x.shape) for x in s.objects}
        free = [c for c in world.colors if c != s.background and (c, o.shape) not in taken]
        new = replace(o, color=rng.choice(free), tone=0)
        return replace(s, objects=tuple(new if x is o else x for x in s.objects)), kind, new
    if kind == "new" and len(s.objects) < world.most:
        for _ in range(30):
            other = scene(rng, world, 1, 1).objects[0]
            apart = all(max(abs(other.x - x.x), abs(other.y - x.y)) > (other.radius + x.radius) * 1.06 + 1 for x in s.objects)
            named = all((x.color, x.shape) != (other.color, other.shape) and x.place != other.place for x in s.objects)
            if apart and named and other.color != s.background and other.radius < 14:
                objects = sorted(s.objects + (other,), key=lambda x: PLACES.index(x.place))
                return replace(s, objects=tuple(objects)), kind, other
    if kind == "background":
        free = [b for b in BACKGROUNDS if b != s.background and all(x.color != b for x in s.objects)]
        return replace(s, background=rng.choice(free), tone=0), kind, None
    return s, "none", None


def chart(rng: random.Random, world: World) -> Scene:
    """A bar chart of two to five bars, or a pie of two to four wedges, no two alike. Sizes differ enough to be seen."""
    background = rng.choice(["white", "beige", "black"])
    bars = rng.random() < 0.5
    n = rng.randint(2, 5 if bars else 4)
    colors = rng.sample([c for c in world.colors[:8]], n)
    objects = []
    if bars:
        heights = [8 + 8 * h for h in rng.sample(range(6), n)]
        width = 60 / n
        for i, (c, h) in enumerate(zip(colors, heights)):
            left = 2 + i * width
            box = (left + width * 0.12, 60 - h, left + width * 0.88, 60)
            objects.append(Object("bar", c, "", PLACES[4], left + width / 2, 60 - h / 2, h / 2, 0, 0, box))
    else:
        shares = rng.sample([1, 2, 3, 4, 6, 8], n)
        start, total = rng.uniform(0, 360), sum(shares)
        for c, share in zip(colors, shares):
            end = start + 360 * share / total
            objects.append(Object("slice", c, "", PLACES[4], 32, 32, 360 * share / total, 0, 0, (start, end, 0, 0)))
            start = end
    return Scene(background, tuple(objects), "bars" if bars else "pie", 0)


def sign(rng: random.Random, world: World) -> Scene:
    """One word, or a number of two or three digits, on a coloured board."""
    word = str(rng.randint(10, 999)) if rng.random() < 0.3 else rng.choice(WORDS)
    color = rng.choice(world.colors[:8])
    board = Object("sign", color, "", PLACES[4], 32, 32 + rng.uniform(-10, 10), 28, rng.uniform(-4, 4),
                   rng.randrange(len(COLORS[color])), None, word)
    return Scene(rng.choice(["white", "beige", "black", "gray"]), (board,), "sign", 0)


def paint(draw: ImageDraw.ImageDraw, s: Scene, o: Object, scale: float, fill, behind) -> None:
    """Draws one object; behind is what shows through a ring."""
    if s.kind == "bars":
        draw.rectangle([v * scale for v in o.box], fill=fill)
    elif s.kind == "pie":
        draw.pieslice([8 * scale, 8 * scale, 56 * scale, 56 * scale], o.box[0], o.box[1], fill=fill)
    elif s.kind == "sign":
        draw.rectangle([(o.x - 28) * scale, (o.y - 11) * scale, (o.x + 28) * scale, (o.y + 11) * scale], fill=fill)
        f = font(int(scale * text_size(o.text)))
        ink = (255, 255, 255) if behind != 0 and sum(fill) < 380 else (0, 0, 0) if behind != 0 else fill
        draw.text((o.x * scale, o.y * scale), o.text, fill=ink, font=f, anchor="mm")
    elif o.shape in OUTLINES:
        c, n = math.cos(math.radians(o.turn)), math.sin(math.radians(o.turn))
        at = lambda r: [((o.x + r * (u * c - v * n)) * scale, (o.y + r * (u * n + v * c)) * scale)
                        for u, v in OUTLINES[o.shape]]
        draw.polygon(at(o.radius), fill=fill)
        if o.shape == "ring":
            draw.polygon(at(o.radius * 0.55), fill=behind)
    else:
        f = font(int(o.radius * scale * 2.6))
        left, top, right, bottom = f.getbbox(o.shape[-1])
        draw.text((o.x * scale - (left + right) / 2, o.y * scale - (top + bottom) / 2), o.shape[-1], fill=fill, font=f)


def _shade(rng: random.Random | None, rgb: tuple[int, int, int], by: float) -> tuple[int, int, int]:
    if rng is None:
        return rgb
    return tuple(int(min(255, max(0, v + rng.uniform(-by, by)))) for v in rgb)


_grain = np.random.default_rng(5).standard_normal((32, 128, 128, 3), np.float32)


def render(s: Scene, size: int = 64, rng: random.Random | None = None, grainy: bool = True) -> np.ndarray:
    """The scene as size x size x 3 bytes; with rng, its colours jittered, and some light and, if grainy, noise added."""
    fine = 3 if size <= 128 else 2
    scale = size * fine / 64
    base = _shade(rng, BACKGROUNDS[s.background][s.tone % len(BACKGROUNDS[s.background])], 8)
    im = Image.new("RGB", (size * fine, size * fine), base)
    draw = ImageDraw.Draw(im)
    if s.texture:
        other = tuple(min(255, max(0, v + (14 if sum(base) < 380 else -14))) for v in base)
        step = int(8 * scale)
        for i in range(0, size * fine, step):
            if s.texture == 1:
                draw.rectangle([i, 0, i + step // 2, size * fine], fill=other)
                continue
            for j in range(0, size * fine, step):
                box = [i, j, i + step // 2, j + step // 2]
                draw.rectangle(box, fill=other) if s.texture == 2 else draw.ellipse(box, fill=other)
    for o in s.objects:
        paint(draw, s, o, scale, _shade(rng, COLORS[o.color][o.tone % len(COLORS[o.color])], 12), base)
    out = np.asarray(im.reduce(fine))
    if rng is None:
        return out
    grain = rng.choice((0, 0, 1.5, 3, 5)) if grainy else 0
    light = rng.uniform(-12, 12) if rng.random() < 0.3 else 0
    if not grain and not light:
        return out
    out = out.astype(np.float32)
    if grain:
        out += _grain[rng.randrange(32), :size, :size] * grain
    if light:
        ramp = np.linspace(-light, light, size, dtype=np.float32)
        out += ramp[:, None, None] if rng.random() < 0.5 else ramp[None, :, None]
    return np.clip(out + 0.5, 0, 255).astype(np.uint8)


CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
LONGEST = max(map(len, WORDS))
CHART_KINDS = {"bar": "bars", "slice": "pie", "sign": "sign"}
KINDS = SHAPES + list(CHART_KINDS)
# What is known of each patch, and of how many kinds it can be.
KNOWN = {"shape": len(KINDS), "color": len(COLORS), "size": 2, "letter": len(CHARACTERS),
         **{f"char{i}": len(CHARACTERS) for i in range(LONGEST)}}


def text_size(text: str) -> float:
    return min(18, 78 / len(text))


def letters(o: Object) -> list[tuple[int, tuple[float, float, float, float]]]:
    """The characters of a sign, and the box of each."""
    f, size = font(int(3 * text_size(o.text))), text_size(o.text)
    left = o.x - f.getlength(o.text) / 6
    edge = [left + f.getlength(o.text[:i]) / 3 for i in range(len(o.text) + 1)]
    return [(CHARACTERS.index(c), (edge[i], o.y - size * 0.4, edge[i + 1], o.y + size * 0.4)) for i, c in enumerate(o.text)]


def labels(s: Scene, grid: int) -> np.ndarray:
    """What each patch of a grid x grid image shows, len(KNOWN) x grid*grid: 0 is background, -1 unknown.

    An object counts in a patch that it covers by more than 15 %. The size of a bar or a slice says whether it is the least or
    the largest one. A letter counts in a patch that it covers most of all and by a quarter; of the characters of a sign all its patches know."""
    out = np.zeros((len(KNOWN), grid * grid), np.int64)
    out[3:] = -1
    side = grid * 8
    im = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(im)
    for i, o in enumerate(s.objects):
        paint(draw, s, o, side / 64, i + 1, 0)
    cells = np.asarray(im).reshape(grid, 8, grid, 8).transpose(0, 2, 1, 3).reshape(grid * grid, 64)
    share = np.stack([(cells == i + 1).mean(1) for i in range(len(s.objects))])
    which, on = share.argmax(0), share.max(0) > 0.15
    order = sorted(s.objects, key=lambda o: o.radius)
    rank = lambda o: 1 + (o.size == "large") if o.size else -1 if s.kind == "sign" else 1 if o is order[0] else 2 if o is order[-1] else -1
    names = np.array([[KINDS.index(o.shape) + 1, list(COLORS).index(o.color) + 1, rank(o)] for o in s.objects])
    out[:3] = np.where(on, names[which].T, out[:3])
    if s.kind == "sign":
        out[3:] = np.where(on, 0, -1)
        edge = np.arange(grid) * 8
        share = lambda a, z: np.clip(np.minimum(edge + 8, z) - np.maximum(edge, a), 0, None) / 8
        most = np.full(grid * grid, 0.25)
        for i, (c, (left, top, right, bottom)) in enumerate(letters(s.objects[0])):
            part = (share(top, bottom)[:, None] * share(left, right)[None]).reshape(-1)
            out[3] = np.where(on & (part > most), c + 1, out[3])
            most = np.maximum(most, part)
            out[4 + i] = np.where(on, c + 1, -1)
    return out


def cover(o: Object, side: int) -> np.ndarray:
    """Which of side x side equal cells hold a good part of an object, as 0 and 1."""
    if o.shape in CHART_KINDS:
        im = Image.new("L", (side * 4, side * 4), 0)
        paint(ImageDraw.Draw(im), Scene("white", (o,), CHART_KINDS[o.shape]), o, side / 16, 1, 0)
        part = np.asarray(im).reshape(side, 4, side, 4).mean((1, 3))
        return (part > min(0.3, part.max() * 0.9)).astype(np.float32).reshape(-1)
    cell, reach = 64 / side, o.radius * 0.8
    edges = np.arange(side) * cell
    share = lambda at: np.clip(np.minimum(edges + cell, at + reach) - np.maximum(edges, at - reach), 0, None) / (2 * reach)
    part = share(o.y)[:, None] * share(o.x)[None, :]
    return (part > min(0.15, part.max() * 0.9)).astype(np.float32).reshape(-1)


def differ(a: Scene, b: Scene, side: int) -> np.ndarray:
    """Which of side x side equal cells look different in two scenes, as 0 and 1."""
    x, y = (render(s, side * 4).astype(np.int16) for s in (a, b))
    part = (np.abs(x - y).max(-1) > 30).reshape(side, 4, side, 4).mean((1, 3))
    return (part > 0.1).astype(np.float32).reshape(-1)


def drawn(rng: random.Random, world: World, least: int = 1, charts: float = 0.1, signs: float = 0.1) -> Scene:
    """A scene, or with these shares a chart or a sign where the world has them."""
    kind = rng.random()
    if world.level >= 4 and kind < signs:
        return sign(rng, world)
    if world.level >= 3 and kind < signs + charts:
        return chart(rng, world)
    return scene(rng, world, least)
