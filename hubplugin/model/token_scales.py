"""How much each token counts in the statistics of an output projection: as the inverse of its residual stream's size.

What an output projection puts out is added to the residual stream, and every norm that reads it divides by the root
mean square of the token: an error there counts relative to the token's own size. Without the factor the first token of
a sequence, whose stream may be a hundred times larger than others', decides alone (docs/maths.md, Tokens of output
projections). Factors are powers of two: no product with one is rounded. Knows activations and modules; no method.
"""

from functools import cache, cached_property
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from hubplugin.kernels.instructions import panel_products
from hubplugin.kernels.second_moments import products_of
from hubplugin.model import staged_block
from hubplugin.model.activations import Batch
from hubplugin.model.architectures.families import Family, InputGroup

SIGNS = 64  # random sums of a stream's dimensions, from which its size is estimated
WIDE = 4 * SIGNS  # dimensions from which on that is less work


class TokenScales:
    """Of the tokens whose inputs of a group were captured, as a block stands."""

    def __init__(self, family: Family, block: nn.Module, input_group: InputGroup) -> None:
        self._sublayers, self._linear, self._block = family.sublayers, input_group.linears[0], block
        self.differ = family.residual and projects(family, self._linear)  # else tokens count alike

    def of(self, batch: Batch, inputs: Tensor) -> Tensor | None:
        """Factors [sequences, tokens, 1] of tokens whose inputs [sequences, tokens, inputs] were captured last.

        None where tokens count alike: for linears that are no output projections, and in families whose sublayers'
        outputs are not added as they are.
        """
        if not self.differ:
            return None
        residual = staged_block.residual(batch, self._sublayers, self._linear)
        if residual.shape[-1] < WIDE:
            stream = residual + _product(inputs, self._projection.weight)
            return inverse_size(stream if self._bias is None else stream + self._bias)
        sums = _product(residual, self._sums.signs).add_(_product(inputs, self._sums.weight))
        sums = sums if self._sums.bias is None else sums + self._sums.bias
        return inverse_size(sums.mul_(residual.shape[-1] ** -0.5))

    @cached_property
    def _projection(self) -> nn.Linear:
        return cast(nn.Linear, self._block.get_submodule(self._linear))

    @cached_property
    def _bias(self) -> Tensor | None:
        return None if self._projection.bias is None else self._projection.bias.float()

    @cached_property
    def _sums(self) -> "_RandomSums":
        weight = self._projection.weight
        signs = _signs(len(weight)).to(weight.device)
        summed = (signs @ weight.float()).to(weight.dtype)
        return _RandomSums(signs.to(weight.dtype), summed, None if self._bias is None else signs @ self._bias)


class _RandomSums(NamedTuple):
    """Sums of a stream's dimensions, each with a random sign, for its size: a whole projection is a third of a block.

    Their mean square is on average the stream's energy, and within 18 % of it (a standard deviation, sqrt(2 / SIGNS)).
    Of a stream that one dimension makes up it is just that (Achlioptas 2003, Database-friendly random projections).
    """

    signs: Tensor  # 1 and -1 [SIGNS, dimensions]
    weight: Tensor  # of the sums of a projection's outputs [SIGNS, inputs]
    bias: Tensor | None  # [SIGNS]


@cache
def _signs(dimensions: int) -> Tensor:
    """1 and -1 by chance, float32 [SIGNS, dimensions]; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, (SIGNS, dimensions), generator=generator).mul_(2).sub_(1).float()


def inverse_size(stream: Tensor) -> Tensor:
    """The powers of two [sequences, tokens, 1] next to 1 / rms of tokens [sequences, tokens, dimensions] in float32."""
    energy = stream.square().mean(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    return torch.exp2(energy.log2_().mul_(-0.5).round_())


def scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """Tokens [sequences, tokens, width] times their factors."""
    return tensor if scale is None else tensor * scale.to(tensor.dtype)


def projects(family: Family, linear: str) -> bool:
    """Whether a linear's outputs are its sublayer's."""
    return family.sublayer_of(linear).output_projection == linear


def _product(inputs: Tensor, weight: Tensor) -> Tensor:
    """inputs weight^T of [..., inputs] and [outputs, inputs], float32 [..., outputs]."""
    rows = inputs.flatten(0, -2)
    if panel_products.fits(rows, weight):
        outputs = panel_products.product(rows, weight, torch.empty(len(rows), len(weight)))
    else:
        with products_of(inputs.dtype):
            outputs = rows.float() @ weight.float().T
    return outputs.unflatten(0, inputs.shape[:-1])
