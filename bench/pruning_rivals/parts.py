"""The units that can leave a Llama, how they are cut out, and what is left: counts of weights.

A unit is an FFN channel (a row of gate and of up, a column of down) or a KV group (a key head, a value head, the query
heads that read them, and their columns of o). Knows no score.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """Stands in for a sub-block of which nothing is left but, perhaps, a bias."""

    def __init__(self, bias: Tensor | None = None, pair: bool = False) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.pair = pair  # attention returns (output, weights)

    def forward(self, hidden_states: Tensor, **keywords: Any) -> Any:
        out = torch.zeros_like(hidden_states) if self.bias is None else self.bias.expand_as(hidden_states)
        return (out, None) if self.pair else out


@dataclass(frozen=True)
class Shape:
    """Of a dense Llama, and the weights that one unit holds."""

    hidden: int
    ffn: int
    layers: int
    groups: int  # KV heads of a layer
    queries: int  # query heads of a KV group
    head: int  # its width

    @classmethod
    def of(cls, model: nn.Module) -> "Shape":
        config = model.config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        layers, head = config.num_hidden_layers, config.head_dim
        return cls(config.hidden_size, config.intermediate_size, layers, groups, heads // groups, head)

    @property
    def channel(self) -> int:
        """Weights of an FFN channel."""
        return 3 * self.hidden

    @property
    def group(self) -> int:
        """Weights of a KV group: query and output rows, key and value rows."""
        return 2 * self.hidden * self.head * (self.queries + 1)

    @property
    def layer(self) -> int:
        """Weights of all linears of a layer."""
        return self.ffn * self.channel + self.groups * self.group

    @property
    def all(self) -> int:
        """Weights of all linears of all layers."""
        return self.layers * self.layer


def query_rows(attention: nn.Module, groups: Tensor) -> Tensor:
    """Rows of q (and columns of o) that belong to KV groups."""
    width = attention.head_dim * attention.num_key_value_groups
    return (groups[:, None] * width + torch.arange(width)).flatten()


def key_rows(attention: nn.Module, groups: Tensor) -> Tensor:
    """Rows of k and of v that belong to KV groups."""
    return (groups[:, None] * attention.head_dim + torch.arange(attention.head_dim)).flatten()


def cut_ffn(layer: nn.Module, keep: Tensor, bias: Tensor | None = None) -> None:
    """Leave these channels; the bias, where there is one, is added to the output."""
    if len(keep) == 0:
        layer.mlp = Constant(bias)
        return
    mlp = layer.mlp
    mlp.gate_proj, mlp.up_proj = _linear(mlp.gate_proj.weight[keep]), _linear(mlp.up_proj.weight[keep])
    mlp.down_proj = _linear(mlp.down_proj.weight[:, keep], bias)


def cut_attention(layer: nn.Module, keep: Tensor, bias: Tensor | None = None) -> None:
    """Leave these KV groups."""
    if len(keep) == 0:
        layer.self_attn = Constant(bias, pair=True)
        return
    attention = layer.self_attn
    queries, keys = query_rows(attention, keep), key_rows(attention, keep)
    attention.q_proj = _linear(attention.q_proj.weight[queries])
    attention.k_proj = _linear(attention.k_proj.weight[keys])
    attention.v_proj = _linear(attention.v_proj.weight[keys])
    attention.o_proj = _linear(attention.o_proj.weight[:, queries], bias)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made


def linears(model: nn.Module) -> Iterator[nn.Linear]:
    """The linears inside the blocks that are still there."""
    return (module for module in model.model.layers.modules() if isinstance(module, nn.Linear))


def same_shapes(model: nn.Module) -> bool:
    """Whether all layers that are left have the same linears, as a plain Llama's config.json must have it."""
    named = (layer.named_parameters() for layer in model.model.layers)
    shapes = [{name: each.shape for name, each in layer if "_proj" in name} for layer in named]
    left = [each for each in shapes if each]
    return all(each == left[0] for each in left)


def linear_parameters(model: nn.Module) -> int:
    """Weights of the linears inside the blocks, biases not counted."""
    return sum(linear.weight.numel() for linear in linears(model))


def added_parameters(model: nn.Module) -> int:
    """Whatever else stands in the blocks and is no norm: biases, rotations."""
    named = model.model.layers.named_parameters()
    return sum(each.numel() for name, each in named if "norm" not in name) - linear_parameters(model)


def parameters(model: nn.Module) -> int:
    """All of the model's, tied ones once."""
    return sum(each.numel() for each in model.parameters())
