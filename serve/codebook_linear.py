"""vLLM's linears whose weights share values by codebooks: dense once they are loaded. Imported by vLLM alone, at need.

A checkpoint holds for each linear codes, packed along inputs into 32-bit words with the low bits first, centroids, and
a shape (hubplugin/checkpoint/formats.py writes it). What a process holds of them is looked up after loading; from then
on a linear is vLLM's own dense one, with its speed and its memory. How codes came about is not known here.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.utils import set_weight_attrs

NAME = "hubplugin_codebook"  # quant_method of config.json; published folders name it
WORD = 32  # bits
ROWS = 1024  # outputs that are looked up at a time: each code takes WORD / bits times its memory while it is


class CodebookLinear(UnquantizedLinearMethod):
    """Of one linear: loads codes and centroids in place of a weight, which is looked up once all are there."""

    def __init__(self, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size

    def create_weights(
        self,
        layer: Module,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Parameters for the outputs of this process, and for all inputs: codes of some may end inside a word."""
        outputs, groups = sum(output_partition_sizes), 1 if self.group_size == -1 else input_size // self.group_size
        codes = torch.empty(outputs, -(-input_size * self.bits // WORD), dtype=torch.int32)
        centroids = torch.empty(outputs, groups, 2**self.bits, dtype=torch.float16)
        for name, tensor in (("codebook_codes", codes), ("codebook_centroids", centroids)):
            parameter = Parameter(tensor, requires_grad=False)
            set_weight_attrs(parameter, {"output_dim": 0, **extra_weight_attrs})
            layer.register_parameter(name, parameter)
        shape = Parameter(torch.empty(2, dtype=torch.int64), requires_grad=False)
        set_weight_attrs(shape, {"weight_loader": _passed_over})  # every stack's sizes are known
        layer.register_parameter("codebook_shape", shape)
        self.inputs, self.own_inputs, self.dtype = input_size, input_size_per_partition, params_dtype

    def process_weights_after_loading(self, layer: Any) -> None:
        """The dense weight of the inputs of this process, in the model's dtype, in place of all that was loaded."""
        own, codes, centroids = self.own_inputs, layer.codebook_codes, layer.codebook_centroids
        first = layer.tp_rank * own if own < self.inputs else 0
        weight = torch.empty(len(codes), own, dtype=self.dtype, device=codes.device)
        for start in range(0, len(codes), ROWS):
            rows = slice(start, start + ROWS)
            dense = looked_up(codes[rows], centroids[rows], self.bits, self.inputs)
            weight[rows] = dense[:, first : first + own].to(weight.dtype)
        del layer.codebook_codes, layer.codebook_centroids, layer.codebook_shape
        layer.register_parameter("weight", Parameter(weight, requires_grad=False))
        super().process_weights_after_loading(layer)


def looked_up(words: Tensor, centroids: Tensor, bits: int, inputs: int) -> Tensor:
    """The weights float16 [rows, inputs] of words int32 [rows, ceil(inputs * bits / 32)] and [rows, groups, 2^bits]."""
    stream = (words[:, :, None] >> torch.arange(WORD, dtype=torch.int32, device=words.device)) & 1
    digits = stream.view(len(words), -1)[:, : inputs * bits].reshape(len(words), inputs, bits)
    codes = (digits << torch.arange(bits, dtype=torch.int32, device=words.device)).sum(dim=2)
    rows, groups, _ = centroids.shape
    return centroids.gather(2, codes.view(rows, groups, -1)).view(rows, inputs)


def _passed_over(parameter: Parameter, loaded: Tensor, *shard: Any, **named: Any) -> None:
    """Loads nothing."""


@register_quantization_config(NAME)
class CodebookConfig(QuantizationConfig):
    """quantization_config of config.json: bits, group_size, and the linears that are stored dense."""

    def __init__(self, bits: int, group_size: int, ignore: list[str]) -> None:
        super().__init__()
        self.bits, self.group_size, self.ignore = bits, group_size, ignore

    @classmethod
    def get_name(cls) -> str:  # type: ignore[override]
        return NAME

    @classmethod
    def get_supported_act_dtypes(cls) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    @classmethod
    def get_min_capability(cls) -> int:
        return -1  # none: what runs is dense

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CodebookConfig":
        return cls(int(config["bits"]), int(config["group_size"]), list(config.get("ignore") or ()))

    def get_quant_method(self, layer: Module, prefix: str) -> UnquantizedLinearMethod | None:
        """Codebooks for a linear whose parts are not ignored; vLLM asks by the name of a stack."""
        if not isinstance(layer, LinearBase):
            return None
        parent, _, last = prefix.rpartition(".")
        parts = [f"{parent}.{part}" for part in self.packed_modules_mapping.get(last, [last])]
        if any(part in self.ignore for part in parts):
            return UnquantizedLinearMethod()
        return CodebookLinear(self.bits, self.group_size)
