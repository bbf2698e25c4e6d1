"""Publishes the variants of a manifest: one commit for each, and a collection of them.

Knows reports, the gate and licences; a variant that failed its gate is never published. Measures and renders nothing,
and leaves requests to the Hub to push.py.
"""

from pathlib import Path

from huggingface_hub import get_token

from hubplugin import licences, report
from hubplugin.disk import changed_files
from hubplugin.errors import GateError, HubError, HubUnreachable, PlanError
from hubplugin.hub import push
from hubplugin.hub.snapshots import Known
from hubplugin.licences import Derivatives
from hubplugin.manifest.schema import Document, Publish
from hubplugin.progress import progress
from hubplugin.report import Base, Report


def publish(document: Document, out: Path, force: bool = False) -> list[push.Pushed]:
    """One atomic commit per variant that passed its gate, and a collection of them.

    What others changed upstream since our last commit is never reverted without `force` (push.py). Raises before the
    first upload: PlanError without `publish:` in the manifest, CheckpointError where a variant is missing, GateError
    where it is stale or failed its gate, HubError where its licence forbids publishing, or its base is private.
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
        check_base(variant.base, manifest.publish)
    published, notes = [], {}
    for variant in reports:
        repo = manifest.repo_of(variant.variant)
        private, gated = manifest.publish.private, variant.base.gated
        pushed = push.push(out / variant.variant, repo, private=private, gated=gated, force=force)
        progress(f"publish {pushed.url} {'commit ' + pushed.commit[:12] if pushed.changed else 'unchanged, no commit'}")
        notes[repo] = f"{variant.variant}: {variant.disk_ratio:.2f} times smaller on disk"
        published.append(pushed)
    if manifest.publish.collection:
        namespace = manifest.publish.repo.split("/")[0]
        url = push.collect(manifest.publish.collection, namespace, notes, manifest.publish.private)
        progress(f"publish {url}")
    return published


def preflight(document: Document, base: Known) -> list[str]:
    """Before any work: raise HubError for what `publish` would refuse, as far as it is known without the variants.

    Returns notes: what could not be asked, for want of a token or a network, and how the card will name the licence.
    """
    publish = document.manifest.publish
    if publish is None:
        return []
    check_base(base, publish)
    notes = []
    if changed := licences.other_id(base.licence):
        notes.append(
            f"the Hub knows no licence {base.licence!r}: cards say `license: other`, `license_name: {changed}`"
        )
    repos = [document.manifest.repo_of(name) for name in document.manifest.variants]
    if get_token() is None:
        return [*notes, "publish: no token is set (HF_TOKEN): the repos were not looked at"]
    try:
        for repo in repos:
            push.check(repo, private=publish.private)
    except HubUnreachable as error:
        notes.append(f"publish: {error.what}: the repos were not looked at")
    return notes


def check_base(base: Base | Known, publish: Publish) -> None:
    """Raise HubError where variants of a base may not be published as the manifest says."""
    check_licence(base, publish.accept_license)
    if base.private and not publish.private and not publish.accept_private_base:
        raise HubError(
            f"{base.repo}: private",
            "the base is private, and the manifest makes public what is made from it",
            "set publish.private: true, or publish.accept_private_base: true",
        )


def check_licence(base: Base | Known, accepted: bool) -> None:
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
        raise GateError(
            str(folder),
            "was made from another version of the manifest",
            "run `hubplugin run` again: weights that the edit does not concern are kept",
        )
    changed = changed_files(folder, variant.files)
    if changed:
        raise GateError(str(folder), f"{changed[0]} is not the file that was measured", "run `hubplugin run` again")
    return variant
