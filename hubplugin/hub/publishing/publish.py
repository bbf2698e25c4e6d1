"""Publishes the variants of a manifest: one commit for each, and a collection of them.

Knows reports and the gate; a variant that failed its gate is never published. Measures and renders nothing, and leaves
requests to the Hub to push.py and targets.py.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import constants

from hubplugin import report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import PAPERS, PLOTS, PUSHED, SCORES_FILE, SIGNATURE, allowed
from hubplugin.disk import changed_files
from hubplugin.errors import GateError, HubError, HubUnreachable, PlanError
from hubplugin.hub import client
from hubplugin.hub.publishing import bases, hub_card, push, targets
from hubplugin.hub.publishing.bases import check_base, check_licence
from hubplugin.hub.publishing.push import FileChange
from hubplugin.hub.publishing.targets import Target
from hubplugin.hub.sending import signing
from hubplugin.hub.snapshots import Known
from hubplugin.manifest.publish import Publish
from hubplugin.manifest.schema import Document
from hubplugin.plan.checks import sources
from hubplugin.progress import progress
from hubplugin.report import Report

__all__ = ["changes", "check_base", "check_licence", "dry_run", "preflight", "publish"]

TEXTS = ("", ".md", ".txt", ".rst", ".html", ".pdf")


def publish(document: Document, out: Path, force: bool = False) -> list[push.Pushed]:
    """One atomic commit per variant that passed its gate, and a collection of them.

    What others changed upstream since our last commit is never reverted without `force` (push.py). Raises before the
    first upload: PlanError without `publish:` in the manifest, or for a key that cannot sign, CheckpointError where a
    variant is missing, GateError where it is stale or failed its gate, HubError where its licence forbids publishing,
    its base is private, the Hub refuses a card, or others have changed what a commit would overwrite.
    """
    reports, prepared = _prepared(document, out, force)
    for ready in prepared:
        if ready.refusal:
            raise ready.refusal
    published: list[push.Pushed] = []
    notes: dict[str, str] = {}
    for variant, ready in zip(reports, prepared, strict=True):
        pushed = push.commit(ready)
        progress(f"publish {pushed.url} {'commit ' + pushed.commit[:12] if pushed.changed else 'unchanged, no commit'}")
        note = f"{variant.variant}: {variant.disk_ratio:.2f} times smaller on disk"
        repo = ready.target.repo
        notes[repo] = f"{notes[repo]}; {note}" if repo in notes else note
        published.append(pushed)
    asked = document.manifest.publish
    if asked and asked.collection:
        progress(f"publish {push.collect(asked.collection, _owner(document), notes, asked.private)}")
    return published


def dry_run(document: Document, out: Path, force: bool = False) -> Iterator[str]:
    """What `publish` would do, in lines: repo, what becomes of a file, bytes to send and path, with tabs between them.

    A file is new, changed or removed; same: the repo holds it already; kept: as others made it; conflict: others have
    changed it, and publishing is refused without `force`. Changes nothing. Raises what `publish` raises, for a conflict
    after the last line.
    """
    return map(str, changes(document, out, force))


def changes(document: Document, out: Path, force: bool = False) -> Iterator[FileChange]:
    """The same as records."""
    _, prepared = _prepared(document, out, force)
    for ready in prepared:
        yield from ready.changes()
    for ready in prepared:
        made = "" if ready.standing else f"make the {'private' if ready.target.private else 'public'} repo, then "
        sent = f"send {len(ready.sent)} files, {ready.bytes} bytes" if ready.sent else "send nothing"
        progress(f"dry run {ready.target.shown}: would {made}{sent}; nothing was changed")
    for ready in prepared:
        if ready.refusal:
            raise ready.refusal


def _prepared(document: Document, out: Path, force: bool) -> tuple[list[Report], list[push.Prepared]]:
    """The reports of all variants, and their repos as they were found. Changes nothing."""
    manifest = document.manifest
    if manifest.publish is None:
        raise PlanError(
            f"{document.path}: publish",
            "this manifest names no repo",
            'add publish: {repo: "you/{model}-{variant}"}',
        )
    sources.check_repos(document)
    signer = signing.signer(document)
    reports = [_current_report(out / name, document) for name in manifest.variants]
    report.refuse_failed(reports)
    origins = {origin for variant in reports for origin in variant.origins}
    for origin in origins:
        check_base(origin, manifest.publish)
    now = {origin: bases.as_it_is_now(origin) for origin in origins}
    for base in now.values():
        check_base(base, manifest.publish)
    if manifest.publish.collection:
        targets.check_collection(manifest.publish.collection, _owner(document), private=manifest.publish.private)
    prepared = []
    for variant in reports:
        gated = any(now[origin].gated for origin in variant.origins)
        target = _target(document, variant.variant, gated)
        signing.sign(out / variant.variant, signer)
        ready = push.prepare(out / variant.variant, target, force=force)
        prepared.append(ready)
        if signer and (theirs := [name for name in ready.edits.kept if name not in signing.UNSIGNED]):
            progress(
                f"publish warning: {target.shown}: {SIGNATURE} does not fit what others made of {', '.join(theirs)}"
            )
    targets.check_owners(ready.target for ready in prepared if ready.standing is None)
    return reports, prepared


def _target(document: Document, variant: str, base_gated: bool = False) -> Target:
    """Where a variant goes."""
    manifest, publish = document.manifest, document.manifest.publish
    assert publish is not None
    return Target(
        manifest.repo_of(variant),
        publish.private,
        branch=manifest.branch_of(variant),
        tag=manifest.tag_of(variant),
        pull_request=publish.pull_request,
        gated=publish.gated or ("auto" if base_gated else None),
    )


def preflight(document: Document, base: Known, others: Sequence[Known] = ()) -> list[str]:
    """Before any work: raise HubError for what `publish` would refuse, as far as it is known without the variants.

    That is the base's licence, gate and privacy, the metadata that cards take from it, the repos as they stand, the
    collection, and the rights of the token. Returns notes: what cards say in other words than the base's, and what
    could not be asked for want of a token or a network. `base` is a peek or a snapshot, and so are `others`, students
    and teachers, whose licences hold too.
    """
    publish = document.manifest.publish
    if publish is None:
        return []
    for known in (base, *others):
        check_base(known, publish)
    notes = [*hub_card.notes(base.licence, base.languages), *signing.notes(document)]
    if base.published and not base.on_hub:
        told = f"cards name no folder as base_model; where it is published, write model: {base.published}"
        notes.append(f"the base is a variant that goes to {base.published}: {told}")
    not_asked = f"the repos were not looked at{_unknown(base, publish)}"
    if constants.HF_HUB_OFFLINE:
        return [*notes, f"publish: HF_HUB_OFFLINE is set: {not_asked}"]
    if client.token_in_use() is None:
        return [*notes, f"publish: no token is set (HF_TOKEN): {not_asked}"]
    try:
        check_base(bases.as_it_is_now(base), publish)
        hub_card.check(hub_card.inherited(base), f"{base.repo}: README.md")
        targets.check(_target(document, name) for name in document.manifest.variants)
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
    for name in model_folder.publishable(folder, PUSHED):
        ours = name in variant.files or name in (report.FILE_NAME, SIGNATURE, *PLOTS, SCORES_FILE)
        if not ours and not _by_hand(name):
            what = "is no file that `hubplugin run` made, nor a licence or notice; nothing was published"
            raise HubError(str(folder / name), what, "move it out of the folder")
    return variant


def _by_hand(name: str) -> bool:
    """Whether a file is a licence or a notice, which a folder may be given after it was measured."""
    ending = Path(name).suffix.lower()  # of LICENSE-2.0 a number, of license.pem what no licence is
    return allowed(name, PAPERS) and (ending in TEXTS or ending[1:].isdigit())
