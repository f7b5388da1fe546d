#!/usr/bin/python3
"""Makes made/ and goldens/ from the pictures in this folder with Pillow: run `/usr/bin/python3 goldens.py` here.

made/ was made with Debian 12's python3-pil 9.4.0 (libjpeg-turbo 2.1, libwebp 1.2.4) and python3-numpy 1.24.2, goldens/
with Debian sid's python3-pil 13.0.0 (libjpeg-turbo 3.1.3, libwebp 1.6.0). Both decode alike; resample.json needs 13.
made/            small pictures that nobody publishes: odd sizes, every subsampling, orientation in every format. What
                 is there already is left as it is
decode.json      for each file its upright RGB size and SHA-256, of truncated ones the means of 8x8 blocks too; or Pillow's
                 refusal. What lies in the folder that the script may be given comes under elsewhere/
squares.json     SHA-256 of the bytes of one tile that is padded to a square, planes of red, green and blue
resample.json    SHA-256 of astronaut.png resized by each filter
"""
import hashlib, io, json, os, sys, warnings
import numpy as np
from PIL import Image, ImageOps

warnings.simplefilter("ignore")
os.makedirs("goldens", exist_ok=True)


def means(a):
    """Means of an 8x8 grid of blocks, cut at n*i//8, rounded to 1/1000."""
    h, w = a.shape[:2]
    ys = [h * i // 8 for i in range(9)]
    xs = [w * i // 8 for i in range(9)]
    return [round(float(a[ys[i]:max(ys[i + 1], ys[i] + 1), xs[j]:max(xs[j + 1], xs[j] + 1)].mean()), 3)
            for i in range(8) for j in range(8)]


def upright(path):
    im = Image.open(path)
    gray16 = im.mode.startswith("I")
    im = ImageOps.exif_transpose(im)
    if gray16:  # as convert("RGB") of Pillow 13 does; 9.4 refuses some of these modes
        return Image.fromarray(np.minimum(np.asarray(im), 255).astype(np.uint8)).convert("RGB")
    return im.convert("RGB")


def make():
    os.makedirs("made")
    photo = Image.open("photos/astronaut.png").convert("RGB")
    for w, h in [(1, 1), (2, 3), (3, 2), (5, 5), (6, 4), (17, 9), (16, 33)]:
        small = photo.resize((40, 40)).crop((10, 3, 10 + w, 3 + h))
        for i, name in enumerate(["444", "422", "420"]):
            small.save(f"made/{w}x{h}.{name}.jpg", quality=90, subsampling=i, optimize=True)
        small.save(f"made/{w}x{h}.webp", quality=80)
    hard = Image.new("RGB", (4, 4), (230, 20, 20))
    hard.paste((20, 20, 230), (2, 0, 4, 4))
    for i, name in enumerate(["444", "422", "420"]):
        hard.save(f"made/hard.{name}.jpg", quality=90, subsampling=i, optimize=True)
    small = photo.crop((180, 60, 220, 90))
    for o in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = o
        small.save(f"made/exif{o}.png", exif=exif.tobytes())
        small.save(f"made/exif{o}.webp", lossless=True, exif=exif.tobytes())
    small.save("made/rgb.bmp")
    for mode in ["1", "L", "P", "RGBA"]:
        small.convert(mode).save(f"made/{mode}.bmp")
    small.save("made/animated.webp", save_all=True, append_images=[small.rotate(180)], duration=100)
    small.save("made/animated.png", save_all=True, append_images=[small.rotate(180)], duration=100)
    small.save("made/animated.gif", save_all=True, append_images=[small.rotate(180)], duration=100)
    # A first frame of 40x30 at 7, 4 on a canvas of 50x40, with a transparent colour and without.
    for name, options in [("opaque", {}), ("transparent", {"transparency": 5})]:
        out = io.BytesIO()
        small.quantize(32).save(out, "GIF", **options)
        b = bytearray(out.getvalue())
        b[6:10] = bytes([50, 0, 40, 0])
        at = b.index(b"\x2c\0\0\0\0\x28\0\x1e\0")
        b[at + 1], b[at + 3] = 7, 4
        open(f"made/offset.{name}.gif", "wb").write(b)


def make_tiff():
    photo = Image.open("photos/astronaut.png").convert("RGB")
    small = photo.crop((180, 60, 221, 91))
    small.info.clear()  # the colour profile
    save = lambda im, name, **options: im.save(f"made/{name}.tif", **options)
    for o in range(1, 9):
        save(small.resize((20, 15)), f"exif{o}", tiffinfo={274: o})
    for mode in ["1", "L", "P", "RGBA", "RGBX", "LA", "CMYK", "YCbCr", "LAB", "F"]:
        save(small.convert("L").convert(mode) if mode == "F" else small.convert(mode), mode)
    gray16 = np.asarray(small.convert("L")).astype(np.uint16) * 250
    save(Image.fromarray(gray16), "I16")
    for name in ["lzw", "adobe_deflate", "packbits", "jpeg"]:
        save(small, name, compression="tiff_" + name if name != "packbits" else name)
        if name in ["lzw", "adobe_deflate"]:
            save(small, name + ".predicted", compression="tiff_" + name, tiffinfo={317: 2})
    for name in ["group3", "group4"]:
        save(small.convert("1"), name, compression=name)
    save(small.convert("1"), "group3.2d", compression="group3", tiffinfo={292: 1})
    # The samples of each colour on their own: Pillow writes none, so the three planes of one strip follow each other.
    out = io.BytesIO()
    small.save(out, "TIFF", tiffinfo={284: 2})
    open("made/planar.tif", "wb").write(out.getvalue())


if not os.path.isdir("made"):
    make()
if not os.path.exists("made/exif1.tif"):
    make_tiff()
golden = {}
elsewhere = sys.argv[1] if len(sys.argv) > 1 else None
for top in ["photos", "pictures", "decode", "exif", "made", elsewhere]:
    for folder, _, names in sorted(os.walk(top or "")):
        for name in sorted(names):
            path = os.path.join(folder, name)
            key = path.replace(elsewhere, "elsewhere", 1) if top == elsewhere else path
            try:
                im = upright(path)
            except Exception as e:
                golden[key] = {"refused": type(e).__name__}
                continue
            golden[key] = {"w": im.width, "h": im.height, "sha256": hashlib.sha256(im.tobytes()).hexdigest()}
            if "truncated" in name:
                golden[key]["means"] = means(np.asarray(im))
json.dump(golden, open("goldens/decode.json", "w"), indent=0)

resample = []
im = Image.open("photos/astronaut.png").convert("RGB").crop((100, 0, 401, 227))
for number in [1, 2, 3]:
    for size in [(301, 227), (301, 100), (77, 227), (64, 64), (1, 1), (640, 480), (7, 900), (333, 250),
                 (310, 100), (290, 150), (248, 120), (247, 120), (500, 226)]:  # about where the passes change places
        out = im.resize(size, number)
        resample.append({"filter": number, "w": size[0], "h": size[1], "sha256": hashlib.sha256(out.tobytes()).hexdigest()})
json.dump(resample, open("goldens/resample.json", "w"), indent=0)

# The tile that LlavaImageProcessor makes with do_pad, and LlavaOnevisionImageProcessor of each of several pictures: the
# picture between two bars of the mean's colour, then resized.
squares = []
for photo in ["photos/rocket.jpg", "pictures/cars.jpg", "exif/orientation_6.jpg", "made/17x9.444.jpg", "made/16x33.444.jpg"]:
    im = upright(photo)
    for processor, mean, side in [("llava", (0.48145466, 0.4578275, 0.40821073), 336), ("onevision", (0.5, 0.5, 0.5), 384)]:
        square = Image.new("RGB", (max(im.size),) * 2, tuple(int(x * 255) for x in mean))
        square.paste(im, ((square.width - im.width) // 2, (square.height - im.height) // 2))
        planes = np.asarray(square.resize((side, side), 3)).transpose(2, 0, 1)
        squares.append({"photo": photo, "processor": processor, "sha256": hashlib.sha256(planes.tobytes()).hexdigest()})
json.dump(squares, open("goldens/squares.json", "w"), indent=0)
