"""Sums over tokens on a CPU that multiplies bfloat16: the lower triangle of X^T X, which is half a product; and Y^T X.

Nothing is lost that a float32 product of the same bfloat16 numbers would keep; whether that holds on this machine is
tried out before. Knows no method and no model.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from hubplugin.kernels.instructions import panel_products, tiles
from hubplugin.kernels.instructions.packed_tokens import PackedTokens
from hubplugin.kernels.instructions.panels import Panels
from hubplugin.kernels.instructions.tiles import Tiles


def kind(x: Tensor) -> type[PackedTokens] | None:
    """How activations [..., features] are packed here; None: their products are not taken here."""
    plain = x.dtype == torch.bfloat16 and x.device.type == "cpu"
    return next((each for each in kinds() if x.shape[-1] % each.PANEL == 0), None) if plain else None


@cache
def kinds() -> tuple[type[PackedTokens], ...]:
    """What this CPU has instructions for, and adds up as exactly as float32 products do. Tried out once."""
    present: dict[type[PackedTokens], Callable[[], bool]] = {Tiles: tiles.there, Panels: panel_products.works}
    return tuple(each for each, there in present.items() if there() and _exact(each))


def _exact(packed: type[PackedTokens]) -> bool:
    x = torch.randn(512, 2 * packed.PANEL, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = torch.zeros(x.shape[1], x.shape[1])
    add_lower(found, packed().fill(x))
    return lossless(found, x)


def add_lower(total: Tensor, x: PackedTokens) -> None:
    """total += x^T x on and below the diagonal; total [features, features] float32, contiguous.

    Above the diagonal some sums are complete, others are not: read nothing there.
    """
    _add(total, x, x, lower=True)


def add_product(total: Tensor, left: PackedTokens, right: PackedTokens) -> None:
    """total += left^T right, of one kind and as many tokens each; total float32, contiguous."""
    _add(total, left, right, lower=False)


def _add(total: Tensor, left: PackedTokens, right: PackedTokens, lower: bool) -> None:
    shape = left.features[0], right.features[1]
    if total.shape != shape or total.dtype != torch.float32 or not total.is_contiguous():
        raise ValueError(f"need a contiguous float32 {list(shape)} to add to, not {total.dtype} {list(total.shape)}")
    if right.tokens != left.tokens:
        raise ValueError("both sides need as many tokens")
    right.add(left, total.numpy(), lower)


def lossless(found: Tensor, x: Tensor) -> bool:
    """Whether x^T x as found, read on and below the diagonal, is as exact as float32's own; x bfloat16."""
    exact = x.double().T @ x.double()
    plain = float((x.float().T @ x.float() - exact).abs().max())
    return float((found - exact).tril().abs().max()) <= max(2 * plain, 1e-6 * float(exact.diagonal().max()))
