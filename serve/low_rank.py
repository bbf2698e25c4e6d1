"""vLLM's linears where some projections are two factors, W = B A, and others dense. Imported by vLLM alone, at need.

config.json's `quantization_config` names the rank of every projection that is factored, and those that read the A of
their stack. A layer is loaded into three parameters: `weight` of its dense projections, one below the other, `lr_a` of
all factored ones, and `lr_b`, whose parts have as many columns as their rank and so lie flat. Then each matrix is
multiplied as vLLM multiplies a plain linear. Under tensor parallelism outputs are split where vLLM splits a layer's
outputs (A is whole on every rank), and inputs where it splits inputs (B is whole, and vLLM sums what ranks give). Where
`quantization_config` says `codes`, in compressed-tensors' words, layers have codes as these say: those without factors
by vLLM's own method, others by `coded_factors`. How ranks were chosen is not known here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig, QuantizeMethodBase
from vllm.model_executor.utils import set_weight_attrs

from serve.coded_factors import CodedFactorsMethod
from serve.codes import LOW_RANK
from serve.projections import STACKS, Projection, place

Load = Callable[[nn.Parameter, Tensor, Any], None]


@dataclass(frozen=True)
class Matrices:
    """What a loaded layer multiplies by; each a module with `weight` [outputs, inputs], as vLLM has prepared it."""

    low: nn.Module  # A of all factored projections
    dense: nn.Module | None  # of all dense ones
    high: tuple[nn.Module | None, ...]  # B by projection, None of a dense one; one for all where A is shared


class LowRankConfig(QuantizationConfig):
    """Which linears are factors, of which rank."""

    def __init__(self, ranks: dict[str, int], shared: list[str], codes: QuantizationConfig | None = None) -> None:
        super().__init__()
        self.ranks, self.shared, self.codes = ranks, frozenset(shared), codes

    @classmethod
    def get_name(cls) -> Any:
        return LOW_RANK

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LowRankConfig":
        codes = config.get("codes")
        coding = get_quantization_config(codes["quant_method"]).from_config(codes) if codes else None
        return cls(dict(config["ranks"]), list(config.get("shared", ())), coding)

    def get_quant_method(self, layer: Any, prefix: str) -> QuantizeMethodBase | None:
        """Factors where a projection of the layer has some, else a plain linear or one of codes; None for what is no
        linear."""
        if not isinstance(layer, LinearBase):
            return None
        codes: Any = self.codes
        if codes is not None:
            codes.packed_modules_mapping = self.packed_modules_mapping  # vLLM gives it to its model's configuration
        parent, _, short = prefix.rpartition(".")
        stack: dict[str, Any] = STACKS.get(short, {})
        parts = {f"{parent}.{name}": shard for name, shard in stack.items()} or {prefix: None}
        projections = [Projection(shard, self.ranks.get(name, 0)) for name, shard in parts.items()]
        if not any(one.rank for one in projections):
            return UnquantizedLinearMethod() if codes is None else codes.get_quant_method(layer, prefix)
        shared = self.shared >= parts.keys()
        if codes is not None and codes.get_scheme(layer, prefix) is not None:
            return CodedFactorsMethod(projections, shared, codes)
        return LowRankMethod(projections, shared)


class LowRankMethod(LinearMethodBase):
    """A layer of projections, some of which are two factors."""

    def __init__(self, projections: list[Projection], shared: bool) -> None:
        self.projections, self.shared = projections, shared
        self._plain = UnquantizedLinearMethod()

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
        """Room for `weight` [dense outputs, inputs], `lr_a` [ranks, inputs] and `lr_b` [sum of outputs * rank]."""
        if len(output_partition_sizes) != len(self.projections):
            raise ValueError(f"a layer of {len(output_partition_sizes)} parts, {len(self.projections)} are configured")
        layer.lr_outputs = list(output_partition_sizes)
        layer.lr_missing = {*self._names()}
        ranks = [one.rank for one in self.projections]
        pairs = list(zip(output_partition_sizes, ranks, strict=True))
        shapes = {
            "weight": (sum(size for size, rank in pairs if not rank), input_size_per_partition),
            "lr_a": (ranks[0] if self.shared else sum(ranks), input_size_per_partition),
            "lr_b": (sum(size * rank for size, rank in pairs),),
        }
        for name, shape in shapes.items():
            parameter = nn.Parameter(torch.empty(shape, dtype=params_dtype), requires_grad=False)
            layer.register_parameter(name, parameter)
            set_weight_attrs(parameter, {"weight_loader": self._loader(layer, name)})

    def _names(self) -> list[tuple[str, Any]]:
        """What a checkpoint must give: the parameter, and the id of the projection; None for a common A."""
        found: list[tuple[str, Any]] = [("weight", one.shard) for one in self.projections if not one.rank]
        found += [("lr_b", one.shard) for one in self.projections if one.rank]
        return found + (
            [("lr_a", None)] if self.shared else [("lr_a", one.shard) for one in self.projections if one.rank]
        )

    def _loader(self, layer: Any, name: str) -> Load:
        def load(parameter: nn.Parameter, loaded: Tensor, shard: Any = None) -> None:
            """Put a tensor of the checkpoint, or this rank's part of it, where it belongs."""
            if (name, shard) not in layer.lr_missing:
                raise ValueError(f"size mismatch: {layer.prefix} has no {name} of {shard} by its ranks in config.json")
            room, part = parameter.data[self._place(layer, name, shard)], self._own(layer, name, shard, loaded)
            if room.numel() != part.numel() or room.shape[1:] not in (part.shape[1:], ()):
                raise ValueError(f"size mismatch: {layer.prefix}: {name} of {shard} is {list(loaded.shape)}")
            room.view(part.shape).copy_(part)
            layer.lr_missing.discard((name, shard))

        return load

    def _place(self, layer: Any, name: str, shard: Any) -> slice:
        """Where a projection lies in a parameter."""
        if name == "lr_a" and self.shared:
            return slice(None)
        first = 0
        for one, outputs in zip(self.projections, layer.lr_outputs, strict=True):
            size = {"weight": 0 if one.rank else outputs, "lr_a": one.rank, "lr_b": one.rank * outputs}[name]
            if one.shard == shard:
                return slice(first, first + size)
            first += size
        raise ValueError(f"{layer.prefix} has no part {shard}")

    def _own(self, layer: Any, name: str, shard: Any, loaded: Tensor) -> Tensor:
        """This rank's part of a tensor of the checkpoint: of inputs in a row-parallel layer, of outputs in others."""
        if isinstance(layer, RowParallelLinear):
            inputs = layer.input_size_per_partition
            return loaded if name == "lr_b" else loaded.narrow(1, layer.tp_rank * inputs, inputs)
        if name == "lr_a":
            return loaded
        outputs = layer.lr_outputs[[one.shard for one in self.projections].index(shard)]
        number, _ = place(layer, shard)
        return loaded.narrow(0, number * outputs, outputs)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Hand every matrix to vLLM's method for plain linears. Raises ValueError where the checkpoint lacks something:
        memory that was never filled is no weight."""
        if layer.lr_missing:
            missing = ", ".join(f"{name} of {shard}" if shard is not None else name for name, shard in layer.lr_missing)
            raise ValueError(f"weights were not initialized from checkpoint: {layer.prefix}: {missing}")
        pairs = [(one.rank, size) for one, size in zip(self.projections, layer.lr_outputs, strict=True)]
        if self.shared:  # every B has as many columns, so together they are one matrix
            pairs = [(pairs[0][0], sum(layer.lr_outputs))]
        parts = layer.lr_b.data.split([rank * outputs for rank, outputs in pairs])
        layer.lr_matrices = Matrices(
            low=self._matrix(layer.lr_a.data),
            dense=self._matrix(layer.weight.data) if len(layer.weight) else None,
            high=tuple(
                self._matrix(part.view(outputs, rank)) if rank else None
                for part, (rank, outputs) in zip(parts, pairs, strict=True)
            ),
        )
        for name in ("weight", "lr_a", "lr_b"):  # the matrices have them; `weight` still says where the layer is
            getattr(layer, name).data = getattr(layer, name).data.new_empty(0)

    def _matrix(self, weight: Tensor) -> nn.Module:
        """A weight [outputs, inputs] as vLLM prepares it for this machine."""
        matrix = nn.Module()
        matrix.weight = nn.Parameter(weight, requires_grad=False)
        self._plain.process_weights_after_loading(matrix)
        return matrix

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        matrices: Matrices = layer.lr_matrices
        low = self._plain.apply(matrices.low, x)
        if len(matrices.high) == 1 and matrices.high[0] is not None:
            out = self._plain.apply(matrices.high[0], low)
        else:
            out = torch.cat(self._parts(layer.lr_outputs, matrices, x, low), dim=-1)
        return out if bias is None else out + bias

    def _parts(self, sizes: list[int], matrices: Matrices, x: Tensor, low: Tensor) -> list[Tensor]:
        """The outputs of every projection, so many of each, of x [..., inputs] and A x [..., ranks of all]."""
        dense = None if matrices.dense is None else self._plain.apply(matrices.dense, x)
        parts, rank, row = [], 0, 0
        for one, outputs, high in zip(self.projections, sizes, matrices.high, strict=True):
            if high is not None:
                parts.append(self._plain.apply(high, low[..., rank : rank + one.rank].contiguous()))
                rank += one.rank
            elif dense is not None:
                parts.append(dense[..., row : row + outputs])
                row += outputs
        return parts
