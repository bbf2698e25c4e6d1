"""Large float32 products on a CPU, into memory that is there already: what the head of a model does to many positions.

Logits of a few hundred positions take 100 MB. Asked of the system for each product, their pages cost a fifth of it.
And torch's library for products, MKL, is slow on processors of other makers: on a Zen 3 of two cores NumPy's OpenBLAS
takes 0.37 s for 341 x 576 x 49,152, torch 0.53 s, with new memory 0.65 s. Knows matrices; no model.
"""

from functools import cache

import numpy as np
import torch
from llvmlite import binding
from torch import Tensor, nn

from hubplugin.kernels.instructions import panel_products
from hubplugin.kernels.second_moments import half_precision, products_of


class Head(nn.Linear):
    """A linear whose outputs go to float32 `out` [rows, outputs], where that is set and the product is taken here."""

    out: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs [..., outputs] of inputs [..., inputs]."""
        rows = inputs.flatten(0, -2)
        if self.out is None or self.bias is not None or not fits(rows, self.weight):
            return super().forward(inputs)
        return product(rows, self.weight, self.out).unflatten(0, inputs.shape[:-1])


def fits(rows: Tensor, weight: Tensor) -> bool:
    """Whether `product` takes rows [rows, inputs] and a weight [outputs, inputs]."""
    plain = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in (rows, weight))
    return plain or panel_products.fits(rows, weight)


def product(rows: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """rows weight^T of [rows, inputs] and [outputs, inputs], written to float32 out [rows, outputs]; all on the CPU."""
    if panel_products.fits(rows, weight):
        return panel_products.product(rows, weight, out)
    if _is_zen():
        np.matmul(rows.numpy(), weight.numpy().T, out=out.numpy())
        return out
    return torch.mm(rows, weight.T, out=out)


def rough(rows: Tensor, weight: Tensor) -> Tensor:
    """rows weight^T of [rows, inputs] and [outputs, inputs], in their dtype; of float32 good to three digits.

    Float32 is rounded to bfloat16 where that is faster.
    """
    if panel_products.fits(rows, weight):
        out = torch.empty(len(rows), len(weight), dtype=rows.dtype)
        return panel_products.product(rows.bfloat16(), weight.bfloat16(), out)
    with products_of(half_precision(rows)):
        return rows @ weight.T


@cache
def _is_zen() -> bool:
    return binding.get_host_cpu_name().startswith("znver")
