"""Publishes the variants of a manifest: one commit for each, and a collection of them.

Knows reports, the gate and licences; a variant that failed its gate is never published. Measures and renders nothing,
and leaves requests to the Hub to push.py.
"""

from pathlib import Path

from hubplugin import licences, report
from hubplugin.disk import changed_files
from hubplugin.errors import GateError, HubError, PlanError
from hubplugin.hub import push
from hubplugin.licences import Derivatives
from hubplugin.manifest.schema import Document
from hubplugin.progress import progress
from hubplugin.report import Base, Report


def publish(document: Document, out: Path) -> list[push.Pushed]:
    """One atomic commit per variant that passed its gate, and a collection of them.

    Raises before the first upload: PlanError without `publish:` in the manifest, CheckpointError where a variant is
    missing, GateError where it is stale or failed its gate, HubError where its licence forbids publishing.
    """
    manifest = document.manifest
    if manifest.publish is None:
        raise PlanError(
            f"{document.path}: publish",
            "this manifest names no repo",
            'add publish: {repo: "you/{model}-{variant}"}',
        )
    reports = [_current_report(out / name, document) for name in manifest.variants]
    report.refuse_failed(reports)
    for variant in reports:
        check_licence(variant.base, manifest.publish.accept_license)
    published, notes = [], {}
    for variant in reports:
        repo = manifest.repo_of(variant.variant)
        pushed = push.push(out / variant.variant, repo, private=manifest.publish.private, gated=variant.base.gated)
        progress(f"publish {pushed.url} {'commit ' + pushed.commit[:12] if pushed.changed else 'unchanged, no commit'}")
        notes[repo] = f"{variant.variant}: {variant.disk_ratio:.2f} times smaller on disk"
        published.append(pushed)
    if manifest.publish.collection:
        namespace = manifest.publish.repo.split("/")[0]
        url = push.collect(manifest.publish.collection, namespace, notes, manifest.publish.private)
        progress(f"publish {url}")
    return published


def check_licence(base: Base, accepted: bool) -> None:
    """Raise HubError where a model made from `base` may not be published.

    A no-derivatives licence forbids it. A gated base, or a licence with duties, must be accepted by the manifest.
    """
    licence, found = (base.licence or "").lower(), licences.derivatives(base.licence)
    if Derivatives.FORBIDDEN in found:
        raise HubError(
            f"{base.repo}: licence {licence}",
            "a no-derivatives licence forbids publishing a compressed model",
            "remove `publish:` and keep the variants on this machine",
        )
    duties = Derivatives.DUTIES in found
    if (duties or base.gated) and not accepted:
        why = f"its licence ({base.licence_name or licence}) puts duties on derivatives" if duties else "is gated"
        raise HubError(
            f"{base.repo}: licence",
            f"{why}, and the manifest does not accept that",
            "read the licence, then set publish.accept_license: true",
        )


def _current_report(folder: Path, document: Document) -> Report:
    """The report of a variant. Raises GateError unless its files and the manifest are those it was made with."""
    variant = report.read(folder)
    if variant.manifest_sha256 != document.sha256:
        raise GateError(str(folder), "was made from another version of the manifest", "run `hubplugin run` again")
    changed = changed_files(folder, variant.files)
    if changed:
        raise GateError(str(folder), f"{changed[0]} is not the file that was measured", "run `hubplugin run` again")
    return variant
