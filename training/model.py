"""Idefics3 / SmolVLM in plain PyTorch: the parameter names are those of Hugging Face's Idefics3ForConditionalGeneration."""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    image: int = 64
    patch: int = 8
    shuffle: int = 2  # the pixel shuffle's factor
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    vision_mlp: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 384
    vocabulary: int = 768
    theta: float = 10000.0
    rms_eps: float = 1e-5
    norm_eps: float = 1e-6
    positions: int = 512

    @property
    def grid(self) -> int:
        return self.image // self.patch

    @property
    def image_tokens(self) -> int:
        return (self.grid // self.shuffle) ** 2


class VisionAttention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        d = c.vision_width
        self.heads = c.vision_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        split = lambda t: t.view(b, n, self.heads, -1).transpose(1, 2)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        a = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3), -1)
        return self.out_proj((a @ v).transpose(1, 2).reshape(b, n, d))


class VisionMLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.vision_width, c.vision_mlp), nn.Linear(c.vision_mlp, c.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn, self.mlp = VisionAttention(c), VisionMLP(c)
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(c.vision_width, c.norm_eps) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, c.vision_width, c.patch, c.patch)
        self.position_embedding = nn.Embedding(c.grid**2, c.vision_width)

    def forward(self, pixels: Tensor) -> Tensor:
        b, ch, h, w = pixels.shape
        k = self.patch_embedding.weight
        p = k.shape[-1]
        patches = pixels.view(b, ch, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, ch * p * p)
        return F.linear(patches, k.flatten(1), self.patch_embedding.bias) + self.position_embedding.weight


class Encoder(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.vision_layers))


class Vision(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embeddings, self.encoder = VisionEmbeddings(c), Encoder(c)
        self.post_layernorm = nn.LayerNorm(c.vision_width, c.norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings(pixels)
        for layer in self.encoder.layers:
            x = layer(x)
        return self.post_layernorm(x)


class Projection(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.proj = nn.Linear(c.vision_width * c.shuffle**2, c.width, bias=False)


class Connector(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.shuffle = c.shuffle
        self.modality_projection = Projection(c)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        g, r = int(n**0.5), self.shuffle
        x = x.view(b, g // r, r, g // r, r * d).transpose(2, 3).reshape(b, n // r**2, r * r * d)
        return self.modality_projection.proj(x)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c.heads, c.kv_heads, c.head_dim
        self.q_proj = nn.Linear(c.width, c.heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.width, c.kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.width, bias=False)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of tokens in any leading shape: ... x heads x head_dim, q and k turned by position."""
        split = lambda t: t.view(*t.shape[:-1], -1, self.head_dim)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return q * cos + turned(q) * sin, k * cos + turned(k) * sin, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor]) -> tuple[Tensor, Tensor]:
        """b x tokens x heads x head_dim each, the mask b x queries x keys and additive. Also where the heads looked, as
        b x kv_heads x heads of each x queries x keys."""
        b, n = q.shape[:2]
        group = self.heads // self.kv_heads  # consecutive query heads share one of k and v
        q = (q * self.head_dim**-0.5).view(b, n, self.kv_heads, group, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        a = (q @ k.transpose(2, 3)).view(b, self.kv_heads, group, n, -1)
        if mask is not None:
            a = a + mask[:, None, None]
        a = torch.softmax(a, -1)
        o = (a.flatten(2, 3) @ v).view(b, self.kv_heads, group, n, -1).permute(0, 3, 1, 2, 4)
        return o.reshape(b, n, -1), a


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.gate_proj = nn.Linear(c.width, c.mlp, bias=False)
        self.up_proj = nn.Linear(c.width, c.mlp, bias=False)
        self.down_proj = nn.Linear(c.mlp, c.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm = RMSNorm(c.width, c.rms_eps)
        self.post_attention_layernorm = RMSNorm(c.width, c.rms_eps)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class Text(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocabulary, c.width)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.width, c.rms_eps)
        turn = torch.outer(torch.arange(c.positions).float(),
                           1 / c.theta ** (torch.arange(0, c.head_dim, 2).float() / c.head_dim))
        turn = torch.cat((turn, turn), -1)
        self.register_buffer("cos", turn.cos(), persistent=False)
        self.register_buffer("sin", turn.sin(), persistent=False)

    def step(self, x: Tensor, start: int, cache: list) -> Tensor:
        """b x n token embeddings at positions start.. after what the cache holds, which grows by them."""
        n = x.shape[1]
        cos, sin = self.cos[start : start + n], self.sin[start : start + n]
        mask = torch.full((1, n, start + n), -1e9, device=x.device).triu(start + 1) if n > 1 else None
        for i, layer in enumerate(self.layers):
            q, k, v = layer.self_attn.qkv(layer.input_layernorm(x), cos, sin)
            if len(cache) > i:
                k, v = torch.cat((cache[i][0], k), 1), torch.cat((cache[i][1], v), 1)
                cache[i] = (k, v)
            else:
                cache.append((k, v))
            x = layer.finish(x, layer.self_attn.attend(q, k, v, mask)[0])
        return self.norm(x)

    def packed(self, prefix: Tensor, slots: Tensor, positions: Tensor, mask: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The training pass: b prefixes of p tokens, each with its slots (b x k x t) of conversations.

        A slot's tokens see the prefix and each other as mask (b*k x t x p+t) says. Returns of each layer the slots'
        hidden states (b*k*t x width), the last ones normalised, and where its heads looked (b*k x kv_heads x heads of
        each x t x p+t)."""
        b, p, d = prefix.shape
        k, t = slots.shape[1:3]
        x = torch.cat((prefix.reshape(-1, d), slots.reshape(-1, d)))
        at = torch.cat((torch.arange(p, device=x.device).repeat(b), positions.reshape(-1)))
        cos, sin = self.cos[at], self.sin[at]
        causal = torch.full((1, p, p), -1e9, device=x.device).triu(1)
        out, looked = [], []
        for layer in self.layers:
            a = layer.self_attn
            qkv = a.qkv(layer.input_layernorm(x), cos, sin)
            (qp, kp, vp), (qs, ks, vs) = zip(*((z[: b * p].unflatten(0, (b, p)), z[b * p :].unflatten(0, (b * k, t))) for z in qkv))
            spread = lambda z: z[:, None].expand(b, k, *z.shape[1:]).reshape(b * k, *z.shape[1:])
            of_prefix, _ = a.attend(qp, kp, vp, causal)
            of_slots, where = a.attend(qs, torch.cat((spread(kp), ks), 1), torch.cat((spread(vp), vs), 1), mask)
            x = layer.finish(x, torch.cat((of_prefix.flatten(0, 1), of_slots.flatten(0, 1))))
            out.append(x[b * p :])
            looked.append(where)
        out[-1] = self.norm(out[-1])
        return out, looked


class Inner(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.vision_model, self.connector, self.text_model = Vision(c), Connector(c), Text(c)


class VLM(nn.Module):
    def __init__(self, c: Config, seed: int = 0):
        super().__init__()
        self.config = c
        self.model = Inner(c)
        self._initialise(seed)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for name, p in self.named_parameters():
            depth = self.config.vision_layers if "vision" in name else self.config.layers
            if "embed_tokens" in name:
                p.normal_(0, 0.04, generator=g)
            elif "position_embedding" in name:
                p.copy_(grid_waves(self.config.grid, p.shape[1]))
            elif p.dim() >= 2:
                last = name.endswith(("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight"))
                p.normal_(0, 0.7 * p[0].numel() ** -0.5 * ((2 * depth) ** -0.5 if last else 1), generator=g)
            elif name.endswith("bias"):
                p.zero_()

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Starts the patch embedding at the principal components of real patches, all at one scale.

        Edges then weigh as much as flat colour from the first step on."""
        e = self.model.vision_model.embeddings
        k = e.patch_embedding.weight
        p = k.shape[-1]
        x = F.unfold(pixels_of(images), p, stride=p).transpose(1, 2).flatten(0, 1).double()[:60000]
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        n = min(len(k), len(values))
        w = torch.zeros(len(k), x.shape[1], dtype=torch.double)
        w[:n] = (vectors.flip(1)[:, :n] / (values.flip(0)[:n] + 2e-3).sqrt()).T * 0.6
        w = torch.linalg.qr(torch.randn(len(k), len(k), generator=torch.Generator().manual_seed(2)).double())[0] @ w
        k.copy_(w.view_as(k))
        e.patch_embedding.bias.copy_(-w @ mean)

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The tower's output for images (n x h x w x 3 bytes), and the image tokens made of it."""
        v = self.model.vision_model(pixels_of(images))
        return v, self.model.connector(v)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.text_model.embed_tokens.weight)

    @torch.no_grad()
    def generate(self, ids: Tensor, images: Optional[Tensor], image_token: int, stops: set[int], most: int = 96) -> list[list[int]]:
        """Greedy answers, end token included, to prompts of one length (b x n); images in the order of their tokens."""
        text = self.model.text_model
        x = text.embed_tokens(ids)
        if images is not None:
            f = self.see(images)[1]
            x[ids == image_token] = f.flatten(0, 1)
        cache: list = []
        out: list[list[int]] = [[] for _ in range(len(ids))]
        start, live = 0, set(range(len(ids)))
        while live and len(out[min(live)]) < most:
            h = text.step(x, start, cache)
            start += x.shape[1]
            best = self.logits(h[:, -1]).argmax(-1)
            for i, token in enumerate(best.tolist()):
                if i in live:
                    out[i].append(token)
                    if token in stops:
                        live.discard(i)
            x = text.embed_tokens(best[:, None])
        return out


def pixels_of(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def grid_waves(grid: int, width: int) -> Tensor:
    """Sines and cosines of a patch's row and column, as a start for the learned table."""
    q = width // 4
    speed = 30.0 ** -(torch.arange(q) / q)
    y, x = torch.meshgrid(torch.arange(grid).float(), torch.arange(grid).float(), indexing="ij")
    return 0.5 * torch.cat([f(v.reshape(-1, 1) * speed) for v in (y, x) for f in (torch.sin, torch.cos)], 1)


def warm_start(model: VLM, weights: dict[str, Tensor]) -> list[str]:
    """Takes over the weights that fit, the position table resampled to another grid. Returns the names left as they were."""
    own, left = model.state_dict(), []
    for name, p in own.items():
        w = weights.get(name)
        if w is not None and "position_embedding" in name and w.shape != p.shape and w.shape[1] == p.shape[1]:
            g = int(len(w) ** 0.5)
            w = F.interpolate(w.T.reshape(1, -1, g, g), size=model.config.grid, mode="bicubic", align_corners=True)[0].flatten(1).T
        if w is None or w.shape != p.shape:
            left.append(name)
        else:
            own[name] = w.float()
    model.load_state_dict(own)
    return left
