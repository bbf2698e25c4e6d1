"""For tests of low-rank factors: ranks of every kind in one model, and the way from a step to a folder."""

from pathlib import Path
from typing import Any

import pico
import torch

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.compress import export
from hubplugin.compress.blocks import blockwise
from hubplugin.hub import snapshots
from hubplugin.manifest import schema
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner
from hubplugin.plan.schemes import Factors
from hubplugin.plan.variant_plan import VariantPlan

FACTOR: dict[str, Any] = {"method": "lowrank", "ratio": 0.2, "rank_multiple": 4}
# of a pico model: stacks with a common A, of different ranks, and beside dense linears
MIXED = {
    "model.layers.0.self_attn.q_proj": Factors(8),
    "model.layers.0.self_attn.v_proj": Factors(4),
    "model.layers.0.self_attn.o_proj": Factors(16),
    "model.layers.0.mlp.gate_proj": Factors(12, shared=True),
    "model.layers.0.mlp.up_proj": Factors(12, shared=True),
    "model.layers.1.self_attn.q_proj": Factors(20, shared=True),
    "model.layers.1.self_attn.k_proj": Factors(20, shared=True),
    "model.layers.1.self_attn.v_proj": Factors(20, shared=True),
    "model.layers.1.mlp.up_proj": Factors(24),
    "model.layers.1.mlp.down_proj": Factors(32),
}


GPTQ: dict[str, Any] = {"method": "gptq", "group_size": 32}
# the same where factors have groups of 32 inputs, of a pico model of twice the width: beside linears that stay whole
MIXED_32 = {
    "model.layers.0.self_attn.q_proj": Factors(32),
    "model.layers.0.self_attn.o_proj": Factors(32),
    "model.layers.0.mlp.gate_proj": Factors(64, shared=True),
    "model.layers.0.mlp.up_proj": Factors(64, shared=True),
    "model.layers.1.self_attn.q_proj": Factors(32, shared=True),
    "model.layers.1.self_attn.k_proj": Factors(32, shared=True),
    "model.layers.1.self_attn.v_proj": Factors(32, shared=True),
    "model.layers.1.mlp.gate_proj": Factors(32),
    "model.layers.1.mlp.up_proj": Factors(64),
    "model.layers.1.mlp.down_proj": Factors(64),
}


def settled(
    folder: Path, factors: dict[str, Factors] | None = None, *, then: tuple[dict[str, Any], ...] = (), **changes: Any
) -> VariantPlan:
    """A variant of these ranks, or of those that are found; and the steps `then`."""
    entries = {"model": str(folder), "calibrate": {"self": True, "samples": 8, "sequence_length": 48}}
    manifest = schema.Manifest.model_validate({**entries, "variants": {"V": [{**FACTOR, **changes}, *then]}})
    peek = snapshots.peek(str(folder), folder)
    document = schema.Document(path="m.yaml", text="", sha256="", manifest=manifest)
    made = planner.make(document, peek.config, peek.tensors).drafts[0]
    return made.settle(factors=factors) if factors else made.estimate


def make(folder: Path, out: Path, variant: VariantPlan, stop: int | None = None) -> None:
    """Write a variant's folder, or so many blocks of it; go on after the blocks that stand there."""
    out.mkdir(exist_ok=True)
    view = DenseView(folder)
    model = Model(view, view.config, families.match(view.config, "here"))
    target = export.Folder(out, folder, variant, model.family)
    stored = {"F32": torch.float32, "BF16": torch.bfloat16}[next(iter(variant.tensors.values())).dtype]
    calibration = blockwise.Calibration(pico.tokens(8, 48))
    for number, block in enumerate(blockwise.blocks(model, calibration, variant, stored, target)):
        target.add(block)
        if stop is not None and number + 1 == stop:
            return
    target.finish()


def layer_of(kind: str, **fields: Any) -> Any:
    """One of vLLM's layers as far as a method for its weights sees it, without the processes that it would share."""
    from torch import nn
    from vllm.model_executor.layers import linear

    made = object.__new__(getattr(linear, kind))
    nn.Module.__init__(made)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
