"""What only measurements on a model decide of a variant: its pruned shape, bits under a budget, ranks of factors.

Each decision stands in a file of the variant's folder, so that a killed run does not measure again. Knows searches and
plans; makes no weights.
"""

import json
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from hubplugin import provenance, report
from hubplugin.checkpoint import resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.clock import Clock
from hubplugin.compress import stages
from hubplugin.compress.search import bit_allocation, pruning_search, rank_search
from hubplugin.compress.search.measurements import Dropped, Kept, Sensitivities, Widths
from hubplugin.disk import digest
from hubplugin.job import Job
from hubplugin.manifest.methods import factorization_of, grid_of
from hubplugin.model.architectures import configs, families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import computing_dtype
from hubplugin.plan import table
from hubplugin.plan.choices.pruning_space import Shape
from hubplugin.plan.draft import DraftPlan, rank_space
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress

MEASURED = ".measured"  # beside the variants' folders
# a variant as what is measured on the base settles it, and these measurements
Measurements = tuple[VariantPlan, report.Shaping | None, report.Allocation | None]
Measured = TypeVar("Measured", bound=BaseModel)


def settle(
    draft: DraftPlan,
    shaping: report.Shaping | None,
    allocation: report.Allocation | None,
    ranking: report.Ranking | None = None,
) -> VariantPlan:
    """The variant with what measurements have decided."""
    shape = pruning_search.shape_of(shaping) if shaping else None
    schemes = bit_allocation.schemes(draft.budget, allocation) if draft.budget and allocation else None
    ranks = rank_space(draft.recipe, shape or draft.shape) if ranking else None
    factors = rank_search.factors(ranks, ranking) if ranks and ranking else None
    variant = draft.settle(shape=shape, schemes=schemes, factors=factors)
    if shaping:
        kl = f"KL of {shaping.predicted_kl:.4f} predicted before refitting"
        progress(f"{variant.name} | {table.shape(variant)}, {kl}")
    return variant


def measured(job: Job, draft: DraftPlan, folder: Path, clock: Clock) -> Measurements:
    """The variant with what is measured on the base, and these measurements, which `folder` keeps."""
    shaping = allocation = None
    if draft.space:
        with clock.stage("shape"):
            shaping = shape(job, draft, folder, clock)
    if draft.budget:
        with clock.stage("allocation"):
            allocation = allocate(job, draft, folder, clock)
    return settle(draft, shaping, allocation), shaping, allocation


def shape(job: Job, draft: DraftPlan, folder: Path, clock: Clock) -> report.Shaping:
    """What is pruned, decided by measurements on the base."""
    assert draft.space is not None
    estimate, base = draft.estimate, draft.recipe.base
    stored = TORCH_DTYPES[job.plan.tensors[f"{estimate.linears[0].name}.weight"].dtype]
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family, computing_dtype(stored))
    goal = pruning_search.Goal(draft.space, base.outside_linears, f"{draft.recipe.where}[0]")
    path, fingerprint = folder / resume.BLOCKS / pruning_search.FILE_NAME, provenance.of_blocks(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Shaping)
    searched = draft.space.measured_for()
    removals = Kept(_measurement(job, folder, "removals", searched, Dropped))
    widths = Kept(_measurement(job, folder, "widths", searched, Widths))
    with stages.spilling(estimate, folder) as spill:
        search = partial(pruning_search.search, model, job.calibration.ids, goal, spill, removals, widths)
        shaping = decision.load_or_make(search)
    clock.reuse("shape", removals.reused + widths.reused)
    return shaping


def _measurement(
    job: Job, folder: Path, name: str, searched: object, kind: type[Measured]
) -> resume.Decision[Measured]:
    """Where a measurement is that variants share: beside their folders, under a digest of all it depends on."""
    fingerprint = provenance.of_measurement(job, searched)
    place = digest(json.dumps(dict(fingerprint.digests), sort_keys=True))
    return resume.Decision(folder.parent / MEASURED / f"{name}-{place[:16]}.json", fingerprint, kind)


def allocate(job: Job, draft: DraftPlan, folder: Path, clock: Clock) -> report.Allocation:
    """The budget, spent by measurements on the base. In float32: what a single linear changes is small."""
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family)
    estimate, budget, tokens = draft.estimate, draft.budget, job.calibration.ids
    step = grid_of(estimate.steps)
    assert step is not None and budget is not None
    path, fingerprint = folder / resume.BLOCKS / bit_allocation.FILE_NAME, provenance.of_blocks(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Allocation)
    settings = step.model_dump(
        mode="json", exclude={"budget", "bits", "group_size", "symmetric"}
    )  # options have theirs
    searched = [settings, budget.measured_for()]
    kept = Kept(_measurement(job, folder, "sensitivities", searched, Sensitivities))
    with stages.spilling(estimate, folder) as spill:
        decide = partial(bit_allocation.allocate, model, tokens, budget, step, spill, kept)
        allocation = decision.load_or_make(decide)
    clock.reuse("allocation", kept.reused)
    progress(f"{draft.name} | {len(allocation.units)} units allocated, KL of {allocation.predicted_kl:.5f} predicted")
    return allocation


def rank(job: Job, draft: DraftPlan, variant: VariantPlan, source: Path, folder: Path) -> report.Ranking:
    """The ranks of factors, decided by measurements on the model in `source`: the base, or what it was pruned to. In
    float32: what a single group changes is small."""
    step = factorization_of(variant.steps)
    space = rank_space(draft.recipe, Shape(variant.sources, variant.dims.shapes()))
    config = configs.read_config(source, str(source))
    model = Model(DenseView(source), config, families.match(config, str(source)))
    assert step is not None and space is not None
    path, fingerprint = folder / resume.BLOCKS / rank_search.FILE_NAME, provenance.of_blocks(job, variant)
    decision = resume.Decision(path, fingerprint, report.Ranking)
    with stages.spilling(draft.estimate, folder) as spill:
        ranking = decision.load_or_make(partial(rank_search.search, model, job.calibration.ids, space, step, spill))
    dense = sum(rank is None for group in ranking.groups for rank in group.ranks)
    found = f"ranks of {len(ranking.groups)} groups found, {dense} linears stay dense"
    progress(f"{variant.name} | {found}, KL of {ranking.predicted_kl:.5f} predicted")
    return ranking
