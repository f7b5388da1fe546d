"""Speed of PyTorch's transformers over random weights in a config.json's shape, for scripts/gpu-check.sh.

Prints "SHAPE WHAT NUMBER" lines with the names of its table: tower (images/s), prefill-N and decode-ROWS (tokens/s, rows of
300 positions). Usage: torch_speed.py SHAPE CONFIG fp32|fp16 ROWS
"""

import json
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

shape, path, precision, rows = sys.argv[1:5]
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if precision == "fp16" else torch.float32
values = json.load(open(path))
config = AutoConfig.for_model(values.pop("model_type"), **values)
torch.set_default_dtype(dtype)
with torch.device(device):
    model = AutoModelForImageTextToText.from_config(config).eval()


def seconds(run, least=2.0):
    """The mean time of run after two runs to warm up."""
    run(), run()
    if device == "cuda":
        torch.cuda.synchronize()
    n, began = 0, time.perf_counter()
    while n < 3 or time.perf_counter() - began < least:
        run()
        n += 1
        if device == "cuda":
            torch.cuda.synchronize()
    return (time.perf_counter() - began) / n


def ids(*dims):
    return torch.randint(1000, 40000, dims, device=device)


with torch.inference_mode():
    side = config.vision_config.image_size
    pixels = torch.zeros(1, 1, 3, side, side, device=device, dtype=dtype)
    pixels[..., 0] = 1  # an image of zeros counts as padding
    mask = torch.ones(1, 1, side, side, device=device, dtype=torch.bool)
    print(shape, "tower", f"{1 / seconds(lambda: model.model.get_image_features(pixels, mask)):.4g}", flush=True)
    for n in (32, 128, 256):
        prompt = ids(1, n)
        print(shape, f"prefill-{n}", f"{n / seconds(lambda: model(input_ids=prompt, logits_to_keep=1)):.4g}", flush=True)
    for n in map(int, rows.split(",")):
        past = model(input_ids=ids(n, 300), use_cache=True, logits_to_keep=1).past_key_values
        step = ids(n, 1)

        def decode():
            model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
            past.crop(300)

        print(shape, f"decode-{n}", f"{n / seconds(decode):.4g}", flush=True)
