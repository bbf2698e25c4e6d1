"""The report of a variant, one JSON file: the only source of the card, of tables and of plots.

Knows the layout of report.json, reads and writes it. Computes nothing and knows no model.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from hubplugin.adapter_record import AdapterOf as AdapterOf
from hubplugin.choice_records import AllocatedUnit as AllocatedUnit
from hubplugin.choice_records import Allocation as Allocation
from hubplugin.choice_records import PrunedBlock as PrunedBlock
from hubplugin.choice_records import RankedGroup as RankedGroup
from hubplugin.choice_records import Ranking as Ranking
from hubplugin.choice_records import Removal as Removal
from hubplugin.choice_records import Shaping as Shaping
from hubplugin.disk import write_atomically
from hubplugin.errors import CheckpointError, GateError
from hubplugin.origin_record import Base as Base
from hubplugin.origin_record import Tokens as Tokens
from hubplugin.record import Record
from hubplugin.speed_record import Speed
from hubplugin.task_record import Tasks
from hubplugin.training_record import Answers as Answers
from hubplugin.training_record import Distillation as Distillation
from hubplugin.training_record import RecoveredBlock as RecoveredBlock
from hubplugin.training_record import Recovery as Recovery

FILE_NAME = "report.json"
SCHEMA_VERSION = 1  # docs/report.schema.json; another one where an older release could not read it


class LinearResult(Record):
    """One linear (or one stack that shares an input and was solved together)."""

    name: str
    method: str  # gptq | prune | refit | wanda | sparsegpt | lowrank
    loss: float | None  # tr((W-W')H(W-W')^T) / tr(W H W^T); 0.01: one percent of the output's energy; None: not known
    damp: float  # damping actually used, as a ratio to the mean diagonal; 0 by a method without any
    fallback: str | None = None  # what was done instead, where the normal way failed
    dead_inputs: int | None = 0  # inputs that calibration never excited; None: not known
    correction: float | None = None  # ratio of the step towards the base's outputs that was taken (QEP); None: none
    seconds: float = 0.0


class Component(Record):
    """A part of the model: embeddings, attention, FFN, norms or scales."""

    name: str
    parameters: int  # logical weights; of scales and zeros none
    bytes: int
    flops_per_token: int  # of its matrix products


class Sizes(Record):
    """Measured on the files, not nominal."""

    safetensors_bytes: int
    parameters: int  # logical weights, or those of factors; tied embeddings once, scales and zeros not counted
    linear_parameters: int  # of the linears inside the blocks, or of their factors
    linear_bits_per_weight: float  # packed codes, scales, zeros and g_idx over linear_parameters
    model_bits_per_weight: float  # all tensor bytes over parameters
    adapter_bytes: int | None = None  # of safetensors_bytes, those of an adapter's own file; None: there is none
    sparsity: float | None = None  # zero weights over all weights of the linears; None: none were set to zero
    components: tuple[Component, ...] = ()
    flops_per_token: int | None = None  # of all linears (or factors) and the output head, by their shapes
    flops_per_context_token: int | None = None  # that attention adds, for each token that a token looks at


class Quality(Record):
    """Measured on the folder, on held-out tokens: a number by key of evaluation/metrics.py.

    Metrics that other releases or distributions add stand beside these.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    perplexity: float
    perplexity_stderr: float
    mean_kl: float | None = None  # nats per token, KL(base || variant)
    mean_kl_stderr: float | None = None  # over windows; None in reports of before 0.2
    p99_kl: float | None = None
    top1_agreement: float | None = None  # ratio of positions where both rank the same token first
    flips: float | None = None  # ratio of positions where one of both alone ranks the token first that follows
    acceptance_rate: float | None = None  # mean of sum min(p, q): of drafts by the variant that the base accepts


class Evaluation(Record):
    """Base and variant on the same tokens in one run."""

    tokens: Tokens
    protocol: str  # window, stride, BOS, dtype, in words
    predicted_tokens: int
    base: Quality
    variant: Quality
    # where `protocol` names another dtype than float32: the base in it, against the base in float32, on some windows
    floor: Quality | None = None
    further: tuple["Evaluation", ...] = ()  # on the other texts that the manifest names

    @property
    def on_all_texts(self) -> tuple["Evaluation", ...]:
        """This and the further ones."""
        return (self, *self.further)


class GateLine(Record):
    """One thing that must hold before publishing."""

    name: str
    passed: bool
    detail: str


class LeftBehind(Record):
    """A file or folder of the base that the variant has no copy of."""

    file: str  # its path inside the base's folder; a folder's ends with a slash
    reason: str


class Sibling(Record):
    """Another variant of the same manifest, finished and passed."""

    variant: str
    repo: str | None
    safetensors_bytes: int
    perplexity_ratio: float | None  # of its perplexity to the base's, on its own evaluation tokens; None: not measured
    mean_kl: float | None


class Load(Record):
    """Whether stock vLLM loads the variant on one kind of machine, by the rules `plan` knows."""

    target: str  # "cpu", "cuda tp=1", ...
    loads: bool
    why: str  # empty where it loads
    note: str = ""  # what the machine must have, where it loads


class Report(Record):
    """Everything about one variant."""

    schema_version: int = SCHEMA_VERSION
    hubplugin: str
    created: str  # ISO 8601, UTC
    variant: str
    model_name: str  # the last part of the repo id
    repo: str | None = None  # where the manifest publishes it, "owner/name"
    branch: str | None = None  # of that repo; None: main
    signed: bool = False  # whether the manifest has it signed when it is published
    base: Base
    manifest_text: str
    manifest_sha256: str
    steps: tuple[dict[str, Any], ...]
    architecture: str = ""  # the class in config.json; pruning may leave another than the base's
    widths: dict[str, tuple[int, int]]  # config key -> before, after
    calibration: Tokens
    linears: tuple[LinearResult, ...]
    allocation: Allocation | None = None  # of a step with a budget
    ranking: Ranking | None = None  # of a step that stores factors
    shaping: Shaping | None = None  # of a pruning step that measured what should go
    adapter: AdapterOf | None = None  # of an adapter, whose sizes and numbers are those of both together
    recovery: Recovery | None = None  # of a recover step
    tuning: Recovery | None = None  # of a tune step, or of an adapter that was trained
    distillation: Distillation | None = None  # of a distill step
    sizes_base: Sizes
    sizes: Sizes
    seconds: dict[str, float]  # by stage
    peak_memory_bytes: int  # resident, the process that compressed
    versions: dict[str, str]
    evaluation: Evaluation | None = None
    tasks: Tasks | None = None
    speed: Speed | None = None
    gate: tuple[GateLine, ...] = ()
    loads: tuple[Load, ...] = ()
    siblings: tuple[Sibling, ...] = ()  # the largest first
    notes: tuple[str, ...] = ()  # what sizes and loads alone would not tell a user
    # of the base's files; of a base from the cache, without a network, only those that were ever pulled are known
    left_behind: tuple[LeftBehind, ...] = ()
    made_from: dict[str, str] = Field(default_factory=dict)  # digests of what decided the weights; others make others
    measured_from: dict[str, str] = Field(default_factory=dict)  # the same of the evaluation's numbers
    prompts: tuple[tuple[int, ...], ...] = ()  # token ids that the gate has an engine continue
    # name -> sha256, of everything in the folder but this file, the card and its plots
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the gate was run and every line of it held."""
        return bool(self.gate) and all(line.passed for line in self.gate)

    @property
    def origins(self) -> tuple[Base, ...]:
        """The models that it was made from: its base, and the student and teacher of a distillation."""
        made = self.distillation
        others = [one for one in (made.student, made.teacher) if one is not None] if made else []
        return tuple(dict.fromkeys((self.base, *others)))

    @property
    def start(self) -> Base:
        """The model whose weights it started from: the student of a distillation, or its base."""
        return (self.distillation and self.distillation.student) or self.base

    @property
    def disk_ratio(self) -> float:
        """Base bytes over variant bytes, safetensors only."""
        return self.sizes_base.safetensors_bytes / self.sizes.safetensors_bytes

    @property
    def fallbacks(self) -> tuple[LinearResult, ...]:
        """Linears where the normal way failed and something else was done."""
        return tuple(linear for linear in self.linears if linear.fallback)


def refuse_failed(reports: Iterable[Report]) -> None:
    """Raise GateError naming every line of a gate that failed."""
    failed = [
        f"{report.variant}: {line.name} ({line.detail})"
        for report in reports
        for line in report.gate
        if not line.passed
    ]
    if failed:
        raise GateError(
            "gate",
            "; ".join(failed),
            "change the variant's steps or the manifest's `gate:`; nothing was published",
        )


def write(report: Report, folder: Path) -> Path:
    """Write report.json into a folder, atomically."""
    path = folder / FILE_NAME
    write_atomically(path, json.dumps(report.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    return path


def read(folder: Path) -> Report:
    """Read a folder's report.json. Raises CheckpointError where there is none, or it is not ours or a later one."""
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
        _check_version(text, path)
        return Report.model_validate_json(text)
    except OSError as error:
        raise CheckpointError(str(path), "cannot be read", "run `hubplugin run` first") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(str(path), "is not a report of this version", "run `hubplugin run` again") from error


def _check_version(text: str, path: Path) -> None:
    """Raise CheckpointError for a report of a later schema. What is no report at all is left to the reader."""
    values = json.loads(text)
    version = values.get("schema_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        what = f"is {version}, and this release of hubplugin reads up to {SCHEMA_VERSION}"
        raise CheckpointError(f"{path}: schema_version", what, "upgrade hubplugin")
