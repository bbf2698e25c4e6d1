"""What variants of a manifest share, computed once: the base's activations, equal blocks, equal trainings of these.

Decides which variants share what, and leaves it in their folders in the making, as a killed run would; making a variant
goes on from there.
"""

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hubplugin import decisions, memory, passes, variant_folder
from hubplugin.checkpoint import resume
from hubplugin.clock import Clock
from hubplugin.compress import side_by_side
from hubplugin.compress.gptqmodel import backend
from hubplugin.compress.stages import Target
from hubplugin.decisions import Measurements
from hubplugin.job import Job
from hubplugin.manifest.methods import distillation_of, factorization_of, recovery_of
from hubplugin.model.architectures import architecture
from hubplugin.plan.costs import workload
from hubplugin.plan.draft import DraftPlan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.variant_folder import PRUNED, RECOVERED


@dataclass
class Spent:
    """What was spent on a variant before it is made, and what measurements have decided of it meanwhile."""

    measured: Measurements
    clock: Clock  # seconds by stage
    peak: int  # bytes of memory at most


@dataclass(frozen=True)
class _Variant:
    """A variant as measurements settled it, its folder in the making, and what was spent on it."""

    plan: VariantPlan
    folder: Path
    spent: Spent


def begin(job: Job, drafts: Iterable[DraftPlan], out: Path) -> dict[str, Spent]:
    """Compute what drafts share, under `out`; what that took, by variant. Nothing is done for one alone.

    Shared is what passes over the base's blocks need of the base, where all its blocks and sublayers stay; blocks of
    variants that differ in what follows them; and what is trained first of all of equal blocks.
    """
    several = [draft for draft in drafts if draft.parent is None]
    if len(several) < 2:
        return {}
    job.prepare()
    variants = [_settled(job, draft, out) for draft in several]
    _compress(job, variants)
    _train(job, variants)
    return {one.plan.name: one.spent for one in variants}


def _settled(job: Job, draft: DraftPlan, out: Path) -> _Variant:
    folder, clock = variant_folder.begin(variant_folder.making(out, draft.name)), Clock()
    memory.reset_peak()
    measured = decisions.measured(job, draft, folder, clock)
    return _Variant(measured[0], folder, Spent(measured, clock, memory.peak()))


def _compress(job: Job, variants: Iterable[_Variant]) -> None:
    """Passes over the base's blocks, those together that are fitted to as many of its tokens."""
    by_corrected: dict[int, list[Target]] = defaultdict(list)
    named = {one.plan.name: one for one in variants if not _of_student(one.plan)}
    for one in named.values():
        target = passes.first_pass(job, one.plan, one.folder)
        first = target.variant
        # ranks of factors are not known yet, and gptqmodel makes its passes itself
        other = factorization_of(first.steps) or backend.step_of(first) or not _complete(job, first)
        if not other and resume.count(target.out) < first.dims.layers:
            by_corrected[workload.corrected_tokens(first.steps, job.calibration.ids.numel())].append(target)
    for targets in by_corrected.values():
        memory.reset_peak()
        for name, seconds in side_by_side.run(job.snapshot.path, targets, job.calibration.ids).items():
            named[name].spent.clock.add(passes.STAGE, seconds)
            named[name].spent.peak = max(named[name].spent.peak, memory.peak())


def _of_student(plan: VariantPlan) -> bool:
    """Whether a variant's blocks are not those of the base, but of a student."""
    distilling = distillation_of(plan.steps)
    return plan.trains_first or bool(distilling and distilling.student)


def _complete(job: Job, plan: VariantPlan) -> bool:
    """Whether a variant has all blocks of the base with all their sublayers."""
    layers = range(job.plan.base.dims.layers)
    return plan.sources == tuple(layers) and not any(
        architecture.absent(plan.family, plan.dims.at(number)) for number in layers
    )


def _train(job: Job, variants: Iterable[_Variant]) -> None:
    """Trainings that come before the last pass: of variants that train the same in the same way, one."""
    for kind in side_by_side.alike((one for one in variants if recovery_of(one.plan.steps)), _trained):
        first, *waiting = sorted(kind, key=_is_trained, reverse=True)
        waiting = [one for one in waiting if not _is_trained(one)]
        if not waiting:
            continue
        started = time.monotonic()
        memory.reset_peak()
        progress(f"{', '.join(one.plan.name for one in (first, *waiting))} | trained once for all of them")
        passes.begin(job, first.plan, first.folder)
        for one in waiting:
            for part in (PRUNED, RECOVERED):
                _link(first.folder / part, one.folder / part)
        for one in (first, *waiting):
            one.spent.clock.add(passes.STAGE, time.monotonic() - started)
            one.spent.peak = max(one.spent.peak, memory.peak())


def _is_trained(one: _Variant) -> bool:
    return resume.is_trained(one.folder / RECOVERED)


def _trained(one: _Variant) -> tuple[object, ...]:
    """All that decides what stands after the first training."""
    first = None if one.plan.trains_first else one.plan.passes[0]
    return recovery_of(one.plan.steps), first and (first.steps, first.linears, first.sources)


def _link(folder: Path, copy: Path) -> None:
    """Give a folder, if there is one, a second name; its files, which nobody writes into, lie on the disk once."""
    if not folder.is_dir():
        return
    part = copy.with_name(f"{copy.name}.part")  # removed when a run begins again
    shutil.copytree(folder, part, copy_function=_link_file)
    shutil.rmtree(copy, ignore_errors=True)
    part.rename(copy)


def _link_file(file: str, copy: str) -> None:
    try:
        os.link(file, copy)
    except OSError:  # a file system without links
        shutil.copy2(file, copy)
