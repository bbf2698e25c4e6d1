"""vLLM's linears where some projections are two factors of codes, W = B A. Imported by vLLM alone, at need.

Each matrix is a linear of vLLM's own, with vLLM's own compressed-tensors method: A of all factored projections of a
layer, B of each, or of all where A is shared, and those that are whole. They are no modules of the model: its loader
finds parameters of the checkpoint's names in the layer, which pass on what they are given. Under tensor parallelism
each process has the part of the codes that `low_rank` would give it of floats. How codes came about is not known here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, MergedColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.utils import set_weight_attrs

from serve.projections import Projection, place

Load = Callable[..., None]
WHOLE, FACTOR_A, FACTOR_B = "", "lr_a", "lr_b"  # what stands between a layer and the name of a parameter


@dataclass(frozen=True)
class Linears:
    """What a layer multiplies by; each is a linear whose parts are projections."""

    low: Any  # A of all factored projections
    whole: Any | None  # all that are no factors
    high: tuple[Any | None, ...]  # B by projection, None of a whole one; one for all where A is shared

    def __iter__(self) -> Iterator[Any]:
        return (one for one in (self.low, self.whole, *self.high) if one is not None)


class CodedFactorsMethod(LinearMethodBase):
    """A layer of projections, some of which are two factors, all of codes."""

    def __init__(self, projections: list[Projection], shared: bool, codes: QuantizationConfig) -> None:
        self.projections, self.shared, self.codes = projections, shared, codes

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **others: Any,
    ) -> None:
        """The linears of the layer, and a parameter for every name that the checkpoint may have below it."""
        if len(output_partition_sizes) != len(self.projections):
            raise ValueError(f"a layer of {len(output_partition_sizes)} parts, {len(self.projections)} are configured")

        def linear(name: str, inputs: int, parts: list[int]) -> Any:
            return MergedColumnParallelLinear(
                inputs,
                parts,
                bias=False,
                params_dtype=params_dtype,
                quant_config=self.codes,
                prefix=f"{layer.prefix}.{name}",
                disable_tp=True,
            )

        pairs = list(zip(self.projections, output_partition_sizes, strict=True))
        whole = [(one, outputs) for one, outputs in pairs if not one.rank]
        ranks = [one.rank for one in self.projections if one.rank]
        if self.shared:
            high: tuple[Any | None, ...] = (linear(FACTOR_B, ranks[0], output_partition_sizes),)
        else:
            high = tuple(linear(FACTOR_B, one.rank, [outputs]) if one.rank else None for one, outputs in pairs)
        layer.cf_outputs = list(output_partition_sizes)
        layer.cf_linears = Linears(
            low=linear(FACTOR_A, input_size_per_partition, ranks[:1] if self.shared else ranks),
            whole=linear("whole", input_size_per_partition, [outputs for _, outputs in whole]) if whole else None,
            high=high,
        )
        layer.cf_missing = set()
        self._make_room(layer, self._places(layer.cf_linears))

    def _places(self, linears: Linears) -> dict[tuple[str, Any], tuple[Any, int]]:
        """By what stands between layer and name, and by the id of a projection: the linear, and its part there."""
        factored = [one for one in self.projections if one.rank]
        whole = [one for one in self.projections if not one.rank]
        found: dict[tuple[str, Any], tuple[Any, int]] = {
            (WHOLE, one.shard): (linears.whole, part) for part, one in enumerate(whole)
        }
        if self.shared:
            found[FACTOR_A, None] = (linears.low, 0)
            return found | {(FACTOR_B, one.shard): (linears.high[0], part) for part, one in enumerate(factored)}
        found |= {(FACTOR_A, one.shard): (linears.low, part) for part, one in enumerate(factored)}
        high = zip(self.projections, linears.high, strict=True)
        return found | {(FACTOR_B, one.shard): (linear, 0) for one, linear in high if linear is not None}

    def _make_room(self, layer: Any, places: dict[tuple[str, Any], tuple[Any, int]]) -> None:
        """Parameters that hold nothing and hand what is loaded to the linears."""
        for between in dict.fromkeys(between for between, _ in places):
            holder = layer
            if between != WHOLE:
                holder = nn.Module()
                layer.add_module(between, holder)
            own = {shard: place for (other, shard), place in places.items() if other == between}
            for name, _ in next(iter(own.values()))[0].named_parameters():
                layer.cf_missing |= {(between, name, shard) for shard in own}
                parameter = nn.Parameter(torch.empty(0), requires_grad=False)
                holder.register_parameter(name, parameter)
                set_weight_attrs(parameter, {"weight_loader": _handing_on(layer, between, name, own)})

    def process_weights_after_loading(self, layer: Any) -> None:
        """Have vLLM prepare every linear. Raises ValueError where the checkpoint lacks something."""
        if layer.cf_missing:
            names = sorted(f"{between} {name} of {shard}".strip() for between, name, shard in layer.cf_missing)
            raise ValueError(f"weights were not initialized from checkpoint: {layer.prefix}: {', '.join(names)}")
        for linear in layer.cf_linears:
            linear.quant_method.process_weights_after_loading(linear)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        linears: Linears = layer.cf_linears
        low = _multiplied(linears.low, x)
        if self.shared:
            out = _multiplied(linears.high[0], low)
        else:
            out = torch.cat(self._parts(layer.cf_outputs, linears, x, low), dim=-1)
        return out if bias is None else out + bias

    def _parts(self, sizes: list[int], linears: Linears, x: Tensor, low: Tensor) -> list[Tensor]:
        """The outputs of every projection, so many of each, of x [..., inputs] and A x [..., ranks of all]."""
        whole = None if linears.whole is None else _multiplied(linears.whole, x)
        parts, rank, row = [], 0, 0
        for one, outputs, high in zip(self.projections, sizes, linears.high, strict=True):
            if high is not None:
                parts.append(_multiplied(high, low[..., rank : rank + one.rank].contiguous()))
                rank += one.rank
            elif whole is not None:
                parts.append(whole[..., row : row + outputs])
                row += outputs
        return parts


def _multiplied(linear: Any, x: Tensor) -> Tensor:
    """By vLLM's kernel for the codes of a linear."""
    out: Tensor = linear.quant_method.apply(linear, x, None)
    return out


def _handing_on(layer: Any, between: str, name: str, places: dict[Any, tuple[Any, int]]) -> Load:
    def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
        """Put a tensor of the checkpoint into the linear that a projection is part of."""
        if shard not in places:
            raise ValueError(f"size mismatch: {layer.prefix} has no {between} of {shard} by its ranks in config.json")
        linear, part = places[shard]
        own = getattr(linear, name)
        try:
            own.weight_loader(own, _own(layer, between, shard, loaded), part)
        except (AssertionError, RuntimeError) as error:
            what = f"{between} {name} of {shard} is {list(loaded.shape)}".strip()
            raise ValueError(f"size mismatch: {layer.prefix}: {what}") from error
        layer.cf_missing.discard((between, name, shard))

    return load


def _own(layer: Any, between: str, shard: Any, loaded: Tensor) -> Tensor:
    """This process's part of codes, scales or zeros [outputs, inputs or groups], packed along either.

    Raises RuntimeError where they are no whole parts.
    """
    if loaded.dim() < 2:  # weight_shape
        return loaded
    if isinstance(layer, RowParallelLinear):
        dim, (number, parts) = 1, (layer.tp_rank, layer.tp_size)
        whole = between == FACTOR_B or loaded.shape[1] == 1  # one scale for all inputs
    else:
        dim, (number, parts) = 0, place(layer, shard)
        whole = between == FACTOR_A
    if whole or parts == 1:
        return loaded
    size, rest = divmod(loaded.shape[dim], parts)
    if rest:
        raise RuntimeError(f"{loaded.shape[dim]} are no {parts} equal parts")
    return loaded.narrow(dim, number * size, size)
