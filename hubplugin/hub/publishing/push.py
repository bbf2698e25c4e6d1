"""Pushes a folder as one commit and groups repos in a collection.

Knows repos, commits and names of files. Knows no licence, no manifest and no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
)

from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import PUSHED
from hubplugin.errors import HubError
from hubplugin.hub.client import clear_errors, connect, endpoint, token_in_use
from hubplugin.hub.publishing import hub_card, targets
from hubplugin.hub.publishing.targets import Standing, Target
from hubplugin.hub.publishing.upstream import COMMIT_MESSAGE, Edits, edits, record, shown
from hubplugin.hub.sending import secrets, transfer
from hubplugin.manifest.publish import MAIN
from hubplugin.progress import progress

CARD = "README.md"


@dataclass(frozen=True)
class FileChange:
    """What publishing would do with one file."""

    repo: str  # with branch or pull request, where it does not go to main
    state: str  # new | changed | removed | same | kept | conflict
    bytes: int  # to send
    path: str  # in the repo

    def __str__(self) -> str:
        return f"{self.repo}\t{self.state}\t{self.bytes}\t{self.path}"


@dataclass(frozen=True)
class Prepared:
    """A folder that may be pushed: its files, and the repo as it stood when it was looked at."""

    folder: Path
    target: Target
    names: tuple[str, ...]
    force: bool = False
    standing: Standing | None = None  # None: there is no such repo yet
    edits: Edits = field(default_factory=Edits)
    refusal: HubError | None = None  # why it may not be pushed

    @property
    def sent(self) -> tuple[str, ...]:
        """The files that the repo does not hold as they are."""
        return tuple(name for name in self.names if name not in self.edits.held and name not in self.edits.kept)

    @property
    def removed(self) -> tuple[str, ...]:
        """The files that the commit deletes: ours of an earlier version, and what `force` takes away."""
        forced = (path for path in self.edits.lost if path not in self.names and path in self.edits.there)
        return tuple(sorted((*self.edits.stale, *forced)))

    def changes(self) -> list[FileChange]:
        """What becomes of each file."""
        states = dict.fromkeys(self.names, "same") | dict.fromkeys(self.removed, "removed")
        states |= {name: "changed" if name in self.edits.there else "new" for name in self.sent}
        states |= dict.fromkeys(self.edits.kept, "kept")
        states |= {} if self.force else dict.fromkeys(self.edits.lost, "conflict")
        return [
            FileChange(self.target.shown, state, self._size(name) if state in ("new", "changed") else 0, name)
            for name, state in sorted(states.items())
        ]

    @property
    def bytes(self) -> int:
        """Of the files to send."""
        return sum(map(self._size, self.sent))

    def _size(self, name: str) -> int:
        return (self.folder / name).stat().st_size


@dataclass(frozen=True)
class Pushed:
    """Where a folder was published."""

    url: str
    commit: str
    changed: bool  # False: the repo already held exactly these files, no commit was made


def push(
    folder: Path, repo: str, *, private: bool, gated: bool = False, force: bool = False, files: tuple[str, ...] = PUSHED
) -> Pushed:
    """Publish a folder as exactly one commit on main, or as none where nothing changed.

    Files that an earlier commit of ours left upstream (shards of an earlier version) are deleted by the same commit.
    What others have written since our last commit stays; where it cannot, because our file changed too or is one that
    was measured, this is refused. `force` takes our side in all files that we write. `gated` closes the repo to
    readers who did not ask, before a byte is uploaded. Raises HubError, and then no file was published.
    """
    target = Target(repo, private, gated="auto" if gated else None)
    return commit(prepare(folder, target, force=force, files=files))


def prepare(folder: Path, target: Target, *, force: bool = False, files: tuple[str, ...] = PUSHED) -> Prepared:
    """Look at a folder, its card and the repo, and change nothing.

    Raises HubError for what `commit` would refuse, but for what it would lose of others: that is `refusal`.
    """
    names = tuple(model_folder.publishable(folder, files))
    secrets.check(folder, names, token_in_use())
    return transfer.retried(lambda _: _prepare(folder, target, names, force), f"publish {target.shown}")


def _prepare(folder: Path, target: Target, names: tuple[str, ...], force: bool) -> Prepared:
    api, repo = connect(), target.repo
    if CARD in names:
        hub_card.check((folder / CARD).read_text("utf-8"), repo)
    prepared = Prepared(folder, target, names, force)
    with clear_errors(repo):
        if api.repo_exists(repo):
            return _look(api, prepared)
        if target.pull_request:
            raise targets.no_repo(repo)
    return prepared


def _look(api: HfApi, prepared: Prepared) -> Prepared:
    """A repo that is there, compared with the folder."""
    folder, target, names, force = prepared.folder, prepared.target, prepared.names, prepared.force
    standing = targets.look(api, target)
    if standing.private and not target.private:
        progress(f"push   {target.repo} is private already and stays so")
    found = edits(api, target.repo, standing.head, folder, names)
    if force:
        found = replace(found, kept=tuple(path for path in found.kept if path not in names))
    for line in shown(api, target.repo, found, folder):
        progress(f"push   {target.shown} {line}" if " by others: " in line else line)
    if found.kept:
        progress(f"push   {target.shown} these stay as they are: {', '.join(found.kept)}")
    looked = replace(prepared, standing=standing, edits=found)
    return replace(looked, refusal=_refusal(looked, standing))


def _refusal(prepared: Prepared, standing: Standing) -> HubError | None:
    """Why this commit would lose something, or let in readers whom nobody let in."""
    found, target = prepared.edits, prepared.target
    if found.lost and not prepared.force:
        since = f"since our commit {found.since[:12]}" if found.since else "and its history has no commit of ours"
        return HubError(
            target.shown,
            f"others have changed {', '.join(found.lost)} {since}; nothing was published",
            "look at what differs above, then `hubplugin publish --force`, or undo it there, or use another repo",
        )
    as_tagged = not prepared.sent and not prepared.removed and standing.tagged in (standing.head, found.since)
    if standing.tagged and not as_tagged:
        return HubError(
            target.shown,
            f"the tag {target.tag} is at commit {standing.tagged[:12]}, which holds other files; nothing was published",
            "use another publish.tag, or delete that tag on the Hub",
        )
    if target.pull_request and standing.looser_than(target.gated):
        return HubError(
            target.repo,
            "the base is gated and this repo is not; nothing was published",
            "ask the repo's owner to gate it, or publish to a repo of your own",
        )
    return None


def commit(prepared: Prepared) -> Pushed:
    """Make the repo where there is none, then the commit and its tag, unless they are there. Raises HubError.

    Where the connection breaks, the repo is looked at again first: the commit may have arrived.
    """
    if prepared.refusal:
        raise prepared.refusal

    def attempt(tries: int) -> Pushed:
        with clear_errors(prepared.target.repo):
            return _commit(prepared if tries == 0 else _prepare(*_asked(prepared)), before=prepared)

    return transfer.retried(attempt, f"publish {prepared.target.shown}")


def _asked(prepared: Prepared) -> tuple[Path, Target, tuple[str, ...], bool]:
    return prepared.folder, prepared.target, prepared.names, prepared.force


def _commit(prepared: Prepared, before: Prepared) -> Pushed:
    api, target = connect(), prepared.target
    if prepared.standing is None:
        api.create_repo(target.repo, private=target.private, exist_ok=True)
        prepared = _look(api, prepared)
    standing = prepared.standing
    assert standing is not None
    if prepared.refusal:
        raise prepared.refusal
    if not target.pull_request and standing.looser_than(target.gated):
        api.update_repo_settings(target.repo, gated=target.gated)
    head = _send(api, prepared, standing)
    if target.tag and not standing.tagged:
        api.create_tag(target.repo, tag=target.tag, revision=head.commit)
    # what an earlier try brought to the Hub has changed it, too
    was = before.standing.head if before.standing else None
    return replace(head, changed=head.changed or head.commit != was)


def _send(api: HfApi, prepared: Prepared, standing: Standing) -> Pushed:
    """The commit, where it would change anything."""
    folder, target, found = prepared.folder, prepared.target, prepared.edits
    page = _page(target, standing)
    if not prepared.sent and not prepared.removed:
        return Pushed(page, standing.head, changed=False)
    if standing.new_branch:
        api.create_branch(target.repo, branch=target.branch, revision=standing.head, exist_ok=True)
    opens = target.pull_request and standing.pull_request is None
    added = [CommitOperationAdd(name, str(folder / name)) for name in prepared.sent]
    transfer.upload(api, target.repo, standing.revision, added, new=opens)
    made = api.create_commit(
        target.repo,
        [*added, *(CommitOperationDelete(path, is_folder=False) for path in prepared.removed)],
        commit_message=COMMIT_MESSAGE,
        commit_description=record(found, folder, prepared.names),
        revision=standing.revision,
        create_pr=opens or None,
        parent_commit=standing.head,
    )
    return Pushed(made.pr_url or page, made.oid, changed=True)


def _page(target: Target, standing: Standing) -> str:
    """The address of what was published."""
    url = f"{endpoint()}/{target.repo}"
    if standing.pull_request:
        return f"{url}/discussions/{standing.pull_request}"
    return url if target.branch == MAIN else f"{url}/tree/{target.branch}"


def collect(title: str, namespace: str, items: Mapping[str, str], private: bool) -> str:
    """Group repos (`items`: repo id -> note) in a collection; items already in it stay. Returns its URL.

    A public collection is not given the names of private repos.
    """
    api = connect()
    with clear_errors(f"collection {title!r} of {namespace}"):
        group = api.create_collection(title, namespace=namespace, private=private, exists_ok=True)
        for repo, note in items.items():
            if not group.private and api.model_info(repo).private:
                progress(f"publish {repo} is private and stays out of the public collection {title!r}")
                continue
            api.add_collection_item(group.slug, repo, "model", note=note[:500] or None, exists_ok=True)
    return f"{endpoint()}/collections/{group.slug}"
