"""The Python API: what the verbs do, as functions with typed results. `import hubplugin` offers them.

Knows the order in which a verb calls the rooms below; prints no result. Everything is imported when it is needed, so
that what a manifest gets wrong is said before torch is loaded. Progress goes to stderr; HUBPLUGIN_QUIET=1 silences it.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from hubplugin import interrupt, preparation
from hubplugin.preparation import OUT as OUT
from hubplugin.preparation import AnyPath as AnyPath
from hubplugin.preparation import Manifest as Manifest
from hubplugin.preparation import acting_for
from hubplugin.preparation import document as document
from hubplugin.preparation import folder as folder
from serve import idle_threads

if TYPE_CHECKING:
    from hubplugin.cluster.outcome import Outcome as Outcome
    from hubplugin.hub.client import Token
    from hubplugin.hub.publishing.push import FileChange as FileChange
    from hubplugin.hub.publishing.push import Pushed as Pushed
    from hubplugin.plan.draft import Plan as Plan
    from hubplugin.report import Report as Report
    from hubplugin.verification.outcome import Verification as Verification


def plan(manifest: Manifest, *, token: "Token" = None) -> "Plan":
    """Plan every variant from config.json and safetensors headers, remote or local; no weights are read.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys. Relative paths inside start from the file's
            folder, those of a mapping from the working directory.
        token: The access token of requests to the Hub. Left out: HF_TOKEN, or as `hf auth login` left it; False: none.

    Returns:
        The base's sizes, and in `variants` for each variant its sizes, memory, time and whether vLLM loads it.

    Raises:
        ManifestError: The manifest cannot be read, or is not valid.
        PlanError, FamilyError: It does not fit this model.
        HubError: The base cannot be read, or publishing would be refused.
    """
    asked = document(manifest)
    with acting_for(token):
        return preparation.planned(asked, reads_text=True)


def run(
    manifest: Manifest,
    *,
    out: AnyPath | None = None,
    only: str | Iterable[str] = (),
    revision: str | None = None,
    token: "Token" = None,
    require_vllm: bool = True,
) -> list["Report"]:
    """Make every variant: pull, calibrate, compress, export, evaluate, gate, write cards.

    Called again, it goes on where it was interrupted, and keeps variants that the manifest still describes.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys.
        out: The folder that gets one folder for each variant. Left out: `folder(manifest)`.
        only: The names of the variants to make. Left out: all.
        revision: The base's commit, branch or tag. Left out: as the manifest says.
        token: The access token that the base is read with, as in `plan`. Datasets are read with this machine's own.
        require_vllm: False lets the gate generate with transformers where vLLM is not installed; the report says so.

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
    with acting_for(token):
        # whatever the manifest gets wrong is said before the pipeline is loaded
        planned = preparation.planned(asked, reads_text=True)
        with interrupt.held():
            from hubplugin import pipeline
            from hubplugin.evaluation import engine_choice
            from hubplugin.progress import progress

        for note in planned.notes:
            progress(f"note: {note}")
        generate = engine_choice.generate if require_vllm else engine_choice.generate_anyhow
        with engine_choice.kept(planned.variants):
            return pipeline.run(asked, planned, folder(manifest, out), generate, engine_choice.take_turn)


def run_on_ray(
    manifests: Manifest | Sequence[Manifest],
    *,
    address: str = "auto",
    out: AnyPath | None = None,
    only: str | Iterable[str] = (),
    revision: str | None = None,
    cpus_per_variant: int | None = None,
) -> list["Outcome"]:
    """Make every variant of one or several manifests as a task of a Ray cluster, as `run` makes it on one machine.

    Called again, it goes on where it was interrupted. The program must run on a node of the cluster (docs/cluster.md).

    Args:
        manifests: As for `run`, or several; a folder stands for the manifests in it.
        address: "auto", which is RAY_ADDRESS or the cluster this machine is a node of; HOST:PORT; or "local".
        out: The folder of the variants' folders, on a file system that all nodes share; of several manifests each
            gets a folder of its name in it.
        only: As for `run`, of each manifest.
        revision: As for `run`.
        cpus_per_variant: Left out: those of a node, shared among the variants that it will have at a time.

    Returns:
        What became of each variant. One that failed is not raised: its outcome holds the error.

    Raises:
        ClusterError: The cluster cannot be reached, or its nodes lack what the run needs; before any work.
        ManifestError, PlanError, FamilyError, HubError: As `plan`, before any work.
    """
    with interrupt.held():
        from hubplugin.cluster import manifests as several
        from hubplugin.manifest.reading.narrowing import narrowed

    names = (only,) if isinstance(only, str) else tuple(only)
    planned = []
    for name, manifest in several.expanded(manifests):
        asked = narrowed(document(manifest), names, revision)
        variants = Path(out or OUT) / name if name else folder(manifest, out)
        planned.append((name, asked, preparation.planned(asked), variants))
    with interrupt.held():
        from hubplugin.cluster import fan_out

    return fan_out.run([fan_out.Asked(*each) for each in planned], address, cpus_per_variant)


def judge(manifest: Manifest, *, out: AnyPath | None = None, thorough: bool = True) -> list["Report"]:
    """Gate, report and card of finished variants anew; nothing is compressed.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys.
        out: The folder of the variants' folders. Left out: `folder(manifest)`.
        thorough: Check all that holds of a finished folder again, not only the thresholds.

    Returns and raises what `run` does; GateError also where a variant is missing or was made from something else.
    """
    asked = document(manifest)
    planned = preparation.planned(asked)
    with interrupt.held():
        from hubplugin import pipeline
        from hubplugin.evaluation import engine_choice

    engines = engine_choice.generate, engine_choice.take_turn
    return pipeline.judge(asked, planned, folder(manifest, out), *engines, thorough=thorough)


@overload
def publish(
    manifest: Manifest,
    *,
    out: AnyPath | None = None,
    force: bool = False,
    dry_run: Literal[False] = False,
    token: "Token" = None,
) -> list["Pushed"]: ...
@overload
def publish(
    manifest: Manifest,
    *,
    out: AnyPath | None = None,
    force: bool = False,
    dry_run: Literal[True],
    token: "Token" = None,
) -> list["FileChange"]: ...
@overload
def publish(
    manifest: Manifest,
    *,
    out: AnyPath | None = None,
    force: bool = False,
    dry_run: bool,
    token: "Token" = None,
) -> list["Pushed"] | list["FileChange"]: ...
def publish(
    manifest: Manifest,
    *,
    out: AnyPath | None = None,
    force: bool = False,
    dry_run: bool = False,
    token: "Token" = None,
) -> list["Pushed"] | list["FileChange"]:
    """Publish every variant that passed its gate, one commit for each, and a collection of them.

    The Hub's address is taken from HF_ENDPOINT.

    Args:
        manifest: The path of a YAML file, or a mapping with the same keys: the one that `run` had.
        out: The folder of the variants' folders. Left out: `folder(manifest)`.
        force: Overwrite what others have changed in the repos since our last commit.
        dry_run: Change nothing on the Hub.
        token: The access token of the one who publishes, as in `plan`. It goes to the Hub and nowhere else.

    Returns:
        For each variant its URL, its commit, and whether anything had changed; of a dry run, for each file what would
        become of it and the bytes to send.

    Raises:
        ManifestError: The manifest cannot be read, or is not valid.
        PlanError: It has no `publish:`, or its signing key cannot be used.
        CheckpointError: A variant is missing.
        GateError: A variant failed its gate, or was made from another manifest.
        HubError: The Hub or the base's licence refuses, or others have changed what a commit would overwrite.
    """
    with interrupt.held():
        from hubplugin.hub.publishing import publish as publishing

    asked, variants = document(manifest), folder(manifest, out)
    with acting_for(token):
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
    public_key: AnyPath | None = None,
) -> "Verification":
    """Check what card, report and configuration of a published model claim against its tensors.

    Args:
        target: A folder, or a repo of the Hub as "owner/name" or "owner/name@revision"; anybody's.
        base: A folder or repo to compare with, in place of the base that the model names.
        quality: Measure perplexity, KL and the rest again, where the model has a report of ours.
        speed: Measure the speed-up over the base in vLLM again, where the report has one. Starts vLLM several times.
        texts: The text files that its manifest evaluates, each once and in its order, where they do not lie beside it.
        public_key: The file of the publisher's public key (PEM), which the signature must be by.

    Returns:
        One line for each claim. `holds` says whether none was found to be false.

    Raises:
        HubError: There is no such folder or repo, or nothing in it that could be checked; or the key is none.
        CheckpointError: Its config.json or report cannot be read.
        CalibrationError: `texts` are not the files that its manifest names.
    """
    idle_threads.let_sleep()
    with interrupt.held():
        from hubplugin import verification

    asked = {verification.QUALITY: quality, verification.SPEED: speed}
    options = {option for option, wanted in asked.items() if wanted}
    given = [texts] if isinstance(texts, str | os.PathLike) else texts
    return verification.verify(
        os.fspath(target),
        None if base is None else os.fspath(base),
        options,
        [Path(text) for text in given],
        public_key=None if public_key is None else Path(public_key),
    )


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
