"""Files of the embedded hub: which become LFS files, which are ignored, raw files, and revisions with slashes."""

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError
from localhub_helpers import api_of, http_of, refused

from hubplugin import localhub
from hubplugin.localhub.contents import attributes
from hubplugin.localhub.server import Running


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with localhub.start(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture
def repo(api: HfApi, request: pytest.FixtureRequest) -> str:
    """A new repo for each test."""
    return api.create_repo(f"local/r-{abs(hash(request.node.name))}").repo_id


def commit(api: HfApi, repo: str, files: dict[str, bytes], **kwargs: Any) -> None:
    adds = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(repo, adds, commit_message="m", **kwargs)


def lfs_paths(api: HfApi, repo: str, **kwargs: Any) -> set[str]:
    siblings = api.model_info(repo, files_metadata=True, **kwargs).siblings or []
    return {sibling.rfilename for sibling in siblings if sibling.lfs}


def download(http: httpx.Client, repo: str, path: str, revision: str = "main", how: str = "resolve") -> bytes:
    return http.get(f"/{repo}/{how}/{revision}/{path}").raise_for_status().content


def preupload(http: httpx.Client, repo: str, paths: list[str], **body: str) -> dict[str, dict[str, Any]]:
    sample = base64.b64encode(b"text").decode()
    files = [{"path": path, "size": 4, "sample": sample} for path in paths]
    response = http.post(f"/api/models/{repo}/preupload/main", json={"files": files, **body}).raise_for_status()
    return {file["path"]: file for file in response.json()["files"]}


# .gitattributes


def test_a_new_repo_has_the_hubs_gitattributes(api: HfApi, http: httpx.Client, repo: str) -> None:
    model = download(http, repo, ".gitattributes").decode()
    assert "*.safetensors filter=lfs diff=lfs merge=lfs -text\n" in model and "*.png" not in model
    dataset = api.create_repo("local/data", repo_type="dataset").repo_id
    text = http.get(f"/datasets/{dataset}/resolve/main/.gitattributes").text
    assert "*.parquet filter=lfs" in text and "*.png filter=lfs" in text
    commit(api, repo, {"a.safetensors": b"x", "saved_model/d/x.txt": b"x", "run.tfevents.1": b"x", "a.txt": b"x"})
    assert lfs_paths(api, repo) == {"a.safetensors", "saved_model/d/x.txt", "run.tfevents.1"}


def test_lines_of_a_committed_gitattributes_are_honoured(api: HfApi, repo: str) -> None:
    rules = (
        b"# mine\n\n*.png filter=lfs diff=lfs merge=lfs -text\ndocs/** filter=lfs\n*.bin -filter\nkeep.png !filter\n"
    )
    commit(api, repo, {".gitattributes": rules})
    commit(api, repo, {"a.png": b"x", "d/b.png": b"x", "docs/deep/c.md": b"x", "w.bin": b"x", "keep.png": b"x"})
    assert lfs_paths(api, repo) == {"a.png", "d/b.png", "docs/deep/c.md"}
    assert lfs_paths(api, repo, revision="main") == lfs_paths(api, repo)


def test_a_gitattributes_in_the_same_commit_counts_where_the_client_sends_it(http: httpx.Client, repo: str) -> None:
    modes = {path: file["uploadMode"] for path, file in preupload(http, repo, ["a.md", "a.bin"]).items()}
    assert modes == {"a.md": "regular", "a.bin": "lfs"}
    files = preupload(http, repo, ["a.md", "a.bin"], gitAttributes="*.md filter=lfs")
    assert {path: file["uploadMode"] for path, file in files.items()} == {"a.md": "lfs", "a.bin": "regular"}


def test_a_binary_file_is_an_lfs_file_and_gets_a_line(api: HfApi, http: httpx.Client, repo: str) -> None:
    commit(api, repo, {"odd name[1].dat": b"\0weights", "plain.dat": b"text", "deep/w.safetensors": b"\0"})
    assert lfs_paths(api, repo) == {"odd name[1].dat", "deep/w.safetensors"}
    rules = download(http, repo, ".gitattributes").decode()
    assert rules.endswith("\nodd[[:space:]]name\\[1\\].dat filter=lfs diff=lfs merge=lfs -text\n")
    assert attributes.is_lfs(rules, "odd name[1].dat") and not attributes.is_lfs(rules, "odd name1.dat")
    before = rules
    commit(api, repo, {"odd name[1].dat": b"\0other weights"})
    assert download(http, repo, ".gitattributes").decode() == before


# .gitignore


@pytest.mark.parametrize("where", ["in the repo", "in the request"])
def test_ignored_files_are_told(api: HfApi, http: httpx.Client, repo: str, where: str) -> None:
    rules = "nested/*\n!nested/keep.txt\n*.tmp\n/only_root.txt\n# a comment\n"
    if where == "in the repo":
        commit(api, repo, {".gitignore": rules.encode()})
    paths = ["nested/a.txt", "nested/keep.txt", "d/x.tmp", "only_root.txt", "d/only_root.txt", "a.txt"]
    files = preupload(http, repo, paths, **({} if where == "in the repo" else {"gitIgnore": rules}))
    assert {path for path, file in files.items() if file["shouldIgnore"]} == {
        "nested/a.txt",
        "d/x.tmp",
        "only_root.txt",
    }


def test_the_client_does_not_publish_ignored_files(api: HfApi, repo: str, tmp_path: Path) -> None:
    for path, text in {".gitignore": "secret/\n*.log\n", "secret/key": "x", "a.log": "x", "a.txt": "x"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    api.upload_folder(repo_id=repo, folder_path=tmp_path)
    assert set(api.list_repo_files(repo)) == {".gitattributes", ".gitignore", "a.txt"}


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*.bin", "a.bin", True),
        ("*.bin", "d/e/a.bin", True),
        ("*.bin", "a.bin.txt", False),
        ("/*.bin", "d/a.bin", False),
        ("d/*.bin", "d/a.bin", True),
        ("d/*.bin", "x/d/a.bin", False),
        ("d/*.bin", "d/e/a.bin", False),
        ("**/d/a", "x/y/d/a", True),
        ("**/d/a", "d/a", True),
        ("d/**", "d/e/a", True),
        ("d/**", "d", False),
        ("d/**/a", "d/a", True),
        ("d/**/a", "d/x/y/a", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c]x", "bx", True),
        ("[!a-c]x", "bx", False),
        ("[^a-c]x", "dx", True),
        (r"\*x", "*x", True),
        (r"\*x", "ax", False),
        (r"\#x", "#x", True),
        ("[z-a]", "b", False),
        ("[", "a", False),
        ("\\", "a", False),
        ("[[:space:]]x", " x", True),
        ("A", "a", False),
    ],
)
def test_patterns_match_as_in_git(tmp_path: Path, pattern: str, path: str, matches: bool) -> None:
    assert attributes.is_lfs(f"{pattern} filter=lfs", path) == matches
    assert attributes.ignored(pattern, [path]) == ({path} if matches else set())
    if shutil.which("git") and " " not in path:
        (tmp_path / ".gitignore").write_text(f"{pattern}\n")
        (tmp_path / ".gitattributes").write_text(f"{pattern} filter=lfs\n")
        for command, said in ((["check-ignore", "--no-index"], path), (["check-attr", "filter"], "filter: lfs")):
            git = ["git", "-c", "core.ignorecase=false", "-C", str(tmp_path)]
            subprocess.run([*git, "init", "-q"], check=True)
            done = subprocess.run([*git, *command, "--", path], capture_output=True, text=True)
            assert (said in done.stdout) == matches, (command, done.stdout)


def test_a_folder_that_is_ignored_takes_everything_with_it() -> None:
    rules = "build/\n!build/keep.txt\nlogs\n*.tmp\n!important.tmp\n/a/**/z/\n!"
    paths = [
        "build/keep.txt",
        "x/build/y/z.txt",
        "build",
        "x/logs/a",
        "b.tmp",
        "x/important.tmp",
        "a/b/z/f",
        "a/z",
        "!",
    ]
    assert attributes.ignored(rules, paths) == {"build/keep.txt", "x/build/y/z.txt", "x/logs/a", "b.tmp", "a/b/z/f"}


# raw, renames, folders


def test_raw_is_the_file_as_git_has_it(api: HfApi, http: httpx.Client, repo: str) -> None:
    commit(api, repo, {"a.txt": b"text", "w.bin": b"\0weights"})
    assert download(http, repo, "a.txt", how="raw") == b"text"
    pointer = download(http, repo, "w.bin", how="raw")
    assert pointer.startswith(b"version https://git-lfs.github.com/spec/v1\noid sha256:") and b"size 8" in pointer
    for path, size in (("a.txt", 4), ("w.bin", len(pointer))):
        head = http.head(f"/{repo}/raw/main/{path}")
        assert (head.status_code, head.headers["content-length"]) == (200, str(size))
        part = http.get(f"/{repo}/raw/main/{path}", headers={"range": "bytes=0-0"})
        assert (part.status_code, part.headers["content-range"]) == (206, f"bytes 0-0/{size}")
    assert http.head(f"/{repo}/raw/main/no").headers["x-error-code"] == "EntryNotFound"
    assert http.get(f"/{repo}/raw/main/w.bin", headers={"range": "bytes=9999-"}).status_code == 416


def test_a_commit_may_rename_files_and_delete_folders_by_name(api: HfApi, http: httpx.Client, repo: str) -> None:
    commit(api, repo, {"a.txt": b"1", "w.bin": b"\0", "d/x.txt": b"2", "d/y.txt": b"3"})
    lines = [
        {"key": "header", "value": {"summary": "rename"}},
        {"key": "file", "value": {"path": "b.txt", "oldPath": "a.txt"}},
        {"key": "lfsFile", "value": {"path": "e/v.bin", "oldPath": "w.bin"}},
    ]
    body = "\n".join(map(json.dumps, lines))
    http.post(f"/api/models/{repo}/commit/main", content=body).raise_for_status()
    assert http.post(f"/api/models/{repo}/commit/main", content=body).headers["x-error-code"] == "EntryNotFound"
    api.create_commit(repo, [CommitOperationDelete("d")], commit_message="delete")
    assert set(api.list_repo_files(repo)) == {".gitattributes", "b.txt", "e/v.bin"}


def test_a_renamed_repo_can_be_downloaded_by_its_former_name(api: HfApi, http: httpx.Client, repo: str) -> None:
    commit(api, repo, {"a.txt": b"1"})
    api.move_repo(repo, f"{repo}-new")
    assert download(http, repo, "a.txt") == b"1"
    api.create_repo(repo)  # somebody takes the name
    assert http.head(f"/{repo}/resolve/main/a.txt").status_code == 404


# Revisions with slashes


@pytest.mark.parametrize("revision", ["feat/x", "deep/er/branch", "refs/pr/1", "refs/heads/main", "v1/rc+1"])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_revision_may_have_slashes(api: HfApi, http: httpx.Client, repo: str, revision: str, escaped: bool) -> None:
    commit(api, repo, {"d/a.txt": b"1"})
    commit(api, repo, {"pr.txt": b"1"}, create_pr=True)
    api.create_branch(repo, branch="feat/x")
    api.create_branch(repo, branch="deep/er/branch")
    api.create_tag(repo, tag="v1/rc+1")
    rev = revision.replace("/", "%2F") if escaped else revision
    url = f"/api/models/{repo}"
    assert [item["path"] for item in http.get(f"{url}/tree/{rev}/d").raise_for_status().json()] == ["d/a.txt"]
    paths = {item["path"] for item in http.get(f"{url}/tree/{rev}?recursive=true").raise_for_status().json()}
    assert {"d", "d/a.txt"} <= paths and ("pr.txt" in paths) == (revision == "refs/pr/1")
    assert http.get(f"{url}/commits/{rev}").raise_for_status().json()
    assert http.get(f"{url}/revision/{rev}").raise_for_status().json()["sha"]
    assert http.post(f"{url}/paths-info/{rev}", json={"paths": ["d/a.txt"]}).raise_for_status().json()
    for how in ("resolve", "raw"):
        assert download(http, repo, "d/a.txt", rev, how) == b"1"
        missing = http.get(f"/{repo}/{how}/{rev}/no/d/a.txt")
        assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")


def test_a_path_that_begins_like_a_branch_is_a_path(api: HfApi, http: httpx.Client, repo: str) -> None:
    commit(api, repo, {"x/a.txt": b"on main"})
    api.create_branch(repo, branch="main2/x")
    assert download(http, repo, "x/a.txt") == b"on main"
    assert download(http, repo, "x/a.txt", "main2/x") == b"on main"
    for url in (f"/{repo}/resolve/no/x/a.txt", f"/api/models/{repo}/tree/no/x", f"/api/models/{repo}/commits/no/x"):
        assert http.get(url).headers["x-error-code"] == "RevisionNotFound"


# LFS files of a repo


def test_lfs_files_are_listed_and_deleted_for_good(api: HfApi, http: httpx.Client, repo: str) -> None:
    commit(api, repo, {"a.bin": b"\0a", "a.txt": b"text"})
    commit(api, repo, {"a.bin": b"\0b", "same.bin": b"\0a"})
    api.create_branch(repo, branch="side")
    commit(api, repo, {"side.bin": b"\0side"}, revision="side")
    commit(api, repo, {"pr.bin": b"\0pr"}, create_pr=True)
    files = {file.filename: file for file in api.list_lfs_files(repo)}
    assert {name: file.ref for name, file in files.items()} == {
        "a.bin": "refs/heads/main",
        "same.bin": "refs/heads/main",
        "side.bin": "refs/heads/side",
        "pr.bin": "refs/pr/1",
    }
    assert all(file.size == len(b"\0a") for name, file in files.items() if name in ("a.bin", "same.bin"))
    titles = [item.title for item in api.list_repo_commits(repo)]
    api.permanently_delete_lfs_files(repo, [files["same.bin"]])  # also the first content of a.bin
    assert {file.filename for file in api.list_lfs_files(repo)} == {"a.bin", "side.bin", "pr.bin"}
    assert [item.title for item in api.list_repo_commits(repo)] == titles
    history = api.list_repo_commits(repo)
    assert api.list_repo_files(repo, revision=history[1].commit_id) == [".gitattributes", "a.txt"]
    assert set(api.list_repo_files(repo, revision="side")) == {".gitattributes", "a.bin", "a.txt", "side.bin"}
    assert api.get_discussion_details(repo, 1).conflicting_files == []
    commit(api, repo, {"again.bin": b"\0a"})  # which has to be uploaded again
    assert download(http, repo, "again.bin") == b"\0a"


def test_without_a_new_history_the_pointer_stays_and_the_file_is_gone(
    api: HfApi, http: httpx.Client, repo: str
) -> None:
    commit(api, repo, {"a.bin": b"\0kept?"})
    head = api.model_info(repo).sha
    api.permanently_delete_lfs_files(repo, list(api.list_lfs_files(repo)), rewrite_history=False)
    assert api.model_info(repo).sha == head and "a.bin" in api.list_repo_files(repo)
    with pytest.raises(EntryNotFoundError):
        api.get_paths_info(repo, "a.bin") and api.hf_hub_download(repo, "a.bin")
    for body in ({}, {"deletions": []}, {"deletions": {"sha": [5]}}):
        assert http.post(f"/api/models/{repo}/lfs-files/batch", json=body).status_code == 400


def test_lfs_files_are_copied_between_repos_without_an_upload(hub: Running, api: HfApi, http: httpx.Client) -> None:
    source = api.create_repo("local/source", private=True).repo_id
    commit(api, source, {"config.json": b"{}", "d/w.bin": b"\0weights", "d/v.bin": b"\0more"})
    target = api.create_repo("local/target", repo_type="dataset").repo_id
    api.copy_files(f"hf://{source}/d/", f"hf://datasets/{target}/copied/")
    operation = CommitOperationCopy("config.json", "c.json", src_repo_id=source, src_repo_type="model")
    api.create_commit(target, [operation], commit_message="copy", repo_type="dataset")
    expected = {".gitattributes", "copied/w.bin", "copied/v.bin", "c.json"}
    assert set(api.list_repo_files(target, repo_type="dataset")) == expected
    assert http.get(f"/datasets/{target}/resolve/main/copied/w.bin").content == b"\0weights"

    thief = api_of(hub, localhub.add_user(hub.root, "thief"))
    thief.create_repo("thief/m")
    sha256 = api.get_paths_info(source, "d/w.bin")[0].lfs.sha256
    body = {"target": {"type": "model", "name": "thief/m"}, "files": [{"sha256": sha256, "filename": "w.bin"}]}
    with http_of(hub, thief.token) as other:
        assert other.post(f"/api/models/{source}/lfs-files/duplicate", json=body).status_code == 404
        thief.create_repo("thief/empty")
        answer = other.post("/api/models/thief/empty/lfs-files/duplicate", json=body).json()
    assert answer["failed"][0]["sha256"] == sha256
    with refused(403):
        thief.permanently_delete_lfs_files(api.create_repo("local/open").repo_id, list(api.list_lfs_files(source)))


def test_the_client_follows_the_pages_of_a_long_history(api: HfApi, http: httpx.Client, repo: str) -> None:
    for number in range(4):
        commit(api, repo, {"a.txt": str(number).encode()})
    url, ids = f"/api/models/{repo}/commits/main?limit=2", []
    while url:
        page = http.get(url).raise_for_status()
        assert page.headers["x-total-count"] == "5" and len(page.json()) <= 2
        ids += [item["id"] for item in page.json()]
        url = page.links.get("next", {}).get("url", "")
    assert ids == [item.commit_id for item in api.list_repo_commits(repo)] and len(set(ids)) == 5
    assert http.get(f"/api/models/{repo}/commits/main?limit=2&cursor=x").json()
