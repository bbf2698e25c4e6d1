"""Finished variants -> the Hub: one atomic commit each, and a collection of them. Never a folder that failed its gate.

Reads reports and files; measures and renders nothing.
"""

from pathlib import Path

from hubplugin import report
from hubplugin.disk import changed_files
from hubplugin.errors import GateError, PlanError
from hubplugin.evaluation import gate
from hubplugin.hub import publishing
from hubplugin.manifest.schema import Document
from hubplugin.progress import progress
from hubplugin.report import Report


def publish(document: Document, out: Path) -> list[publishing.Pushed]:
    """One atomic commit per variant that passed its gate, and a collection of them. Raises before the first upload
    where any variant is missing, stale, failed its gate or may not be published."""
    manifest = document.manifest
    if manifest.publish is None:
        raise PlanError(
            f"{document.path}: publish",
            "this manifest names no repo",
            'add publish: {repo: "you/{model}-{variant}"}',
        )
    reports = [_ready(out / name, document) for name in manifest.variants]
    gate.refuse_failed(reports)
    for made in reports:
        publishing.licence_allows(made.base, manifest.publish.accept_license)
    pushed, notes = [], {}
    for made in reports:
        repo = manifest.repo_of(made.variant)
        done = publishing.push(out / made.variant, repo, private=manifest.publish.private, gated=made.base.gated)
        progress(f"publish {done.url} {'commit ' + done.commit[:12] if done.changed else 'unchanged, no commit'}")
        notes[repo] = f"{made.variant}: {made.disk_ratio:.2f} times smaller on disk"
        pushed.append(done)
    if manifest.publish.collection:
        namespace = manifest.publish.repo.split("/")[0]
        progress(
            "publish " + publishing.collect(manifest.publish.collection, namespace, notes, manifest.publish.private)
        )
    return pushed


def _ready(folder: Path, document: Document) -> Report:
    made = report.read(folder)
    if made.manifest_sha256 != document.sha256:
        raise GateError(str(folder), "was made from another version of the manifest", "run `hubplugin run` again")
    changed = changed_files(folder, made.files)
    if changed:
        raise GateError(str(folder), f"{changed[0]} is not the file that was measured", "run `hubplugin run` again")
    return made
