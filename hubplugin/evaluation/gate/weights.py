"""Lines of the gate about weights: finite, as planned, as compressed, and nothing of the base lost unseen.

Knows folders, plans and values of tensors. Knows no tokenizer and no engine.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from hubplugin import disk, report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.adapters import peft_folder
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.format_names import is_factor
from hubplugin.checkpoint.model_folder import Place, read_json
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError
from hubplugin.evaluation import zeros
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.manifest.methods import mask_of, recovery_of, tuning_of
from hubplugin.model.architectures import families, tied_head
from hubplugin.model.architectures.architecture import ROTARY
from hubplugin.model.block_runner import Model
from hubplugin.model.construction import heterogeneous
from hubplugin.plan import sizes
from hubplugin.plan.checks import masks
from hubplugin.report import GateLine

AS_COMPRESSED = "stored weights are the compressed ones"  # a line's name
PIECE = 2**22  # bytes of each file that are compared at once


def finite(candidate: Candidate) -> GateLine:
    """No NaN, no infinity, no scale of zero."""
    name = "finite weights"
    try:
        reader = _reader(candidate)
        for tensor in reader.headers:
            values = reader.get(tensor)
            if tensor.endswith((".scales", ".weight_scale")) and not bool(values.float().all()):
                return GateLine(name=name, passed=False, detail=f"{tensor} holds a scale of zero")
    except CheckpointError as error:
        return GateLine(name=name, passed=False, detail=f"{error.where}: {error.what}")
    return GateLine(name=name, passed=True, detail=f"{len(reader.headers)} tensors, all finite, no scale is zero")


def as_planned(candidate: Candidate) -> GateLine:
    """Exactly the tensors, shapes and dtypes that the plan promised."""
    plan = candidate.plan
    stored, planned = _reader(candidate).headers, plan.adapter.tensors if plan.adapter else plan.tensors
    wrong = [name for name in stored.keys() & planned.keys() if stored[name] != planned[name]]
    wrong += sorted(stored.keys() ^ planned.keys())
    detail = f"{len(stored)} tensors" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"
    return GateLine(name="shapes and dtypes as planned", passed=not wrong, detail=detail)


def _reader(candidate: Candidate) -> Reader:
    """What the folder itself holds."""
    return peft_folder.Adapter(candidate.folder).reader if candidate.plan.adapter else Reader(candidate.folder)


def as_compressed(candidate: Candidate) -> GateLine:
    """Dequantized or multiplied from the files, weights are bit for bit what the compressor computed with.

    Of an adapter, what its factors add to them.
    """
    samples, largest = candidate.samples, 0.0
    get = _products(candidate.folder) if candidate.plan.adapter else _weights(candidate.folder)
    for name, rows in samples.items():
        stored = get(name)[: len(rows)].float()
        largest = max(largest, float((stored - rows).abs().max()))
    passed = largest == 0.0 and bool(samples)
    detail = f"largest difference {largest:g} over {len(samples)} linears"
    return GateLine(name=AS_COMPRESSED, passed=passed, detail=detail)


def _weights(folder: Path) -> Callable[[str], Tensor]:
    view = DenseView(folder)
    return lambda name: view.get(f"{name}.weight")


def _products(folder: Path) -> Callable[[str], Tensor]:
    adapter = peft_folder.Adapter(folder)

    def product(name: str) -> Tensor:
        found = adapter.product(name)
        return torch.full((1, 1), torch.inf) if found is None else found

    return product


def parent_passed(candidate: Candidate) -> GateLine:
    """The variant that an adapter is for has passed its own gate, and its files are those that did."""
    assert candidate.plan.adapter is not None
    name = candidate.plan.adapter.parent.name
    folder = candidate.folder.parent / name
    made = report.read(folder)
    changed = disk.changed_files(folder, made.files)
    failed = [line.name for line in made.gate if not line.passed]
    detail = f"{name}: {changed[0]} is not the file that was measured" if changed else f"{name} passed its own gate"
    detail = f"{name} failed its own gate: {failed[0]}" if failed else detail
    return GateLine(name="variant that it is for", passed=not changed and made.passed, detail=detail)


def as_masked(candidate: Candidate) -> GateLine | None:
    """Every linear of the files has as many zeros as the mask asks for, in its pattern. None without a mask."""
    plan = candidate.plan
    mask = mask_of(plan.steps)
    if mask is None:
        return None
    name, variant, base, checked = "zeros as asked", DenseView(candidate.folder), Reader(candidate.base), 0
    for linear in plan.linears:
        if step := plan.mask(linear.name):
            weight, before = (source.get(f"{linear.name}.weight") for source in (variant, base))
            if fault := zeros.fault(weight, step, zeros.count(before)):
                return GateLine(name=name, passed=False, detail=f"{linear.name}: {fault}")
            checked += 1
    return GateLine(name=name, passed=checked > 0, detail=f"{masks.label(mask)} in each of {checked} linears")


def as_in_base(candidate: Candidate) -> GateLine:
    """What no step works on is the base's, bit for bit, and what is left out of its tensors is named.

    Recovery works on everything; tuning on norms.
    """
    plan = candidate.plan
    base, variant = model_folder.places(candidate.base), model_folder.places(candidate.folder)
    worked_on = {linear.name for linear in plan.linears} | ({plan.head.name} if plan.head else set())
    others = [name for name in variant if name.rpartition(".")[0] not in worked_on and not is_factor(name)]
    origins = {name: sizes.origin(plan.family, name, plan.sources) for name in others}
    wrong = [name for name in others if origins[name] not in base]
    if recovery_of(plan.steps) is None:
        kept = [name for name in others if len(variant[name].header.shape) > 1 or tuning_of(plan.steps) is None]
        wrong += [name for name in kept if name not in wrong and not _same_bytes(variant[name], base[origins[name]])]
    details = [f"{len(others)} tensors outside the linears" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"]
    return GateLine(
        name="other tensors as in the base", passed=not wrong, detail="; ".join([*details, *_left_out(candidate, base)])
    )


def _same_bytes(one: Place, other: Place) -> bool:
    """Whether two stored tensors are the same, read in pieces."""
    if one.header != other.header:
        return False
    left = one.header.bytes
    with one.file.open("rb") as file, other.file.open("rb") as other_file:
        file.seek(one.begin)
        other_file.seek(other.begin)
        while left:
            piece = file.read(min(left, PIECE))
            if not piece or piece != other_file.read(len(piece)):
                return False
            left -= len(piece)
    return True


def _left_out(candidate: Candidate, base: Mapping[str, Place]) -> list[str]:
    """Tensors of the base that no engine's forward pass reads, with what a look at their values says."""
    said = []
    head = f"{candidate.plan.family.head}.weight"
    if head in base and head not in candidate.plan.tensors and candidate.plan.head is None:
        said.append(f"{head} is left out: it equals the embedding")
    rotary = [name for name in base if name.endswith(ROTARY)]
    if rotary:
        view = DenseView(candidate.base)
        computed = Model(view, view.config, families.match(view.config, str(candidate.base))).rotary_frequencies
        other = [name for name in rotary if not _is_near(view.get(name), computed)]
        values = f"{len(other)} hold other values" if other else "they hold the same"
        said.append(f"{len(rotary)} rotary tables are left out: engines compute them from config.json, {values}")
    return said


def _is_near(stored: Tensor, computed: Tensor | None) -> bool:
    """Whether stored frequencies are the computed ones, up to rounding to 16 bits."""
    if computed is None or stored.shape != computed.shape:
        return False
    return torch.allclose(stored.float(), computed.float(), rtol=2**-7, atol=1e-6)


def ties(candidate: Candidate) -> GateLine:
    """The head is the embedding where it is in the base, by values and not by what its config.json says."""
    view, config = DenseView(candidate.folder), read_json(candidate.base / "config.json", str(candidate.base))
    declared = bool(heterogeneous.transformers_config(view.config).tie_word_embeddings)
    stored = "lm_head.weight" in view
    own_values = tied_head.has_own_values(candidate.base, config)
    separate = own_values or not tied_head.is_tied(config)
    passed = declared is not separate and stored is separate
    detail = "tied" if declared else "separate"
    if own_values:
        detail += "; the base's config.json ties a head that has values of its own"
    elif passed is False:
        detail += f"{', a head is stored' * stored}; {'separate' if separate else 'tied'} in the base"
    return GateLine(name="tied embeddings", passed=passed, detail=detail)
