"""What the embedded hub has not: 501 with a sentence, and which 404 it is for what does not exist."""

from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from localhub_helpers import api_of, http_of, refused

from hubplugin import localhub
from hubplugin.localhub.server import Running


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with localhub.start(tmp_path_factory.mktemp("hub")) as running:
        api = api_of(running)
        api.create_repo("local/m")
        api.create_repo("local/d", repo_type="dataset")
        api.create_repo("local/s", repo_type="space", space_sdk="static")
        yield running


CALLS: list[tuple[str, Callable[[HfApi], object]]] = [
    ("Spaces that run", lambda api: api.request_space_hardware("local/s", "t4-medium")),
    ("Spaces that run", lambda api: api.get_space_runtime("local/s")),
    ("Spaces that run", lambda api: api.add_space_secret("local/s", "KEY", "value")),
    ("Spaces that run", lambda api: api.get_space_variables("local/s")),
    ("Spaces that run", lambda api: api.restart_space("local/s")),
    ("Spaces that run", lambda api: api.pause_space("local/s")),
    ("Spaces that run", lambda api: api.list_space_templates()),
    ("`hardware`", lambda api: api.create_repo("t", repo_type="space", space_sdk="gradio", space_hardware="t4-small")),
    ("jobs", lambda api: api.run_job(image="python", command=["x"], namespace="local")),
    ("jobs", lambda api: list(api.list_jobs(namespace="local"))),
    ("webhooks", lambda api: api.list_webhooks()),
    ("webhooks", lambda api: api.get_webhook("0" * 24)),
    ("buckets", lambda api: api.create_bucket("local/b")),
    ("buckets", lambda api: api.bucket_info("local/b")),
    ("papers", lambda api: list(api.list_papers(query="x"))),
    ("papers", lambda api: api.paper_info("2307.09288")),
    ("likes", lambda api: api.unlike("local/m")),
    ("likes", lambda api: list(api.list_repo_likers("local/m"))),
    ("likes", lambda api: api.list_liked_repos("local")),
    ("pages of users", lambda api: api.get_user_overview("local")),
    ("pages of users", lambda api: list(api.list_organization_members("org"))),
    ("leaderboards", lambda api: api.get_dataset_leaderboard("local/d")),
    ("list of all tags", lambda api: api.get_model_tags()),
    ("apps", lambda api: list(api.list_models(apps="ollama"))),
]


@pytest.mark.parametrize(("what", "call"), CALLS, ids=[f"{number}-{what}" for number, (what, _) in enumerate(CALLS)])
def test_what_the_hub_has_not_is_said(api: HfApi, what: str, call: Callable[[HfApi], object]) -> None:
    with pytest.raises(HfHubHTTPError, match=what) as error:
        call(api)
    response = error.value.response
    assert response is not None and response.status_code == 501
    assert response.headers["x-error-code"] == "NotSupported" and what in response.headers["x-error-message"]
    assert not api.repo_exists("local/t", repo_type="space")


@pytest.mark.parametrize("repo", ["gpt2", "missing_repo_id", "local/no", "nobody/m"])
def test_a_missing_repo_is_a_missing_repo_wherever_it_is_asked_for(api: HfApi, repo: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: api.model_info(repo),
        lambda: api.model_info(repo, revision="main"),
        lambda: api.list_repo_commits(repo),
        lambda: api.list_repo_refs(repo),
        lambda: list(api.list_repo_tree(repo)),
        lambda: api.get_paths_info(repo, "a"),
        lambda: api.hf_hub_download(repo, "a"),
        lambda: api.create_branch(repo, branch="b"),
        lambda: api.create_tag(repo, tag="t"),
        lambda: api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=repo),
        lambda: api.super_squash_history(repo),
        lambda: list(api.list_lfs_files(repo)),
        lambda: list(api.get_repo_discussions(repo)),
        lambda: api.create_discussion(repo, "t"),
        lambda: api.update_repo_settings(repo, private=True),
        lambda: api.grant_access(repo, "local"),
        lambda: api.auth_check(repo),
        lambda: api.delete_repo(repo),
        lambda: api.unlike(repo),
        lambda: api.duplicate_repo(repo, "local/copy"),
    ]
    for call in calls:
        with pytest.raises(RepositoryNotFoundError):
            call()
    assert not api.repo_exists(repo) and not api.revision_exists(repo, "main") and not api.file_exists(repo, "a")


def test_a_missing_revision_is_not_a_missing_repo(api: HfApi) -> None:
    calls: list[Callable[[], object]] = [
        lambda: api.model_info("local/m", revision="no"),
        lambda: api.list_repo_commits("local/m", revision="no/branch"),
        lambda: list(api.list_repo_tree("local/m", revision="no")),
        lambda: api.hf_hub_download("local/m", ".gitattributes", revision="0" * 40),
        lambda: api.create_tag("local/m", tag="invalid tag", revision="no"),
        lambda: api.create_tag("local/m", tag="v1", revision="refs/pr/9"),
        lambda: api.create_branch("local/m", branch="b", revision="no"),
        lambda: api.delete_branch("local/m", branch="no"),
        lambda: api.super_squash_history("local/m", branch="no"),
    ]
    for call in calls:
        with pytest.raises(RevisionNotFoundError):
            call()
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("local/m", "no"))
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("local/m", "no")
    with refused(422):
        api.create_tag("local/m", tag="invalid tag")
    with refused(403, "Cannot delete refs/heads/main"):
        api.delete_branch("local/m", branch="main")


@pytest.mark.parametrize("url", ["/api/models/local/m/what-is-this", "/api/nothing", "/nothing/at/all", "/api/x/y/z"])
def test_an_unknown_url_is_not_found(hub: Running, url: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        response = http_of(hub).request(method, url)
        assert (response.status_code, response.headers["x-error-code"]) == (404, "NotFound")
        assert "No such URL" in response.json()["error"]


def test_a_private_repo_is_not_told_from_a_missing_one(hub: Running, api: HfApi) -> None:
    api.create_repo("local/secret", private=True, exist_ok=True)
    other = http_of(hub, localhub.add_user(hub.root, "other"))
    for url in ("likers", "what-is-this", "commits/main", "resource-group", "lfs-files"):
        secret, missing = (other.get(f"/api/models/local/{name}/{url}") for name in ("secret", "missing"))
        assert (secret.status_code, secret.json()) == (missing.status_code, missing.json())
        assert secret.status_code == 404
