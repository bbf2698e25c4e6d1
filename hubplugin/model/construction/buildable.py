"""Whether transformers builds a config.json's model, and the model that is planned: known before any work.

Knows config.json, families and transformers' classes. Reads no weights and no file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hubplugin.errors import PlanError, one_line
from hubplugin.model import module_weights
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family
from hubplugin.model.construction import skeleton
from hubplugin.model.construction.heterogeneous import Absent

FIX = "mend it, or use the one the model was saved with"


def check(config: Mapping[str, Any], family: Family, where: str) -> None:
    """Build the model once, without weights. `where` names its config.json.

    Raises PlanError where transformers refuses, and where it builds other tensors than the plan counts with.
    """
    sizes = architecture.dimensions(config, family, where)
    with _refusals(where):
        model = skeleton.of_transformers(config, torch.float32)
        built = _shapes_of(model, family, sizes)
    _check_windows(model.config, where)
    with _refusals(where):
        finite = _attend(model, sizes)
    if not finite:
        raise PlanError(f"{where}: its rotary embedding", "gives positions that are not finite numbers", FIX)
    if bool(model.config.tie_word_embeddings) != sizes.tied:
        said = "tied" if model.config.tie_word_embeddings else "separate"
        raise PlanError(f"{where}: tie_word_embeddings", f"transformers reads it as {said}", "make it true or false")
    if sizes.tied:
        built.pop(f"{family.head}.weight")
    planned = architecture.expected(config, family, sizes)
    differing = sorted({name for name, _ in built.items() ^ planned.items()})
    if differing:
        name = differing[0]
        raise PlanError(
            f"{where}: {name}",
            f"transformers makes it {_shape(built.get(name))}, this family has {_shape(planned.get(name))}",
            "use a model of the family's usual form",
        )


@contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Whatever transformers raises as one PlanError: classes, keys and functions have errors of their own each."""
    try:
        yield
    except Exception as error:
        raise PlanError(where, f"transformers refuses this model: {_reason(error)}", FIX) from error


def _shapes_of(model: Any, family: Family, sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, by the names of checkpoints. Of blocks that are alike one is taken apart."""
    blocks = list(model.model.layers)
    prefixes = [f"{family.block.format(i=index)}." for index in range(len(blocks))]
    inside = family.block.partition("{")[0]
    shapes = {name: shape for name, shape in _state(model).items() if not name.startswith(inside)}
    by_block = [_state(block) for block in blocks]
    alike = not sizes.blocks and all(own == by_block[0] for own in by_block)
    for index, block in enumerate(blocks[:1] if alike else blocks):
        skeleton.adapt(block, family, sizes.at(index))
        by_block[index] = _state(block)
    for index, prefix in enumerate(prefixes):
        shapes |= {prefix + name: shape for name, shape in by_block[0 if alike else index].items()}
    return shapes


def _state(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@torch.inference_mode()
def _attend(model: Any, sizes: Dimensions) -> bool:
    """Run what a config.json can break beyond shapes: masks, positions, and attention over them.

    Whether the first and the last position are finite.
    """
    module_weights.fill_buffers(model, "cpu")
    trunk, blocks, hidden = model.model, list(model.model.layers), torch.zeros(1, 2, sizes.hidden)
    recorders = [skeleton.Recorder(block) for block in blocks]
    trunk.layers, trunk.norm = nn.ModuleList(recorders), nn.Identity()
    trunk(inputs_embeds=hidden, use_cache=True)  # with the cache that engines generate with
    for block, recorder in zip(blocks, recorders, strict=True):
        if not isinstance(block.self_attn, Absent):
            block.self_attn(hidden_states=hidden.to("meta"), **_on_meta(recorder.keywords))
    positions = trunk.rotary_emb(hidden, torch.tensor([[0, (sizes.context or 2) - 1]]))
    return all(bool(torch.isfinite(table).all()) for table in positions)


def _check_windows(settings: Any, where: str) -> None:
    """Windows that masks and caches understand alike."""
    window, types = getattr(settings, "sliding_window", None), getattr(settings, "layer_types", None)
    if isinstance(window, int) and window < 1:
        what = f"a window of {window} tokens shows no token, not even itself"
        raise PlanError(f"{where}: sliding_window", what, "give its size, or null for none")
    everywhere = "full_attention" if window is None else "sliding_attention"
    if types and not hasattr(type(settings), "layer_types") and set(types) != {everywhere}:
        what = f"transformers' {settings.model_type} has {everywhere} in all layers, whatever stands here"
        raise PlanError(f"{where}: layer_types", what, "use a model type whose layers may differ, or leave it out")


def _on_meta(value: Any) -> Any:
    """What a block is called with, its tensors without values."""
    if isinstance(value, dict):
        return {key: _on_meta(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_on_meta(one) for one in value)
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _reason(error: Exception) -> str:
    """An error in one line; with its class where the line is a mere word, as of a missing key."""
    line = str(error.args[0]) if isinstance(error, KeyError) and error.args else one_line(error)
    return line if " " in line else f"{type(error).__name__}: {line}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
