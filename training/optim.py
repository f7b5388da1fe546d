"""Muon on the matrices inside layers, AdamW on the rest."""
from __future__ import annotations

from typing import Iterable

import torch
from torch import Tensor, nn


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: the nearest matrix to g whose singular values are all about one."""
    x = g / (g.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, decay: float = 0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(p.grad)
                u = orthogonal(p.grad + group["momentum"] * m)
                p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def optimizers(modules: dict[str, nn.Module], matrix: float, rest: float) -> list[torch.optim.Optimizer]:
    """For all that requires a gradient; each group keeps its full rate in "full", for the schedule to scale."""
    named = [(f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters() if p.requires_grad]
    is_matrix = lambda n, p: p.dim() == 2 and (".layers." in n or "modality_projection" in n)
    out = [Muon([p for n, p in named if is_matrix(n, p)], matrix),
           torch.optim.AdamW([p for n, p in named if not is_matrix(n, p)], rest, (0.9, 0.99), weight_decay=0.01)]
    for o in out:
        for g in o.param_groups:
            g["full"] = g["lr"]
    return out
