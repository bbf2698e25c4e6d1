"""The repos and the collection that variants go to: whether they may go there, before anything is made or changed.

Knows visibility, owners and the rights of a token. Knows no folder and no licence.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import HfApi, ModelInfo

from hubplugin import report
from hubplugin.checkpoint import model_folder
from hubplugin.checkpoint.model_folder import allowed
from hubplugin.errors import HubError
from hubplugin.hub.client import clear_errors, connect


def check(repos: Iterable[str], *, private: bool) -> None:
    """Raise HubError where this token may not publish to one of the repos, or should not. Changes nothing."""
    api = connect()
    with clear_errors("HF_TOKEN"):
        me = api.whoami()
    for repo in repos:
        with clear_errors(repo):
            if api.repo_exists(repo):
                look(api, repo, private=private)
            else:
                _check_owner(repo, me)


def look(api: HfApi, repo: str, *, private: bool) -> ModelInfo:
    """A repo that is there, once it is known that we may and should publish to it. Raises HubError where not."""
    info = api.model_info(repo)
    upstream = [sibling.rfilename for sibling in info.siblings or ()]
    _check_target(repo, upstream, private=private, is_private=bool(info.private))
    api.auth_check(repo, write=True)
    return info


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


def _check_owner(repo: str, me: Mapping[str, Any]) -> None:
    """Whether the owner of a token, as `whoami` describes them, may make a repo that is not there yet."""
    owner = repo.split("/")[0]
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


def _check_target(repo: str, upstream: Iterable[str], *, private: bool, is_private: bool) -> None:
    """Raise HubError where publishing would disclose or overwrite something."""
    if private and not is_private:
        raise HubError(
            repo,
            "the repo is public and the manifest says private; nothing was published",
            "set publish.private: false, make the repo private, or use another name",
        )
    weights = any(allowed(name, ("*.safetensors", *model_folder.PICKLES)) for name in upstream)
    if weights and report.FILE_NAME not in upstream:
        raise HubError(
            repo,
            "the repo holds a model that hubplugin did not publish; nothing was published",
            "use another `publish.repo`, or delete that repo first",
        )
