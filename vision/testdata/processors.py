"""The arithmetic of transformers 5.12.1's image processors, Pillow backend, up to the bytes that are then normalised.

goldens.py holds each against the SHA-256 that transformers itself gave, so that the bytes may stand for transformers'.
Needs Pillow 13: earlier ones pass over rows and columns in another order.
"""
import hashlib, math
import numpy as np
from PIL import Image

LANCZOS, BILINEAR, BICUBIC = 1, 2, 3


def planar(*tiles):
    """[tiles, 3, height, width]"""
    return np.stack([np.asarray(t).transpose(2, 0, 1) for t in tiles])


def cut(im, side):
    return [im.crop((x, y, x + side, y + side)) for y in range(0, im.height, side) for x in range(0, im.width, side)]


def idefics3(im, split):
    w, h = im.size
    if w >= h:
        w, h = 2048, int(2048 / (w / h))
        h += h % 2
    else:
        w, h = int(2048 * (w / h)), 2048
        w += w % 2
    im = im.resize((w, h), LANCZOS)
    if not split:
        return planar(im.resize((512, 512), LANCZOS))
    aspect = w / h
    if w >= h:
        w = math.ceil(w / 512) * 512
        h = math.ceil(int(w / aspect) / 512) * 512
    else:
        h = math.ceil(h / 512) * 512
        w = math.ceil(int(h * aspect) / 512) * 512
    im = im.resize((w, h), LANCZOS)
    return planar(*cut(im, 512), im.resize((512, 512), LANCZOS))


def clip(im):
    w, h = im.size
    w, h = (336 * w // h, 336) if w > h else (336, 336 * h // w)
    x, y = (w - 336) // 2, (h - 336) // 2
    return planar(im.resize((w, h), BICUBIC).crop((x, y, x + 336, y + 336)))


def onevision(im):
    w, h = im.size

    def kept_and_wasted(grid):
        rows, cols = grid
        scale = min(384 * cols / w, 384 * rows / h)
        kept = min(int(w * scale) * int(h * scale), w * h)
        return kept, kept - 384 * rows * 384 * cols

    rows, cols = max([(r, c) for r in range(1, 7) for c in range(1, 7)], key=kept_and_wasted)
    width, height = 384 * cols, 384 * rows
    if width / w < height / h:
        size = width, min(math.ceil(h * (width / w)), height)
    else:
        size = min(math.ceil(w * (height / h)), width), height
    canvas = Image.new("RGB", (width, height))
    canvas.paste(im.resize(size, BICUBIC), ((width - size[0]) // 2, (height - size[1]) // 2))
    return planar(im.resize((384, 384), BICUBIC), *cut(canvas, 384))


def qwen2vl_size(w, h, least=56 * 56, most=28 * 28 * 1280):
    out = [round(n / 28) * 28 for n in (w, h)]
    if out[0] * out[1] > most:
        shrink = math.sqrt(w * h / most)
        out = [max(28, math.floor(n / shrink / 28) * 28) for n in (w, h)]
    elif out[0] * out[1] < least:
        grow = math.sqrt(least / (w * h))
        out = [math.ceil(n * grow / 28) * 28 for n in (w, h)]
    return tuple(out)


def qwen2vl(im):
    w, h = qwen2vl_size(*im.size)
    a = planar(im.resize((w, h), BICUBIC)).reshape(3, h // 28, 2, 14, w // 28, 2, 14)
    return a.transpose(1, 4, 2, 5, 0, 3, 6).reshape(-1, 3, 14, 14)


HALF = [0.5] * 3, [0.5] * 3
OPENAI = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROCESSORS = {
    "idefics3_512_lanczos": (lambda im: idefics3(im, True), HALF),
    "idefics3_nosplit": (lambda im: idefics3(im, False), HALF),
    "vit_224_bilinear": (lambda im: planar(im.resize((224, 224), BILINEAR)), HALF),
    "siglip_384_bicubic": (lambda im: planar(im.resize((384, 384), BICUBIC)), HALF),
    "clip_336_crop": (clip, OPENAI),
    "llava_onevision_384": (onevision, HALF),
    "qwen2vl_default": (qwen2vl, OPENAI),
}


def pixels(name, im):
    return np.ascontiguousarray(PROCESSORS[name][0](im))


def values_sha256(name, a):
    """SHA-256 of pixel_values, float32."""
    mean, std = (np.array(v, np.float32)[:, None, None] for v in PROCESSORS[name][1])
    v = ((a * (1 / 255)).astype(np.float32) - mean) / std
    if name == "qwen2vl_default":  # two equal frames
        v = np.repeat(v[:, :, None], 2, axis=2)
    return hashlib.sha256(np.ascontiguousarray(v).tobytes()).hexdigest()
