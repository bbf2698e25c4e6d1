"""What must hold before anything is published. Every line is checked, so that one run shows all that is wrong.

Works on the finished folder, the base's folder and the plan. Whether vLLM generates is asked of a function that the
pipeline passes in: this file starts no process.
"""

from pathlib import Path

import torch
from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.model_folder import companions
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError, GateError, ServeError
from hubplugin.evaluation import metrics, zeros
from hubplugin.evaluation.generation import Generate, logprobs, served_dtype
from hubplugin.manifest.methods import mask_of
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.model import heterogeneous
from hubplugin.model.families import Family
from hubplugin.plan import masks
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Evaluation, GateLine, Report

PROMPT_TOKENS = 16
NEW_TOKENS = 8
LOGPROB_TOLERANCE = 0.1  # nats, mean over generated tokens: half-precision kernels against float32
NOISE_TOLERANCE = 3  # times what half precision alone does to our own forward, where a model amplifies rounding more


def check(
    folder: Path,
    base: Path,
    plan: VariantPlan,
    family: Family,
    samples: dict[str, Tensor],
    evaluation: Evaluation | None,
    thresholds: Thresholds,
    generate: Generate,
    prompts: list[list[int]],
) -> tuple[GateLine, ...]:
    """All lines. `samples` holds the first rows of dense weights as the compressor saw them, by linear."""
    return (
        finite(folder),
        as_planned(folder, plan),
        as_compressed(folder, samples),
        *([as_masked(folder, base, plan)] if mask_of(plan.steps) else []),
        companions_equal(folder, base),
        ties(folder, plan),
        quality(evaluation, thresholds),
        generation(folder, plan, family, generate, prompts),
    )


def finite(folder: Path) -> GateLine:
    """No NaN, no infinity, no scale of zero."""
    name = "finite weights"
    try:
        reader = Reader(folder)
        for tensor in reader.headers:
            values = reader.get(tensor)
            if tensor.endswith((".scales", ".weight_scale")) and not bool(values.all()):
                return GateLine(name=name, passed=False, detail=f"{tensor} holds a scale of zero")
    except CheckpointError as error:
        return GateLine(name=name, passed=False, detail=f"{error.where}: {error.what}")
    return GateLine(name=name, passed=True, detail=f"{len(reader.headers)} tensors, all finite, no scale is zero")


def as_planned(folder: Path, plan: VariantPlan) -> GateLine:
    """Exactly the tensors, shapes and dtypes that the plan promised."""
    found = Reader(folder).headers
    wrong = [name for name in found.keys() & plan.tensors.keys() if found[name] != plan.tensors[name]]
    wrong += sorted(found.keys() ^ plan.tensors.keys())
    detail = f"{len(found)} tensors" if not wrong else f"{len(wrong)} differ, first {wrong[0]}"
    return GateLine(name="shapes and dtypes as planned", passed=not wrong, detail=detail)


def as_compressed(folder: Path, samples: dict[str, Tensor]) -> GateLine:
    """Dequantized from the files, weights are bit for bit what the compressor computed with."""
    view = DenseView(folder)
    worst = 0.0
    for name, rows in samples.items():
        stored = view.get(f"{name}.weight")[: len(rows)].float()
        worst = max(worst, float((stored - rows).abs().max()))
    detail = f"largest difference {worst:g} over {len(samples)} linears"
    return GateLine(name="stored weights are the compressed ones", passed=worst == 0.0 and bool(samples), detail=detail)


def as_masked(folder: Path, base: Path, plan: VariantPlan) -> GateLine:
    """In every linear of the files as many zeros as were asked for, in the pattern that was asked for."""
    name, view, whole, seen = "zeros as asked", DenseView(folder), Reader(base), 0
    for linear in plan.linears:
        if step := plan.mask(linear.name):
            weight, before = (source.get(f"{linear.name}.weight") for source in (view, whole))
            if fault := zeros.fault(weight, step, zeros.count(before)):
                return GateLine(name=name, passed=False, detail=f"{linear.name}: {fault}")
            seen += 1
    asked = mask_of(plan.steps)
    detail = f"{masks.label(asked)} in each of {seen} linears" if asked else "none"
    return GateLine(name=name, passed=seen > 0, detail=detail)


def companions_equal(folder: Path, base: Path) -> GateLine:
    """Tokenizer, chat template, generation config and licence files are the base's, byte for byte."""
    files = companions(base)
    changed = [
        file.name
        for file in files
        if not (folder / file.name).is_file() or (folder / file.name).read_bytes() != file.read_bytes()
    ]
    detail = f"{len(files)} files equal" if not changed else f"differs: {', '.join(changed)}"
    return GateLine(name="tokenizer and chat template", passed=not changed and bool(files), detail=detail)


def ties(folder: Path, plan: VariantPlan) -> GateLine:
    """Tied embeddings are stored once and declared tied, untied ones are not tied by accident."""
    view = DenseView(folder)
    declared = bool(heterogeneous.transformers_config(view.config).tie_word_embeddings)
    planned = not any(name.startswith("lm_head.") for name in plan.tensors)
    stored_once = "lm_head.weight" not in view
    passed = declared == planned == stored_once
    return GateLine(name="tied embeddings", passed=passed, detail="tied" if declared else "separate")


def quality(evaluation: Evaluation | None, thresholds: Thresholds) -> GateLine:
    """The manifest's thresholds."""
    limits = thresholds.limits()
    if not limits:
        return GateLine(name="quality", passed=True, detail="the manifest sets no threshold")
    if evaluation is None:
        return GateLine(name="quality", passed=False, detail="the manifest sets a threshold but nothing was measured")
    passed, parts = True, []
    for metric in metrics.QUALITY:
        if metric.key in limits:
            value, limit = metric.value(evaluation.variant, evaluation.base), limits[metric.key]
            passed &= GATE_KEYS[metric.key].holds(value, limit)
            parts.append(f"{metric.label} {'not measured' if value is None else f'{value:.4f}'}, allowed {limit:g}")
    return GateLine(name="quality", passed=passed, detail="; ".join(parts))


def generation(
    folder: Path, plan: VariantPlan, family: Family, generate: Generate, prompts: list[list[int]]
) -> GateLine:
    """An engine loads the folder, generates, and gives its tokens the probabilities our own forward gives them."""
    name = "generation"
    try:
        made = generate(folder, prompts, NEW_TOKENS, plan.verdicts)
    except ServeError as error:
        return GateLine(name=name, passed=False, detail=f"{error.what} ({error.fix})")
    if not all(made.token_ids):
        return GateLine(name=name, passed=False, detail=f"{made.engine} generated nothing")
    ours = logprobs(folder, family, prompts, made.token_ids)
    noise = float((logprobs(folder, family, prompts, made.token_ids, served_dtype(folder)) - ours).abs().mean())
    theirs = torch.tensor([value for row in made.logprobs for value in row])
    difference = float((ours - theirs).abs().mean())
    allowed = max(LOGPROB_TOLERANCE, NOISE_TOLERANCE * noise)
    detail = (
        f"{made.engine}: {len(theirs)} tokens, their log-probabilities differ from float32 by {difference:.4f} nats "
        f"on average, allowed {allowed:.2g} (half precision alone: {noise:.4f})"
    )
    return GateLine(name=name, passed=difference <= allowed, detail=detail)


def refuse_failed(reports: list[Report]) -> None:
    """Raise GateError naming every line that failed."""
    failed = [
        f"{made.variant}: {line.name} ({line.detail})" for made in reports for line in made.gate if not line.passed
    ]
    if failed:
        raise GateError(
            "gate",
            "; ".join(failed),
            "change the variant's steps or the manifest's `gate:`; nothing was published",
        )
