"""One compressed block as it will be stored, put together once all of its input groups are final.

Knows encodings, samples and results; no method, no statistics and no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import Coded, CodedFactors, Dense, Encoding, LowRank
from hubplugin.compress.blocks.block_modules import BlockModules
from hubplugin.report import LinearResult

SAMPLE_ROWS = 8  # of every linear, kept in float32 so that the gate can compare what was stored


@dataclass
class Block:
    """One finished block: every linear's encoding, what is stored dense, and a sample of what the method made."""

    index: int
    prefix: str
    source: str  # the prefix of the block of the base that it comes from
    weights: dict[str, Tensor] = field(default_factory=dict)  # dense [outputs, inputs] by full module name
    encodings: dict[str, Encoding] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)  # float32 [SAMPLE_ROWS, inputs] by full module name
    results: list[LinearResult] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Quantized:
    """A quantized or factored linear before it is known which of its outputs later linears read."""

    coded: Coded | LowRank | CodedFactors
    sample: Tensor  # float32 [SAMPLE_ROWS, inputs]


@dataclass(frozen=True)
class AppliedGroup:
    """What was done to one input group; its modules have their new weights already."""

    results: tuple[LinearResult, ...]
    quantized: dict[str, Quantized] = field(default_factory=dict)  # by path inside the block
    kept_outputs: dict[str, Tensor] = field(default_factory=dict)  # by producer: rows int64 that this group reads


def sample(weight: Tensor) -> Tensor:
    """The first rows of weight [outputs, inputs], a copy in float32."""
    return weight[:SAMPLE_ROWS].to("cpu", torch.float32, copy=True)


def finished(block: Block, modules: BlockModules, groups: Sequence[AppliedGroup]) -> Block:
    """`block` filled with what became of its input groups: codes of the outputs that are read, all else dense."""
    kept_outputs = {name: rows for group in groups for name, rows in group.kept_outputs.items()}
    quantized = {name: linear for group in groups for name, linear in group.quantized.items()}
    for name, linear in quantized.items():
        final = _on_rows(linear, kept_outputs[name]) if name in kept_outputs else linear
        full = f"{block.prefix}.{name}"
        block.encodings[full], block.samples[full] = final.coded, final.sample
    for name in modules.linears:
        module, full = modules.linear(name), f"{block.prefix}.{name}"
        if name not in quantized:
            block.encodings[full] = Dense()
            block.weights[full] = module.weight.detach()
            block.samples[full] = sample(module.weight)
        if module.bias is not None:
            block.biases[full] = module.bias.detach()
    block.results.extend(result for group in groups for result in group.results)
    return block


def _on_rows(linear: Quantized, rows: Tensor) -> Quantized:
    """The codes of some outputs, and a sample of what those stand for."""
    coded = linear.coded.rows(rows)
    return Quantized(coded, sample(coded.rows(slice(SAMPLE_ROWS)).dense()))
