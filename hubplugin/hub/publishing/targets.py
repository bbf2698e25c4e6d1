"""The repos and the collection that variants go to: whether they may go there, before anything is made or changed.

Knows visibility, owners, branches, tags, pull requests and the rights of a token. Knows no folder and no licence.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from huggingface_hub import GitRefs, HfApi

from hubplugin import report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import allowed
from hubplugin.errors import HubError
from hubplugin.hub.client import clear_errors, connect
from hubplugin.hub.publishing.upstream import COMMIT_MESSAGE
from hubplugin.manifest.publish import MAIN

Gate = Literal["auto", "manual"]
STRICTNESS: dict[str | bool | None, int] = {None: 0, False: 0, "auto": 1, "manual": 2}


@dataclass(frozen=True)
class Target:
    """Where a variant goes, as a manifest asks for it."""

    repo: str
    private: bool
    branch: str = MAIN
    tag: str | None = None
    pull_request: bool = False
    gated: Gate | None = None

    @property
    def shown(self) -> str:
        """The repo, with its branch where that is not main."""
        return self.repo if self.branch == MAIN else f"{self.repo}@{self.branch}"


@dataclass(frozen=True)
class Standing:
    """A repo as it was found."""

    head: str  # the commit that ours comes after
    revision: str  # the branch, or the ref of the pull request, that ours goes to
    private: bool
    gated: str | bool | None
    new_branch: bool = False
    pull_request: int | None = None  # the number of an open one of ours
    tagged: str | None = None  # the commit of the tag, where there is one by its name

    def looser_than(self, gated: Gate | None) -> bool:
        """Whether a gate lets in fewer readers than the repo does."""
        return STRICTNESS[gated] > STRICTNESS.get(self.gated, 0)


def check(targets: Iterable[Target]) -> None:
    """Raise HubError where this token may not publish to one of the repos, or should not. Changes nothing."""
    api = connect()
    with clear_errors("HF_TOKEN"):
        me = api.whoami()
    for target in targets:
        with clear_errors(target.repo):
            if api.repo_exists(target.repo):
                look(api, target)
            else:
                _check_owner(target, me)


def check_owners(targets: Iterable[Target]) -> None:
    """Raise HubError where this token may not make one of these repos, none of which is there."""
    if absent := list(targets):
        with clear_errors("HF_TOKEN"):
            me = connect().whoami()
        for target in absent:
            _check_owner(target, me)


def look(api: HfApi, target: Target) -> Standing:
    """A repo that is there, once it is known that we may and should publish to it. Raises HubError where not."""
    refs = api.list_repo_refs(target.repo)
    number = _open_pull_request(api, target.repo) if target.pull_request else None
    revision = target.branch if number is None else f"refs/pr/{number}"
    there = number is not None or any(branch.name == target.branch for branch in refs.branches)
    # a branch begins where the repo does: without the files of main
    start = revision if there else api.list_repo_commits(target.repo)[-1].commit_id
    info = api.model_info(target.repo, revision=start)
    upstream = [sibling.rfilename for sibling in info.siblings or ()]
    _check_target(target, upstream, is_private=bool(info.private))
    api.auth_check(target.repo, write=not target.pull_request)
    tagged = _tagged(refs, target.tag)
    return Standing(str(info.sha), revision, bool(info.private), info.gated, not there, number, tagged)


def _open_pull_request(api: HfApi, repo: str) -> int | None:
    """The number of the pull request that we opened in a repo, and that nobody has merged or closed."""
    mine = api.get_repo_discussions(
        repo, author=api.whoami()["name"], discussion_type="pull_request", discussion_status="open"
    )
    return next((opened.num for opened in mine if opened.title == COMMIT_MESSAGE), None)


def _tagged(refs: GitRefs, tag: str | None) -> str | None:
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def check_collection(title: str, owner: str, *, private: bool) -> None:
    """Raise HubError where a public collection of this title would show the names of private repos."""
    if not private:
        return
    api, where = connect(), f"collection {title!r} of {owner}"
    with clear_errors(where):
        public = any(group.title == title and not group.private for group in api.list_collections(owner=owner))
    if public:
        raise HubError(
            where,
            "the collection is public and would show the names of private repos",
            "make it private, set publish.private: false, or use another title in publish.collection",
        )


def _check_owner(target: Target, me: Mapping[str, Any]) -> None:
    """Whether the owner of a token, as `whoami` describes them, may make a repo that is not there yet."""
    repo, owner = target.repo, target.repo.split("/")[0]
    if target.pull_request:
        raise no_repo(repo)
    roles = {me["name"]: "admin", **{group["name"]: group.get("roleInOrg") for group in me.get("orgs", ())}}
    if owner.casefold() not in {name.casefold() for name in roles}:
        raise HubError(
            repo,
            f"there is no such repo, and {me['name']}, whose token this is, does not belong to {owner}",
            "use another `publish.repo`, or a token of that owner",
        )
    # of a fine-grained token only the Hub knows what it may do, once it is tried
    token = me.get("auth", {}).get("accessToken", {}).get("role")
    if "read" in (token, *(role for name, role in roles.items() if name.casefold() == owner.casefold())):
        raise HubError(
            repo,
            f"there is no such repo, and this token of {me['name']} may only read",
            f"set HF_TOKEN to a token that may write to repos of {owner}",
        )


def no_repo(repo: str) -> HubError:
    """Why there can be no pull request."""
    what = "there is no such repo, or this token cannot see it, so it takes no pull request"
    return HubError(repo, what, "check publish.repo, ask its owner to make it, or remove publish.pull_request")


def _check_target(target: Target, upstream: Iterable[str], *, is_private: bool) -> None:
    """Raise HubError where publishing would disclose or overwrite something."""
    if target.private and not is_private:
        raise HubError(
            target.repo,
            "the repo is public and the manifest says private; nothing was published",
            "set publish.private: false, make the repo private, or use another name",
        )
    weights = any(allowed(name, ("*.safetensors", *model_folder.PICKLES)) for name in upstream)
    if weights and report.FILE_NAME not in upstream:
        raise HubError(
            target.shown,
            "the repo holds a model that hubplugin did not publish; nothing was published",
            "use another `publish.repo`, or delete that repo first",
        )
