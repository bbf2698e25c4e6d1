"""The Python API: what the verbs do, as functions with typed results. `import hubplugin` offers them.

Knows the order in which a verb calls the rooms below; prints no result. Everything is imported when it is needed, so
that what a manifest gets wrong is said before torch is loaded. Progress goes to stderr; HUBPLUGIN_QUIET=1 silences it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from hubplugin import interrupt

if TYPE_CHECKING:
    from hubplugin.hub.publishing.push import FileChange as FileChange
    from hubplugin.hub.publishing.push import Pushed as Pushed
    from hubplugin.manifest.schema import Document
    from hubplugin.plan.draft import Plan as Plan
    from hubplugin.report import Report as Report
    from hubplugin.verification.outcome import Verification as Verification

AnyPath = str | os.PathLike[str]
Manifest = AnyPath | Mapping[str, Any]

OUT = Path("out")


def plan(manifest: Manifest) -> "Plan":
    """Plan every variant from config.json and safetensors headers, remote or local; no weights are read.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys. Relative paths inside start from the file's
            folder, those of a mapping from the working directory.

    Returns:
        The base's sizes, and in `variants` for each variant its sizes, memory, time and whether vLLM loads it.

    Raises:
        ManifestError: The manifest cannot be read, or is not valid.
        PlanError, FamilyError: It does not fit this model.
        HubError: The base cannot be read, or publishing would be refused.
    """
    return _planned(document(manifest))


def run(
    manifest: Manifest,
    *,
    out: AnyPath | None = None,
    only: str | Iterable[str] = (),
    revision: str | None = None,
) -> list["Report"]:
    """Make every variant: pull, calibrate, compress, export, evaluate, gate, write cards.

    Called again, it goes on where it was interrupted, and keeps variants that the manifest still describes.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys.
        out: The folder that gets one folder for each variant. Left out: `folder(manifest)`.
        only: The names of the variants to make. Left out: all.
        revision: The base's commit, branch or tag. Left out: as the manifest says.

    Returns:
        The reports of the variants, in the manifest's order.

    Raises:
        ManifestError, PlanError, FamilyError, HubError: As `plan`, before any weight is read.
        CheckpointError, FormatError: The base's weights cannot be used.
        CalibrationError: The data cannot be read, or is too short.
        CompressError: The numerics failed.
        ServeError: The engine that should load a variant does not.
        GateError: A variant did not pass its gate. Raised when all are made: `load_report` reads their reports.
        OSError: A folder cannot be written, or the disk is full.
    """
    with interrupt.held():
        from hubplugin.manifest.reading.narrowing import narrowed

    asked = narrowed(document(manifest), (only,) if isinstance(only, str) else tuple(only), revision)
    planned = _planned(asked)  # whatever the manifest gets wrong is said before the pipeline is loaded
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import engine_choice
        from hubplugin.progress import progress

    for note in planned.notes:
        progress(f"note: {note}")
    return pipeline.run(asked, planned, folder(manifest, out), engine_choice.generate, engine_choice.take_turn)


def judge(manifest: Manifest, *, out: AnyPath | None = None, thorough: bool = True) -> list["Report"]:
    """Gate, report and card of finished variants anew; nothing is compressed.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys.
        out: The folder of the variants' folders. Left out: `folder(manifest)`.
        thorough: Check all that holds of a finished folder again, not only the thresholds.

    Returns and raises what `run` does; GateError also where a variant is missing or was made from something else.
    """
    asked = document(manifest)
    planned = _planned(asked)
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import engine_choice

    engines = engine_choice.generate, engine_choice.take_turn
    return pipeline.judge(asked, planned, folder(manifest, out), *engines, thorough=thorough)


@overload
def publish(
    manifest: Manifest, *, out: AnyPath | None = None, force: bool = False, dry_run: Literal[False] = False
) -> list["Pushed"]: ...
@overload
def publish(
    manifest: Manifest, *, out: AnyPath | None = None, force: bool = False, dry_run: Literal[True]
) -> list["FileChange"]: ...
@overload
def publish(
    manifest: Manifest, *, out: AnyPath | None = None, force: bool = False, dry_run: bool
) -> list["Pushed"] | list["FileChange"]: ...
def publish(
    manifest: Manifest, *, out: AnyPath | None = None, force: bool = False, dry_run: bool = False
) -> list["Pushed"] | list["FileChange"]:
    """Publish every variant that passed its gate, one commit for each, and a collection of them.

    The Hub's address is taken from HF_ENDPOINT, its token from HF_TOKEN, or as `hf auth login` left it.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys: the one that `run` had.
        out: The folder of the variants' folders. Left out: `folder(manifest)`.
        force: Overwrite what others have changed in the repos since our last commit.
        dry_run: Change nothing on the Hub.

    Returns:
        For each variant its URL, its commit, and whether anything had changed; of a dry run, for each file what would
        become of it and the bytes to send.

    Raises:
        ManifestError: The manifest cannot be read, or is not valid.
        PlanError: It has no `publish:`.
        CheckpointError: A variant is missing.
        GateError: A variant failed its gate, or was made from another manifest.
        HubError: The Hub or the base's licence refuses, or others have changed what a commit would overwrite.
    """
    with interrupt.held():
        from hubplugin.hub.publishing import publish as publishing

    asked, variants = document(manifest), folder(manifest, out)
    if dry_run:
        return list(publishing.changes(asked, variants, force))
    return publishing.publish(asked, variants, force)


def verify(
    target: AnyPath,
    *,
    base: AnyPath | None = None,
    quality: bool = False,
    speed: bool = False,
    texts: AnyPath | Iterable[AnyPath] = (),
) -> "Verification":
    """Check what card, report and configuration of a published model claim against its tensors.

    Args:
        target: A folder, or a repo of the Hub as "owner/name" or "owner/name@revision"; anybody's.
        base: A folder or repo to compare with, in place of the base that the model names.
        quality: Measure perplexity, KL and the rest again, where the model has a report of ours.
        speed: Measure the speed-up over the base in vLLM again, where the report has one. Starts vLLM several times.
        texts: The text files that its manifest evaluates, each once and in its order, where they do not lie beside it.

    Returns:
        One line for each claim. `holds` says whether none was found to be false.

    Raises:
        HubError: There is no such folder or repo, or nothing in it that could be checked.
        CheckpointError: Its config.json or report cannot be read.
        CalibrationError: `texts` are not the files that its manifest names.
    """
    _let_idle_threads_sleep()
    with interrupt.held():
        from hubplugin import verification

    asked = {verification.QUALITY: quality, verification.SPEED: speed}
    options = {option for option, wanted in asked.items() if wanted}
    given = [texts] if isinstance(texts, str | os.PathLike) else texts
    named = None if base is None else os.fspath(base)
    return verification.verify(os.fspath(target), named, options, [Path(text) for text in given])


def load_report(folder: AnyPath) -> "Report":
    """Read the measured numbers of a variant from its folder.

    Args:
        folder: The folder of one variant, as `run` made it or as it was downloaded.

    Returns:
        The report: sizes, quality beside the base, speed, gate, and what it was made from.

    Raises:
        CheckpointError: There is no report, or it is of a later release.
    """
    with interrupt.held():
        from hubplugin import report

    return report.read(Path(folder))


def document(manifest: Manifest) -> "Document":
    """The manifest, read and checked. Raises ManifestError."""
    with interrupt.held():
        from hubplugin.manifest.reading import loading

    return loading.from_mapping(manifest) if isinstance(manifest, Mapping) else loading.load(Path(manifest))


def folder(manifest: Manifest, out: AnyPath | None = None) -> Path:
    """Where its variants are: `out`, else out/<the file's name>, of a mapping out/<the model's name>.

    Raises ManifestError for a mapping that is no manifest.
    """
    if out is not None:
        return Path(out)
    if not isinstance(manifest, Mapping):
        return OUT / Path(manifest).stem
    with interrupt.held():
        from hubplugin.manifest import model_name

    return OUT / Path(model_name.repo(document(manifest).manifest.model)).resolve().name


def _planned(asked: "Document") -> "Plan":
    """From config.json, card and safetensors headers alone, remote or local.

    What publishing would refuse, and what transformers would refuse to build, is said before any work.
    """
    with interrupt.held():
        from hubplugin.hub import snapshots
        from hubplugin.hub.publishing import publish as publishing
        from hubplugin.plan import planner

    peek = snapshots.peek(asked.manifest.model, asked.folder)
    planned = planner.make(asked, peek.config, peek.tensors, revision=peek.sha)
    notes = publishing.preflight(asked, peek)  # like all that needs no torch, before it is loaded
    _let_idle_threads_sleep()
    with interrupt.held():
        from hubplugin.model.construction import buildable

    buildable.check(planned.config, planned.family, f"{asked.manifest.model}: config.json")
    return replace(planned, notes=(*planned.notes, *notes))


def _let_idle_threads_sleep() -> None:
    """For OpenMP, here and in what is started, before it loads: idle threads that spin slow busy machines 100 times."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
