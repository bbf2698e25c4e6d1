"""Publishes the variants of a manifest: one commit for each, and a collection of them.

Knows reports and the gate; a variant that failed its gate is never published. Measures and renders nothing, and leaves
requests to the Hub to push.py and targets.py.
"""

from pathlib import Path

from huggingface_hub import constants, get_token

from hubplugin import report
from hubplugin.disk import changed_files
from hubplugin.errors import GateError, HubUnreachable, PlanError
from hubplugin.hub import bases, hub_card, push, targets
from hubplugin.hub.bases import check_base, check_licence
from hubplugin.hub.snapshots import Known
from hubplugin.manifest.schema import Document, Publish
from hubplugin.progress import progress
from hubplugin.report import Report

__all__ = ["check_base", "check_licence", "preflight", "publish"]


def publish(document: Document, out: Path, force: bool = False) -> list[push.Pushed]:
    """One atomic commit per variant that passed its gate, and a collection of them.

    What others changed upstream since our last commit is never reverted without `force` (push.py). Raises before the
    first upload: PlanError without `publish:` in the manifest, CheckpointError where a variant is missing, GateError
    where it is stale or failed its gate, HubError where its licence forbids publishing, its base is private, the Hub
    refuses a card, or others have changed what a commit would overwrite.
    """
    manifest = document.manifest
    if manifest.publish is None:
        raise PlanError(
            f"{document.path}: publish",
            "this manifest names no repo",
            'add publish: {repo: "you/{model}-{variant}"}',
        )
    private, collection, owner = manifest.publish.private, manifest.publish.collection, _owner(document)
    reports = [_current_report(out / name, document) for name in manifest.variants]
    report.refuse_failed(reports)
    for variant in reports:
        check_base(variant.base, manifest.publish)
    now = {base: bases.as_it_is_now(base) for base in {variant.base for variant in reports}}
    for base in now.values():
        check_base(base, manifest.publish)
    if collection:
        targets.check_collection(collection, owner, private=private)
    prepared = [
        push.prepare(out / variant.variant, manifest.repo_of(variant.variant), private=private, force=force)
        for variant in reports
    ]
    published, notes = [], {}
    for variant, ready in zip(reports, prepared, strict=True):
        pushed = push.commit(ready, gated=now[variant.base].gated)
        progress(f"publish {pushed.url} {'commit ' + pushed.commit[:12] if pushed.changed else 'unchanged, no commit'}")
        notes[ready.repo] = f"{variant.variant}: {variant.disk_ratio:.2f} times smaller on disk"
        published.append(pushed)
    if collection:
        progress(f"publish {push.collect(collection, owner, notes, private)}")
    return published


def preflight(document: Document, base: Known) -> list[str]:
    """Before any work: raise HubError for what `publish` would refuse, as far as it is known without the variants.

    That is the base's licence, gate and privacy, the metadata that cards take from it, the repos as they stand, the
    collection, and the rights of the token. Returns notes: what cards say in other words than the base's, and what
    could not be asked for want of a token or a network. `base` is a peek or a snapshot.
    """
    publish = document.manifest.publish
    if publish is None:
        return []
    check_base(base, publish)
    notes = hub_card.notes(base.licence, base.languages)
    not_asked = f"the repos were not looked at{_unknown(base, publish)}"
    if constants.HF_HUB_OFFLINE:
        return [*notes, f"publish: HF_HUB_OFFLINE is set: {not_asked}"]
    if get_token() is None:
        return [*notes, f"publish: no token is set (HF_TOKEN): {not_asked}"]
    repos = [document.manifest.repo_of(name) for name in document.manifest.variants]
    try:
        check_base(bases.as_it_is_now(base), publish)
        hub_card.check(hub_card.inherited(base), f"{base.repo}: README.md")
        targets.check(repos, private=publish.private)
        if publish.collection:
            targets.check_collection(publish.collection, _owner(document), private=publish.private)
    except HubUnreachable as error:
        notes.append(f"publish: {error.what}: {not_asked}")
    return notes


def _unknown(base: Known, publish: Publish) -> str:
    """What a note adds where a public variant may turn out to be of a private base."""
    unknown = base.on_hub and base.private is None and not publish.private and not publish.accept_private_base
    return f", nor whether {base.repo} is private" if unknown else ""


def _owner(document: Document) -> str:
    """The user or organization that variants are published under."""
    assert document.manifest.publish is not None
    return document.manifest.publish.repo.split("/")[0]


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
