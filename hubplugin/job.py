"""What all variants of one run share: the base, token sequences, the base's own numbers.

Each is made when it is first asked for, so that variants which are kept cost none of it. Variants are held against it
here; it makes none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hubplugin.clock import Clock
from hubplugin.compress.calibration import calibration_data, prompts, vocabulary
from hubplugin.compress.calibration.calibration_data import TokenSequences
from hubplugin.compress.calibration.prompts import Prompts
from hubplugin.disk import digest, sha256
from hubplugin.evaluation import gate, generation, quality_metrics
from hubplugin.evaluation.quality_metrics import Reference
from hubplugin.evaluation.speed import kv_caches, rounds
from hubplugin.evaluation.tasks import compared, harness
from hubplugin.evaluation.tasks.harness import Answers
from hubplugin.hub import snapshots
from hubplugin.hub.snapshots import Snapshot
from hubplugin.manifest import model_name
from hubplugin.manifest.methods import distillation_of
from hubplugin.manifest.reading import task_file
from hubplugin.manifest.reading.task_file import TaskFile
from hubplugin.manifest.schema import EVALUATED, Document, Step
from hubplugin.manifest.source import Source
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.model.architectures import configs, tied_head
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.plan import planner, vllm_support
from hubplugin.plan.costs import operations
from hubplugin.plan.draft import Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.progress import progress
from hubplugin.report import Evaluation, Speed
from hubplugin.task_record import Tasks

CALIBRATION, EVALUATION, RECOVERY = "calibration", "evaluation", "recovery"  # what tokens are used for


@dataclass(frozen=True)
class Engines:
    """What a finished folder is tried with."""

    generate: generation.Generate  # a few tokens, for the gate
    take_turn: rounds.TakeTurn  # for its speed
    serve_cache: kv_caches.Serve  # for data types of its KV cache


@dataclass(frozen=True)
class Folders:
    """Where a variant is."""

    own: Path  # what is published
    model: Path  # what is run: the same, or for an adapter both it and the variant that it is for


@dataclass
class Job:
    """One manifest, its plan, and what comes of both for all variants."""

    document: Document
    planned: Plan  # from what is known without a weight
    clock: Clock = field(default_factory=Clock)
    # by source, whether shuffled, and the folder of another model than the base that samples itself
    _read: dict[tuple[Source, bool, Path | None], TokenSequences] = field(default_factory=dict)
    _digests: dict[Source, str] = field(default_factory=dict)
    _prompts: dict[tuple[Source, int], Prompts] = field(default_factory=dict)
    _named: dict[str, Snapshot] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make everything that compressing a variant needs.

        Data is read before the base is sampled, so that data which cannot be used is refused before any work. What
        recovery samples is left to recovery.
        """
        asked = self.document.manifest.asked()
        for place, source in sorted(self.document.manifest.sources(), key=lambda pair: pair[1].self_):
            use = EVALUATION if place.startswith(EVALUATED) else CALIBRATION if place == "calibrate" else RECOVERY
            if use == RECOVERY and source.self_:
                continue
            if place in asked:
                self.prompts(asked[place])
            else:
                self.tokens(use, source)
        _ = self.references
        if self.document.manifest.evaluate and self.document.manifest.evaluate.tasks:
            _ = self.base_answers  # a task that cannot be asked is known before any work

    def tokens(self, use: str, source: Source, sampled: Path | None = None) -> TokenSequences:
        """The token sequences of a source for one use, made once; those of an evaluation keep the order of the text.

        `sampled` is the folder of the model that samples itself, where that is not the base.
        """
        key = (source, use != EVALUATION, sampled)
        if key not in self._read:
            given = self.tokenizer, self.document.folder, sampled or self.snapshot.path
            with self.clock.stage(f"{use} data"):
                progress(f"{use}: {source.describe()}")
                self._read[key] = calibration_data.tokens(source, *given, shuffle=key[1])
        return self._read[key]

    def prompts(self, step: Distill) -> Prompts:
        """What the teacher of a distill step is asked, read once."""
        assert step.answers is not None
        key = (step.data or self.document.manifest.calibrate, step.answers.prompt_tokens)
        if key not in self._prompts:
            given = self.tokenizer, self.document.folder, self.snapshot.path
            with self.clock.stage("prompts"):
                progress(f"prompts: {key[0].describe()}")
                self._prompts[key] = prompts.read(key[0], *given, key[1])
        return self._prompts[key]

    def source_digest(self, source: Source) -> str:
        """A digest of a source's settings and, of files, their contents as this run has first seen them.

        Of a dataset without a `revision:` the rows may have changed on the Hub; what was made from them is kept.
        """
        if source not in self._digests:
            paths = [self.document.folder / name for name in source.files or ()]
            files = [sha256(path) for path in paths if path.is_file()]
            self._digests[source] = digest(json.dumps([source.model_dump(mode="json"), files]))
        return self._digests[source]

    @property
    def repo(self) -> str:
        """The base's Hub id, or its folder as the manifest writes it."""
        return model_name.repo(self.document.manifest.model)

    @property
    def base_name(self) -> str:
        """The last part of the base's Hub id, or its folder's name."""
        place = self.document.folder / self.repo
        return place.resolve().name if place.is_dir() else self.repo.split("/")[-1]

    @cached_property
    def snapshot(self) -> Snapshot:
        """The base on this disk, at the commit that was planned."""
        with self.clock.stage("pull"):
            return snapshots.pull(self.document.manifest.model, self.document.folder, self.planned.revision)

    def named(self, model: str) -> Snapshot:
        """A model that a distill step names, on this disk, at the commit that was planned."""
        if model not in self._named:
            with self.clock.stage("pull"):
                self._named[model] = snapshots.pull(model, self.document.folder, self.planned.named[model].revision)
        return self._named[model]

    def start(self, steps: Sequence[Step]) -> Snapshot:
        """The model that a variant's weights start from: the base, or the student of its distill step."""
        step = distillation_of(steps)
        return self.named(step.student) if step and step.student else self.snapshot

    def teacher(self, step: Distill) -> Snapshot:
        """The model that a distill step learns from, where it is no endpoint."""
        return self.named(step.teacher) if step.teacher else self.snapshot

    def named_fingerprint(self, model: str) -> str:
        """A text that changes when a model does that a distill step names."""
        revision = self.planned.named[model].revision
        if revision:
            return f"{model_name.repo(model)}@{revision}"
        return snapshots.contents_digest(self.named(model).path)

    @cached_property
    def tokenizer(self) -> Any:
        """The base's tokenizer. Says once which of its tokens the base's embedding has no row for."""
        tokenizer = read_tokenizer(self.snapshot.path)
        if note := vocabulary.note(tokenizer, vocabulary.rows_of(self.snapshot.path)):
            progress(f"note: {note}; text that holds one of them is refused")
        return tokenizer

    @cached_property
    def plan(self) -> Plan:
        """The plan; made anew where a head is stored and all of its values say another thing than what was planned:
        whether it is tied to the embedding."""
        planned, document = self.planned, self.document
        if f"{planned.family.head}.weight" not in planned.tensors:
            return planned
        config = configs.read_config(self.snapshot.path, document.manifest.model)
        if tied_head.is_tied(config) == tied_head.is_tied(planned.config):
            return planned
        return planner.make(document, config, planned.tensors, revision=planned.revision, named=planned.named)

    @cached_property
    def base_fingerprint(self) -> str:
        """A text that changes when the base does. Nothing is pulled for it where a commit says it all."""
        if self.planned.revision:
            return f"{self.repo}@{self.planned.revision}"
        return snapshots.contents_digest(self.snapshot.path)

    @property
    def calibration(self) -> TokenSequences:
        """What all variants are calibrated with."""
        return self.tokens(CALIBRATION, self.document.manifest.calibrate)

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """The base, measured on every text; empty where the manifest evaluates nothing."""
        evaluate = self.document.manifest.evaluate
        if evaluate is None:
            return ()
        batches = [self.tokens(EVALUATION, source) for source in evaluate.sources]
        given, dtype = (self.snapshot.path, self.plan.family), getattr(torch, evaluate.dtype)
        with self.clock.stage("evaluation of the base"):
            return tuple(quality_metrics.reference(*given, batch.ids, batch.description, dtype) for batch in batches)

    @property
    def reference(self) -> Reference | None:
        """The base, measured on the main text; None where the manifest evaluates nothing."""
        return next(iter(self.references), None)

    def measure(self, variant: VariantPlan, folder: Path) -> Evaluation | None:
        """A variant's numbers beside the base's; None where the manifest evaluates nothing."""
        evaluate = self.document.manifest.evaluate
        if evaluate is None:
            return None
        main, *further = (
            quality_metrics.measure(folder, variant.family, reference, evaluate.kl) for reference in self.references
        )
        return main.model_copy(update={"further": tuple(further)}) if further else main

    @cached_property
    def own_tasks(self) -> dict[str, TaskFile]:
        """The manifest's tasks that are files, as this run has first seen them."""
        evaluate = self.document.manifest.evaluate
        names = evaluate.tasks.names if evaluate and evaluate.tasks else ()
        return task_file.of(names, self.document.folder)

    @cached_property
    def base_answers(self) -> dict[str, Answers]:
        """What the base makes of the manifest's tasks."""
        evaluate = self.document.manifest.evaluate
        assert evaluate is not None and evaluate.tasks is not None
        progress(f"tasks of the base: {', '.join(evaluate.tasks.names)}")
        return harness.ask(self.snapshot.path, evaluate.tasks, self.own_tasks)

    def ask(self, variant: VariantPlan, folder: Path) -> Tasks | None:
        """A variant's answers to tasks beside the base's; None where the manifest asks for none."""
        evaluate = self.document.manifest.evaluate
        if evaluate is None or evaluate.tasks is None:
            return None
        base = self.base_answers
        progress(f"tasks of {variant.name}")
        answers = harness.ask(folder, evaluate.tasks, self.own_tasks)
        return compared.compared(evaluate.tasks, base, answers, self.own_tasks)

    def time(self, variant: VariantPlan, folder: Path, engines: Engines) -> Speed | None:
        """A variant's speed beside the base's, and with other KV caches; None where the manifest asks for none."""
        evaluate = self.document.manifest.evaluate
        if evaluate is None or evaluate.speed is None:
            return None
        base = self.plan.base
        loads = vllm_support.verdicts(base.model_type, base.dims, ())
        work = [operations.of(one.family, one.dims, one.config, one.tensors) for one in (base, variant)]
        subjects = (
            rounds.Subject("base", self.snapshot.path, loads, work[0], base.dims.vocab),
            rounds.Subject(variant.name, folder, variant.verdicts, work[1], variant.dims.vocab),
        )
        speed = rounds.measure(*subjects, evaluate.speed, engines.take_turn)
        if speed.not_measured or not evaluate.speed.kv_cache:
            return speed
        text = self.tokens(EVALUATION, evaluate.sources[0]).ids[: kv_caches.SEQUENCES].tolist()
        caches = kv_caches.measure(subjects[1], evaluate.speed, text, engines.serve_cache)
        return speed.model_copy(update={"kv_caches": caches})

    def candidate(self, variant: VariantPlan, folders: Folders, **known: Any) -> gate.Candidate:
        """A variant's folder for the gate; `known` are the candidate's fields that neither job nor plan has."""
        start = self.start(variant.steps)
        return gate.Candidate(
            folder=folders.own,
            model=folders.model,
            base=start.path,
            not_pulled=start.not_pulled,
            plan=variant,
            thresholds=self.document.manifest.gate.of(variant.name),
            **known,
        )
