"""The transformers modules of a block while it is compressed: reads their weights and puts new ones in their place.

Knows modules, names and sizes; no method, no statistics and no file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family, Sublayer, Width
from hubplugin.model.construction import heterogeneous


@dataclass(frozen=True)
class BlockModules:
    """One block, filled with the base's weights; those of linears are replaced one input group after another."""

    module: nn.Module
    base: nn.Module  # the block as the base has it; `module` itself where nothing is compared with the base
    family: Family
    base_sizes: Dimensions
    sizes: Dimensions  # of the block once it is pruned

    @property
    def linears(self) -> tuple[str, ...]:
        """Paths inside the block of the linears that the pruned block has."""
        return tuple(architecture.linear_shapes(self.family, self.sizes))

    @property
    def sublayers(self) -> tuple[Sublayer, ...]:
        """The sublayers that the pruned block has."""
        absent = architecture.absent(self.family, self.sizes)
        return tuple(sublayer for sublayer in self.family.sublayers if sublayer not in absent)

    def remove_sublayers(self) -> None:
        """Let the sublayers that the pruned block lacks add nothing."""
        for sublayer in architecture.absent(self.family, self.sizes):
            heterogeneous.remove(self.module, sublayer)

    def linear(self, name: str) -> nn.Linear:
        """A linear by its path inside the block."""
        return cast(nn.Linear, self.module.get_submodule(name))

    def stacked_weight(self, names: tuple[str, ...]) -> Tensor:
        """The weights of linears, stacked by rows: float32 [outputs, inputs]."""
        return torch.cat([self.linear(name).weight for name in names]).float()

    def rows(self, names: tuple[str, ...]) -> list[slice]:
        """Where the outputs of each linear lie in the stack of them all."""
        slices, first = [], 0
        for name in names:
            slices.append(slice(first, first := first + self.linear(name).out_features))
        return slices

    def set_weights(self, names: tuple[str, ...], weight: Tensor) -> None:
        """Give linears the rows of a stacked weight [outputs, inputs], in the dtype the model computes in."""
        for name, rows in zip(names, self.rows(names), strict=True):
            linear = self.linear(name)
            _set_weight(linear, weight[rows].to(linear.weight.dtype))

    def add_zero_biases(self, names: tuple[str, ...]) -> None:
        """Give those of these linears that the block has, and that have no bias, one of zeros."""
        for name in set(names) & set(self.linears):
            linear = self.linear(name)
            if linear.bias is None:
                _set_bias(linear, torch.zeros(linear.out_features, device=linear.weight.device))

    def add_to_biases(self, names: tuple[str, ...], change: Tensor, stored: torch.dtype) -> None:
        """Add to the biases of linears, stacked as [outputs], and round them to the dtype they are stored in."""
        for name, rows in zip(names, self.rows(names), strict=True):
            linear = self.linear(name)
            assert linear.bias is not None
            _set_bias(linear, (linear.bias.float() + change[rows]).to(stored))

    def keep_outputs(self, width: Width, kept: Tensor) -> dict[str, Tensor]:
        """Drop the outputs of a width's producers that nobody reads where its consumer keeps the columns `kept`.

        By producer, the rows int64 that stay.
        """
        rows_by_producer = heterogeneous.kept_rows(width, self.base_sizes, kept)
        for name, rows in rows_by_producer.items():
            linear = self.linear(name)
            _set_weight(linear, linear.weight[rows])
            if linear.bias is not None:
                _set_bias(linear, linear.bias[rows])
        heterogeneous.share_heads(self.module, self.family, self.sizes)
        return rows_by_producer

    def load(self, dense: Mapping[str, Tensor]) -> None:
        """Give the block the weights and biases it was finished with, by their names inside the block."""
        for name in self.linears:
            linear = self.linear(name)
            _set_weight(linear, dense[f"{name}.weight"].to(linear.weight))
            if f"{name}.bias" in dense:
                _set_bias(linear, dense[f"{name}.bias"].to(linear.weight.device))
        heterogeneous.share_heads(self.module, self.family, self.sizes)


def _set_weight(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape


def _set_bias(linear: nn.Linear, bias: Tensor) -> None:
    linear.bias = nn.Parameter(bias.to(linear.weight.dtype), requires_grad=False)
