"""What the gate's lines look at: a finished folder, its base, its plan, and what was measured of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hubplugin.evaluation.generation import Generate
from hubplugin.manifest.metrics import Thresholds
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import Evaluation, Speed
from hubplugin.task_record import Tasks


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
    tasks: Tasks | None = None  # None: the manifest asks for none
    speed: Speed | None = None  # the same
    model: Path | None = None  # what is run, where that is not `folder`: an adapter with the variant that it is for
    not_pulled: tuple[str, ...] = ()  # files of the base's repo that are not in its folder

    @property
    def run(self) -> Path:
        """The folder that engines and our own forward pass load."""
        return self.model or self.folder
