"""Writes a checkpoint as a Hugging Face Idefics3 folder, and reads such a folder's weights.

    export.py CHECKPOINT.pt FOLDER [--dtype float16] [--tokenizer FILE]
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import Config
from pack import BOS, EOS, END, IMAGE, PAD, SPECIAL

TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}"
    "{% else %}{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
DTYPES = {"F32": np.float32, "F16": np.float16}


def save_safetensors(path: Path, tensors: dict[str, Tensor], dtype: str) -> None:
    name = {"float32": "F32", "float16": "F16"}[dtype]
    header, offset, blobs = {"__metadata__": {"format": "pt"}}, 0, []
    for k in sorted(tensors):
        blob = np.ascontiguousarray(tensors[k].numpy().astype(DTYPES[name])).tobytes()
        header[k] = {"dtype": name, "shape": list(tensors[k].shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def load_folder(folder: str) -> dict[str, Tensor]:
    """A folder's weights as float32."""
    data = (Path(folder) / "model.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + n]), data[8 + n :]
    out = {}
    for k, v in header.items():
        if k != "__metadata__":
            a, z = v["data_offsets"]
            out[k] = torch.from_numpy(np.frombuffer(body[a:z], DTYPES[v["dtype"]]).astype(np.float32).reshape(v["shape"]))
    return out


def folder_config(folder: str) -> Config:
    j = json.loads((Path(folder) / "config.json").read_text())
    v, t = j["vision_config"], j["text_config"]
    return Config(v["image_size"], v["patch_size"], j["scale_factor"], v["hidden_size"], v["num_hidden_layers"], v["num_attention_heads"],
                  v["intermediate_size"], t["hidden_size"], t["num_hidden_layers"], t["num_attention_heads"], t["num_key_value_heads"],
                  t["head_dim"], t["intermediate_size"], t["vocab_size"], t["rope_theta"], t["rms_norm_eps"], v["layer_norm_eps"],
                  t["max_position_embeddings"])


def write(folder: Path, c: Config, weights: dict[str, Tensor], tokenizer: Path, dtype: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def put(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False))

    save_safetensors(folder / "model.safetensors", weights, dtype)
    ids = dict(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    put("config.json", {
        "architectures": ["Idefics3ForConditionalGeneration"], "model_type": "idefics3", "image_token_id": IMAGE, "scale_factor": c.shuffle,
        "tie_word_embeddings": True, "dtype": dtype, "torch_dtype": dtype, "use_cache": True, **ids, "vocab_size": c.vocabulary,
        "vision_config": {"model_type": "idefics3_vision", "hidden_size": c.vision_width, "intermediate_size": c.vision_mlp,
                          "num_hidden_layers": c.vision_layers, "num_attention_heads": c.vision_heads, "num_channels": 3,
                          "image_size": c.image, "patch_size": c.patch, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": c.norm_eps,
                          "attention_dropout": 0.0},
        "text_config": {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": c.width, "intermediate_size": c.mlp,
                        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
                        "hidden_act": "silu", "rms_norm_eps": c.rms_eps, "rope_theta": c.theta, "rope_scaling": None,
                        "max_position_embeddings": c.positions, "vocab_size": c.vocabulary, "tie_word_embeddings": True,
                        "attention_bias": False, "mlp_bias": False, **ids, "dtype": dtype},
    })
    put("preprocessor_config.json", {
        "image_processor_type": "Idefics3ImageProcessor", "processor_class": "Idefics3Processor", "do_convert_rgb": True, "do_resize": True,
        "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "do_image_splitting": False, "do_pad": True, "resample": 1, "size": {"longest_edge": c.image}, "max_image_size": {"longest_edge": c.image},
    })
    put("processor_config.json", {"image_seq_len": c.image_tokens, "processor_class": "Idefics3Processor"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    names = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD], "unk_token": "<unk>",
             "additional_special_tokens": ["<fake_token_around_image>", "<global-img>", "<image>"]}
    put("tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "processor_class": "Idefics3Processor", "add_prefix_space": False,
        "clean_up_tokenization_spaces": False, "model_max_length": c.positions, **names,
        "added_tokens_decoder": {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                                          "special": True} for i, t in enumerate(SPECIAL)},
    })
    put("special_tokens_map.json", names)
    put("generation_config.json", {"_from_model_config": True, "bos_token_id": BOS, "eos_token_id": [EOS, END], "pad_token_id": PAD,
                                   "do_sample": False, "max_new_tokens": 96})
    text = tokenizer.read_text()
    (folder / "tokenizer.json").write_text(text)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint")
    p.add_argument("folder", type=Path)
    p.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    p.add_argument("--tokenizer", type=Path, default=Path(__file__).parent.parent / "model/tiny-vlm/tokenizer.json")
    a = p.parse_args()
    held = torch.load(a.checkpoint, map_location="cpu", weights_only=False)
    write(a.folder, Config(**held["config"]), held["model"], a.tokenizer, a.dtype)


if __name__ == "__main__":
    main()
