"""For tests of structured pruning: pico models with heads and layers to spare, and the way from a step to a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import Columns
from hubplugin.compress import export
from hubplugin.compress.blocks import blockwise
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.search import pruning_search
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.hub import snapshots
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.methods import obs
from hubplugin.methods.base import Compressed
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner
from hubplugin.plan.draft import Plan
from hubplugin.plan.variant_plan import VariantPlan

# 4 query heads in 2 groups, which divide hidden_size, and so do half of them
WIDE: dict[str, Any] = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = sorted(name for name in pico.BY_TYPE if families.FAMILIES[name].widths)
PER_LAYER = {"layout": "per-layer"}


def step(**keys: Any) -> dict[str, Any]:
    return {"method": "prune", **keys}


def base(folder: Path, model_type: str = "llama", **changes: Any) -> Path:
    """A pico folder in float32, so that nothing but the change itself can make a difference."""
    return pico.write(folder, model_type, **{"dtype": torch.float32, **WIDE, **changes})


def idle(folder: Path, *names: str) -> None:
    """Let linears of a base give nothing."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        tensors[f"model.layers.{name}.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def planned(folder: Path, *steps: dict[str, Any]) -> tuple[Document, Plan]:
    entries = {"model": str(folder), "calibrate": {"self": True, "samples": 8, "tokens": 48}, "variants": {"V": steps}}
    document = Document(path="m.yaml", text="", sha256="", manifest=Manifest.model_validate(entries))
    peek = snapshots.peek(str(folder), folder)
    return document, planner.make(document, peek.config, peek.tensors)


def decided(folder: Path, *steps: dict[str, Any], tokens: Tensor | None = None) -> VariantPlan:
    """The variant with its shape, measured where the steps leave it open."""
    _, made = planned(folder, *steps)
    draft = made.drafts[0]
    if draft.space is None:
        return draft.settle()
    ids = pico.tokens(8, 48) if tokens is None else tokens
    outside = made.parameters - made.linear_parameters
    goal = pruning_search.Goal(draft.space, outside, "m.yaml")
    found = pruning_search.search(model_of(folder), ids, goal)
    return draft.settle(shape=pruning_search.shape_of(found))


def model_of(folder: Path) -> Model:
    view = DenseView(folder)
    return Model(view, view.config, families.match(view.config, "x"))


def make(
    folder: Path,
    out: Path,
    variant: VariantPlan,
    tokens: Tensor | None = None,
    spill: Path | None = None,
    finished: bool = False,
) -> list[Block]:
    """Write a decided variant's folder; with `finished`, go on after the blocks that stand there."""
    out.mkdir(parents=True, exist_ok=True)
    model = model_of(folder)
    stored = {"F32": torch.float32, "BF16": torch.bfloat16}[next(iter(variant.tensors.values())).dtype]
    target, ids, made = export.Folder(out, folder, variant, model.family), tokens, []
    ids = pico.tokens(8, 48) if ids is None else ids
    for block in blockwise.blocks(
        model, blockwise.Calibration(ids, spill), variant, stored, target if finished else None
    ):
        target.add(block)
        made.append(block)
    target.finish(keep_blocks=finished)
    return made


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Compressed]]:
    """What pruning made of every consumer, in the order in which blocks run them."""
    compressed, seen = obs.compress, list[Compressed]()

    def spy(*given: Any, **named: Any) -> Compressed:
        seen.append(compressed(*given, **named))
        return seen[-1]

    with monkeypatch.context() as patched:
        patched.setattr(obs, "compress", spy)
        yield seen


def masked(folder: Path, variant: VariantPlan, done: list[Compressed]) -> Any:
    """The base in transformers, with zeros for what is gone, and what pruning made in place of what stays."""
    model = loaded(folder)
    found = iter(done)
    for index, block in enumerate(model.model.layers):
        ends = {"heads": block.self_attn.o_proj, "ffn": block.mlp.down_proj}
        own = variant.dims.at(variant.sources.index(index)) if index in variant.sources else None
        for name, linear in ends.items():
            width = own and {"heads": own.heads * own.head_dim, "ffn": own.ffn}[name]
            if not width:
                linear.weight.data.zero_()
                if linear.bias is not None:
                    linear.bias.data.zero_()
            elif width < linear.in_features:
                made = next(found)
                assert isinstance(made.encoding, Columns)
                linear.weight.data.zero_()[:, made.encoding.keep] = made.weight
    assert next(found, None) is None
    return model


def loaded(folder: Path) -> Any:
    """A folder as transformers itself loads it."""
    soft = '"attn_logit_softcapping"' in (folder / "config.json").read_text()
    kind = "eager" if soft else "sdpa"  # scaled-dot-product kernels have no soft-capping
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=kind)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(ids.long(), use_cache=False).logits


def our_logits(folder: Path, ids: Tensor) -> Tensor:
    """Of the block-streamed forward."""
    view = DenseView(folder)
    model = open_model(folder, families.match(view.config, "x"))
    return model.logits(model.hidden_states(ids))
