"""Optimizers, the schedule of their learning rates, and the precision of products.

Knows tensors by name. Knows no model and no loss.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hubplugin.model.devices import computing_dtype

WARM_UP = 0.1  # ratio of the steps in which the rate rises
REST_RATIO = 0.3  # of the rate of matrices, for everything else
BETAS = (0.9, 0.95)  # of Adam's moments: runs are short


@dataclass(frozen=True)
class Pace:
    """How fast a training goes."""

    rate: float  # peak learning rate
    step_tokens: int = 2048  # that one step learns from
    limit: float = math.inf  # seconds of wall time


def optimizers(matrices: Mapping[str, nn.Parameter], rest: Mapping[str, nn.Parameter], rate: float) -> "Optimizers":
    """Muon for matrices [outputs, inputs] of linears, AdamW for what is no linear map of activations.

    Muon's steps are scaled to be as long as AdamW's at the same rate (arXiv 2502.16982).
    """
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        groups = [{"params": list(matrices.values()), "peak": rate}]
        parts.append(torch.optim.Muon(groups, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    if rest:
        groups = [{"params": list(rest.values()), "peak": REST_RATIO * rate}]
        parts.append(torch.optim.AdamW(groups, betas=BETAS, weight_decay=0.0))
    return Optimizers(parts)


def adam(weights: Mapping[str, nn.Parameter], rate: float) -> "Optimizers":
    """AdamW for all."""
    return Optimizers([torch.optim.AdamW([{"params": list(weights.values()), "peak": rate}], weight_decay=0.0)])


def with_rounding(
    weights: Mapping[str, nn.Parameter], rate: float, offsets: Mapping[str, nn.Parameter], step: float
) -> "Optimizers":
    """AdamW for weights; for offsets of a rounding, steps of one length, in steps of the grid."""
    adamw = torch.optim.AdamW([{"params": list(weights.values()), "peak": rate}], betas=BETAS, weight_decay=0.0)
    return Optimizers([adamw, SignDescent([{"params": list(offsets.values()), "peak": step}])])


class SignDescent(torch.optim.Optimizer):
    """Every value goes one step of the same length against its gradient, and stays within half of 1 of 0.

    Signed gradients, as AutoRound has them (arXiv 2309.05516): how far a value goes does not depend on how strong its
    output is.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of `lr`."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.sub_(group["lr"] * weight.grad.sign()).clamp_(-0.5, 0.5)


class Optimizers:
    """Several optimizers as one, whose rate follows `schedule`."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts

    def step(self, ratio: float) -> None:
        """One step at this ratio of the peak rate; gradients are set to None."""
        for optimizer in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * ratio
            optimizer.step()
            optimizer.zero_grad()

    def state(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Everything that later steps depend on, as kind|name."""
        names: dict[Tensor, str] = {weight: name for name, weight in weights.items()}
        return {
            f"{kind}|{names[weight]}": value
            for optimizer in self._parts
            for weight, state in optimizer.state.items()
            for kind, value in state.items()
        }

    def load(self, weights: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
        """Go back to what `state` returned."""
        for optimizer in self._parts:
            parameters = {weight for group in optimizer.param_groups for weight in group["params"]}
            for key, value in state.items():
                kind, name = key.split("|", 1)
                if weights[name] in parameters:
                    optimizer.state[weights[name]][kind] = value.to(weights[name].device)


def schedule(step: int, steps: int) -> float:
    """The ratio of the peak learning rate at a step: a linear rise, then half a cosine down to 0."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def fast_products(device: str, enabled: bool = True) -> AbstractContextManager[Any]:
    """Products in bfloat16 while this holds, where the device is faster at it; weights and sums stay in float32."""
    lower = computing_dtype(torch.bfloat16, device) == torch.bfloat16
    return torch.autocast(device, torch.bfloat16, enabled=enabled and lower)
