"""What only measurements on a model decide of a variant: its pruned shape, bits under a budget, ranks of factors.

Each decision stands in a file of the variant's folder, so that a killed run does not measure again. Knows searches and
plans; makes no weights.
"""

from functools import partial
from pathlib import Path

from hubplugin import provenance, report
from hubplugin.checkpoint import resume
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES
from hubplugin.compress import stages
from hubplugin.compress.search import bit_allocation, pruning_search, rank_search
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


def shape(job: Job, draft: DraftPlan, folder: Path) -> report.Shaping:
    """What is pruned, decided by measurements on the base."""
    assert draft.space is not None
    estimate, base = draft.estimate, draft.recipe.base
    stored = TORCH_DTYPES[job.plan.tensors[f"{estimate.linears[0].name}.weight"].dtype]
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family, computing_dtype(stored))
    goal = pruning_search.Goal(draft.space, base.outside_linears, f"{draft.recipe.where}[0]")
    path, fingerprint = folder / resume.BLOCKS / pruning_search.FILE_NAME, provenance.of_blocks(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Shaping)
    with stages.spilling(estimate, folder) as spill:
        return decision.load_or_make(partial(pruning_search.search, model, job.calibration.ids, goal, spill))


def allocate(job: Job, draft: DraftPlan, folder: Path) -> report.Allocation:
    """The budget, spent by measurements on the base. In float32: what a single linear changes is small."""
    model = Model(DenseView(job.snapshot.path), job.plan.config, job.plan.family)
    estimate, budget, tokens = draft.estimate, draft.budget, job.calibration.ids
    step = grid_of(estimate.steps)
    assert step is not None and budget is not None
    path, fingerprint = folder / resume.BLOCKS / bit_allocation.FILE_NAME, provenance.of_blocks(job, estimate)
    decision = resume.Decision(path, fingerprint, report.Allocation)
    with stages.spilling(estimate, folder) as spill:
        allocation = decision.load_or_make(partial(bit_allocation.allocate, model, tokens, budget, step, spill))
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
