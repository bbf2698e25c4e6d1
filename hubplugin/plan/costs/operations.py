"""Floating-point operations of a model's forward pass, counted from its shapes; a multiply-add is two.

Counts matrix products alone (docs/maths.md, Speed): linears, the output head, and those of attention. Of experts, those
that a token goes to. Of two factors, both products. Zeros and codes change nothing. Knows shapes; no weights and no
machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hubplugin.checkpoint.headers import Header
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes

ATTENTION = "self_attn."  # how paths of its linears begin inside a block


@dataclass(frozen=True)
class Operations:
    """FLOPs of one token, and what attention adds."""

    attention: int  # of its linears
    ffn: int  # of its linears, the router among them
    head: int  # of the output head, for tokens that another one is predicted from
    context: int  # of attention's products, for each token that a token looks at, itself included

    @property
    def per_token(self) -> int:
        """Of a token that another one is predicted from, without attention's products."""
        return self.attention + self.ffn + self.head

    def per_request(self, prompt: int, output: int) -> int:
        """Of so many prompt tokens and so many generated ones, the last of which is not read any more."""
        tokens = prompt + output - 1
        return tokens * (self.attention + self.ffn) + output * self.head + self.context * tokens * (tokens + 1) // 2


def of(
    family: Family, dims: Dimensions, config: Mapping[str, Any], tensors: Mapping[str, Header] | None = None
) -> Operations:
    """Of a model of these sizes, every layer of which looks at all tokens before it.

    `tensors` are those of its folder: where factors are among them, they count in place of their linears.
    """
    attention = ffn = 0.0
    factors: dict[str, tuple[int, ...]] = {}
    for layer in range(dims.layers):
        for name, (outputs, inputs) in architecture.linear_shapes(family, dims.at(layer)).items():
            full = f"{family.block.format(i=layer)}.{name}"
            if own := sizes.factors_in(tensors or {}, full, (outputs, inputs)):
                factors |= own  # a shared A is one matrix
                continue
            flops = 2 * outputs * inputs * family.input_group_of(name).token_ratio
            attention += flops * name.startswith(ATTENTION)
            ffn += flops * (not name.startswith(ATTENTION))
    for name, (rows, columns) in factors.items():
        attention += 2 * rows * columns * (f".{ATTENTION}" in name)
        ffn += 2 * rows * columns * (f".{ATTENTION}" not in name)
    router = 2 * dims.experts * dims.hidden * dims.layers
    scores = sum(4 * block.heads * dims.head_dim for block in dims.shapes())  # queries with keys, weights with values
    return Operations(round(attention), round(ffn) + router, 2 * dims.vocab * dims.hidden, scores)
