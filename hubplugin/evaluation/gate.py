"""The gate: what must hold of a finished folder before it is published.

Every line is checked, so that one run shows all that is wrong. Knows folders, plans and measured numbers. Whether an
engine generates is asked of a function of the candidate: this file starts no process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.model_folder import companions
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError, ServeError
from hubplugin.evaluation import metrics, zeros
from hubplugin.evaluation.generation import Generate, logprobs, served_dtype
from hubplugin.manifest.methods import mask_of
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.model import heterogeneous
from hubplugin.plan.checks import masks
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Evaluation, GateLine

QUALITY, AS_COMPRESSED = "quality", "stored weights are the compressed ones"  # names of lines
PROMPT_TOKENS = 16
NEW_TOKENS = 8
LOGPROB_TOLERANCE = 0.1  # nats, mean over generated tokens: half-precision kernels against float32
NOISE_TOLERANCE = 3  # times what half precision alone does to our own forward, where a model amplifies rounding more


@dataclass(frozen=True)
class Candidate:
    """A finished folder and what it is held against."""

    folder: Path
    base: Path  # the base's folder
    plan: VariantPlan
    samples: Mapping[str, Tensor]  # by linear: the first rows of its dense weight [rows, inputs] when it was compressed
    evaluation: Evaluation | None  # None: the manifest asks for none
    thresholds: Thresholds
    generate: Generate
    prompts: list[list[int]]  # token ids that an engine continues


def finite(candidate: Candidate) -> GateLine:
    """No NaN, no infinity, no scale of zero."""
    name = "finite weights"
    try:
        reader = Reader(candidate.folder)
        for tensor in reader.headers:
            values = reader.get(tensor)
            if tensor.endswith((".scales", ".weight_scale")) and not bool(values.all()):
                return GateLine(name=name, passed=False, detail=f"{tensor} holds a scale of zero")
    except CheckpointError as error:
        return GateLine(name=name, passed=False, detail=f"{error.where}: {error.what}")
    return GateLine(name=name, passed=True, detail=f"{len(reader.headers)} tensors, all finite, no scale is zero")


def as_planned(candidate: Candidate) -> GateLine:
    """Exactly the tensors, shapes and dtypes that the plan promised."""
    stored, planned = Reader(candidate.folder).headers, candidate.plan.tensors
    wrong = [name for name in stored.keys() & planned.keys() if stored[name] != planned[name]]
    wrong += sorted(stored.keys() ^ planned.keys())
    detail = f"{len(stored)} tensors" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"
    return GateLine(name="shapes and dtypes as planned", passed=not wrong, detail=detail)


def as_compressed(candidate: Candidate) -> GateLine:
    """Dequantized from the files, weights are bit for bit what the compressor computed with."""
    view, samples = DenseView(candidate.folder), candidate.samples
    largest = 0.0
    for name, rows in samples.items():
        stored = view.get(f"{name}.weight")[: len(rows)].float()
        largest = max(largest, float((stored - rows).abs().max()))
    passed = largest == 0.0 and bool(samples)
    detail = f"largest difference {largest:g} over {len(samples)} linears"
    return GateLine(name=AS_COMPRESSED, passed=passed, detail=detail)


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


def companions_equal(candidate: Candidate) -> GateLine:
    """Tokenizer, chat template, generation config and licence files are the base's, byte for byte."""
    files = companions(candidate.base)
    copies = [(file, candidate.folder / file.name) for file in files]
    changed = [file.name for file, copy in copies if not copy.is_file() or copy.read_bytes() != file.read_bytes()]
    detail = f"{len(files)} files equal" if not changed else f"differs: {', '.join(changed)}"
    return GateLine(name="tokenizer and chat template", passed=not changed and bool(files), detail=detail)


def ties(candidate: Candidate) -> GateLine:
    """Tied embeddings are stored once and declared tied, untied ones are not tied by accident."""
    view = DenseView(candidate.folder)
    declared = bool(heterogeneous.transformers_config(view.config).tie_word_embeddings)
    planned = not any(name.startswith("lm_head.") for name in candidate.plan.tensors)
    stored_once = "lm_head.weight" not in view
    passed = declared == planned == stored_once
    return GateLine(name="tied embeddings", passed=passed, detail="tied" if declared else "separate")


def quality(candidate: Candidate) -> GateLine:
    """The measured numbers keep the manifest's thresholds."""
    return judge(candidate.evaluation, candidate.thresholds)


def judge(evaluation: Evaluation | None, thresholds: Thresholds) -> GateLine:
    """The line on quality, from numbers alone."""
    limits = thresholds.limits()
    if not limits:
        return GateLine(name=QUALITY, passed=True, detail="the manifest sets no threshold")
    if evaluation is None:
        return GateLine(name=QUALITY, passed=False, detail="the manifest sets a threshold but nothing was measured")
    passed, details = True, []
    for metric in metrics.QUALITY:
        if metric.key in limits:
            value, limit = metric.value(evaluation.variant, evaluation.base), limits[metric.key]
            passed &= GATE_KEYS[metric.key].holds(value, limit)
            details.append(f"{metric.label} {'not measured' if value is None else f'{value:.4f}'}, allowed {limit:g}")
    return GateLine(name=QUALITY, passed=passed, detail="; ".join(details))


def generation(candidate: Candidate) -> GateLine:
    """An engine loads the folder, generates, and gives its tokens the probabilities our own forward gives them."""
    name, folder, family, prompts = "generation", candidate.folder, candidate.plan.family, candidate.prompts
    try:
        generated = candidate.generate(folder, prompts, NEW_TOKENS, candidate.plan.verdicts)
    except ServeError as error:
        return GateLine(name=name, passed=False, detail=f"{error.what} ({error.fix})")
    if not all(generated.token_ids):
        return GateLine(name=name, passed=False, detail=f"{generated.engine} generated nothing")
    exact = logprobs(folder, family, prompts, generated.token_ids)
    half = logprobs(folder, family, prompts, generated.token_ids, served_dtype(folder))
    noise = float((half - exact).abs().mean())
    served = torch.tensor([value for row in generated.logprobs for value in row])
    difference = float((exact - served).abs().mean())
    allowed = max(LOGPROB_TOLERANCE, NOISE_TOLERANCE * noise)
    detail = (
        f"{generated.engine}: {len(served)} tokens, their log-probabilities differ from float32 by {difference:.4f} "
        f"nats on average, allowed {allowed:.2g} (half precision alone: {noise:.4f})"
    )
    return GateLine(name=name, passed=difference <= allowed, detail=detail)


# a line is None where it does not concern the variant
LINES: tuple[Callable[[Candidate], GateLine | None], ...] = (
    finite,
    as_planned,
    as_compressed,
    as_masked,
    companions_equal,
    ties,
    quality,
    generation,
)


def check(candidate: Candidate) -> tuple[GateLine, ...]:
    """All lines that concern the candidate, whether they passed or not."""
    return tuple(line for check_line in LINES if (line := check_line(candidate)) is not None)


def check_again(candidate: Candidate, before: Sequence[GateLine]) -> tuple[GateLine, ...]:
    """All lines of a folder whose weights stay. That they are the compressed ones is known from when they were made."""
    kept = tuple(line for line in before if line.name == AS_COMPRESSED)
    checks = (check_line for check_line in LINES if check_line is not as_compressed)
    return kept + tuple(line for check_line in checks if (line := check_line(candidate)) is not None)
