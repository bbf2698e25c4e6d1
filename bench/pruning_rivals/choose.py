"""Which units go, given their scores: the same share in every layer, or the lowest of all. Knows no model.

Scores: `channels` [layers, FFN channels] and `groups` [layers, KV groups]; the lowest go. Never more than `budget`
weights are removed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning_rivals import parts
from pruning_rivals.parts import Shape


@dataclass(frozen=True)
class Kept:
    """Per layer, the indices of units that stay, in order."""

    channels: list[Tensor]
    groups: list[Tensor]


def uniform(
    shape: Shape, channels: Tensor, groups: Tensor, budget: int, heads: bool = True, spare_ends: bool = False
) -> Kept:
    """The same count in every layer that is pruned at all.

    heads       KV groups go too, the share of them that goes overall, rounded down; channels make up for the rest.
                Without it only channels go, unless there are too few of them.
    spare_ends  the first and the last layer stay whole, unless the others together are not enough.
    """
    ends = {0, shape.layers - 1} if spare_ends and shape.layers > 2 else set()
    if budget > (shape.layers - len(ends)) * shape.layer:
        ends = set()
    chosen = [layer for layer in range(shape.layers) if layer not in ends]
    each = budget // len(chosen)
    lacking = -(-max(0, each - shape.ffn * shape.channel) // shape.group)  # groups that must go for want of channels
    share = each * shape.groups // shape.layer if heads else 0
    fewer_groups = min(each // shape.group, max(lacking, share))
    fewer_channels = min(shape.ffn, (each - fewer_groups * shape.group) // shape.channel)
    kept = Kept([], [])
    for layer in range(shape.layers):
        kept.channels.append(_without(channels[layer], fewer_channels if layer in chosen else 0))
        kept.groups.append(_without(groups[layer], fewer_groups if layer in chosen else 0))
    return kept


def everywhere(shape: Shape, channels: Tensor, groups: Tensor, budget: int) -> Kept:
    """The lowest scores of all layers and of both kinds, until the next one no longer fits.

    A KV group has many times the weights of a channel: where scores are sums over weights, give `densities`.
    """
    flat = torch.cat([channels.flatten(), groups.flatten()])
    costs = torch.full_like(flat, shape.channel, dtype=torch.int64)
    costs[channels.numel() :] = shape.group
    order = flat.argsort(stable=True)
    count = int((costs[order].cumsum(0) <= budget).sum())  # a threshold on scores, as the papers put it
    stays = torch.ones(len(flat), dtype=torch.bool)
    stays[order[:count]] = False
    per_layer = stays[: channels.numel()].reshape(channels.shape), stays[channels.numel() :].reshape(groups.shape)
    return Kept([row.nonzero().flatten() for row in per_layer[0]], [row.nonzero().flatten() for row in per_layer[1]])


def densities(shape: Shape, channels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Scores per weight removed, which is what one ranking over both kinds must go by."""
    return channels / shape.channel, groups / shape.group


def _without(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(stable=True)[count:].sort().values


def cut(model: nn.Module, kept: Kept) -> None:
    """Cut a model down to what stays, nothing compensated."""
    for layer, channels, groups in zip(model.model.layers, kept.channels, kept.groups, strict=True):
        parts.cut_ffn(layer, channels)
        parts.cut_attention(layer, groups)
