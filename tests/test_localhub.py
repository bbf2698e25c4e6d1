"""The embedded hub over plain HTTP and below: invalid input, permissions, and what is on disk."""

import base64
import hashlib
import json
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import HTTPException

from hubplugin import localhub
from hubplugin.errors import ServeError
from hubplugin.localhub.contents import discussions, git, metadata, repos
from hubplugin.localhub.contents.discussions import NewDiscussion
from hubplugin.localhub.contents.git import Commit, CommitDetails, Tree, TreeEntry
from hubplugin.localhub.contents.repos import Repo
from hubplugin.localhub.server import Running
from hubplugin.localhub.store import Store


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One hub for all tests, with a repo local/m that has a.txt. Tests do not change that file."""
    with localhub.start(tmp_path_factory.mktemp("hub")) as running:
        with client(running) as http:
            http.post("/api/repos/create", json={"name": "m"})
            commit(http, "local/m", {"a.txt": b"0123456789"})
        yield running


@pytest.fixture
def http(hub: Running) -> Iterator[httpx.Client]:
    with client(hub) as session:
        yield session


def client(hub: Running, token: str | None = None) -> httpx.Client:
    return httpx.Client(base_url=hub.url, headers={"authorization": f"Bearer {token or hub.token}"}, trust_env=False)


def commit_body(files: dict[str, bytes], **header: str) -> bytes:
    lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "s", **header}}]
    for path, data in files.items():
        value = {"path": path, "encoding": "base64", "content": base64.b64encode(data).decode()}
        lines.append({"key": "file", "value": value})
    return "\n".join(map(json.dumps, lines)).encode()


def commit(http: httpx.Client, repo: str, files: dict[str, bytes], **header: str) -> httpx.Response:
    return http.post(f"/api/models/{repo}/commit/main", content=commit_body(files, **header))


PATHS = [
    "../x",
    "a/../b",
    "a\\b",
    "..\\x",
    "/a",
    "a//b",
    "a/",
    "",
    ".",
    "a/.",
    ".git/config",
    "x/.GIT/y",
    "a\0b",
    "a\nb",
    "\ud800",
    "x" * 2000,
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_could_leave_a_folder_is_refused(http: httpx.Client, path: str) -> None:
    head = http.get("/api/models/local/m").json()["sha"]
    for operation in (
        {"key": "file", "value": {"path": path, "content": "eA==", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": path, "algo": "sha256", "oid": "0" * 64}},
    ):
        raw = b'{"key": "header", "value": {"summary": "s"}}\n' + json.dumps(operation).encode()
        response = http.post("/api/models/local/m/commit/main", content=raw)
        assert (response.status_code, response.headers["x-error-code"]) == (422, "InvalidPath")
    response = http.post(
        "/api/models/local/m/preupload/main", content=json.dumps({"files": [{"path": path, "size": 1, "sample": ""}]})
    )
    assert response.status_code == 422
    assert http.get("/api/models/local/m").json()["sha"] == head


def test_a_file_cannot_also_be_a_folder(http: httpx.Client) -> None:
    assert commit(http, "local/m", {"a.txt/b": b""}).status_code == 422
    assert commit(http, "local/m", {"x": b"", "x/y/z": b""}).status_code == 422


MALFORMED = [
    ("POST", "/api/repos/create", b"["),
    ("POST", "/api/repos/create", b"[]"),
    ("POST", "/api/repos/create", b"{}"),
    ("POST", "/api/repos/create", b"\xff"),
    ("POST", "/api/repos/create", b"[" * 100_000),
    ("POST", "/api/repos/create", {"name": 5}),
    ("POST", "/api/repos/create", {"name": "x", "organization": {}}),
    ("POST", "/api/repos/create", {"name": "../x"}),
    ("POST", "/api/repos/create", {"name": "a/b/c"}),
    ("POST", "/api/repos/create", {"name": "\ud800"}),
    ("POST", "/api/repos/create", {"name": "x", "organization": "api"}),
    ("POST", "/api/repos/create", {"name": "x", "type": "toaster"}),
    ("POST", "/api/repos/create", {"name": "x", "visibility": "hidden"}),
    ("DELETE", "/api/repos/delete", {"name": "no"}),
    ("POST", "/api/repos/move", {"fromRepo": "local/m"}),
    ("POST", "/api/repos/move", {"fromRepo": "local/m", "toRepo": "m"}),
    ("PUT", "/api/models/local/m/settings", {"gated": "maybe"}),
    ("PUT", "/api/models/local/m/settings", {"private": "yes"}),
    ("POST", "/api/models/local/m/branch/..", {}),
    ("POST", "/api/models/local/m/branch/refs%2Fpr%2F9", {}),
    ("POST", "/api/models/local/m/branch/" + "a" * 40, {}),
    ("POST", "/api/models/local/m/branch/b", {"startingPoint": "no"}),
    ("POST", "/api/models/local/m/tag/main", {}),
    ("POST", "/api/models/local/m/tag/no", {"tag": "t"}),
    ("GET", "/api/models/local/m/discussions/0", None),
    ("GET", "/api/models/local/m/discussions/99999999999999999999", None),
    ("GET", "/api/models/local/m/discussions/x", None),
    ("POST", "/api/models/local/m/discussions/7/merge", {}),
    ("POST", "/api/models/local/m/discussions", {"pullRequest": True}),
    ("POST", "/api/models/local/m/commit/main", b""),
    ("POST", "/api/models/local/m/commit/main", b"nonsense"),
    ("POST", "/api/models/local/m/commit/main", b'{"key": "file", "value": {}}'),
    ("POST", "/api/models/local/m/commit/main", b'{"key": "header", "value": {"summary": 7}}'),
    (
        "POST",
        "/api/models/local/m/commit/main",
        b'{"key": "header", "value": {}}\n{"key": "dance", "value": {"path": "a"}}',
    ),
    (
        "POST",
        "/api/models/local/m/commit/main",
        commit_body({}).replace(b"}}", b"}}\n")
        + b'{"key": "file", "value": {"path": "a", "content": 5, "encoding": "base64"}}',
    ),
    (
        "POST",
        "/api/models/local/m/commit/main",
        commit_body({}) + b'\n{"key": "file", "value": {"path": "a", "content": "!", "encoding": "base64"}}',
    ),
    ("POST", "/api/models/local/m/commit/main", commit_body({}) + b'\n{"key": "deletedFile", "value": {"path": "no"}}'),
    (
        "POST",
        "/api/models/local/m/commit/main",
        commit_body({}) + b'\n{"key": "lfsFile", "value": {"path": "a", "oid": 5}}',
    ),
    ("POST", "/api/models/local/m/commit/no", commit_body({"a": b""})),
    ("POST", "/api/models/local/m/commit/None", commit_body({"a": b""})),
    ("POST", "/api/models/local/m/preupload/main", {"files": [5]}),
    ("POST", "/api/models/local/m/preupload/no", {"files": []}),
    ("POST", "/local/m.git/info/lfs/objects/batch", {"operation": "download", "objects": []}),
    ("POST", "/local/m.git/info/lfs/objects/batch", {"operation": "upload", "objects": [{"oid": "x", "size": 1}]}),
    (
        "POST",
        "/local/m.git/info/lfs/objects/batch",
        {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 2**60}]},
    ),
    ("PUT", "/lfs/put/" + "0" * 64, b""),
    ("PUT", "/lfs/put/" + "0" * 64 + "?repo=1&size=0&part=0&expires=9999999999&signature=%C3%A9", b""),
    ("PUT", "/lfs/put/" + "0" * 64 + "?repo=99999999999999999999&size=0&part=0&expires=9999999999&signature=0", b""),
    ("POST", "/xet/nothing/1/v1/shards", b""),
    ("POST", "/api/collections", {"title": ""}),
    ("POST", "/api/collections", {"title": "t", "namespace": "../x"}),
    ("POST", "/api/collections/local/no/items", {"item": {"id": "local/m", "type": "model"}}),
    ("POST", "/api/validate-yaml", {}),
    ("GET", "/api/models/local/m/tree/main/no", None),
    ("GET", "/api/models/local/m/tree/main/a.txt", None),
    ("GET", "/api/models/local", None),
    ("GET", "/api/toasters/local/m", None),
    ("GET", "/api/models?limit=x", None),
    ("GET", "/m/resolve/main/a.txt", None),
    ("GET", "/local/m/resolve/main/..%2F..%2Fetc%2Fpasswd", None),
    ("GET", "/local/m/resolve/main/%00", None),
    ("GET", "/local/m/resolve/%FF/a.txt", None),
    ("GET", "/nowhere", None),
    ("PATCH", "/api/models/local/m", None),
]


@pytest.mark.parametrize(("method", "url", "content"), MALFORMED)
def test_what_makes_no_sense_is_the_clients_mistake(http: httpx.Client, method: str, url: str, content: Any) -> None:
    raw = json.dumps(content).encode() if isinstance(content, dict) else content
    response = http.request(method, url, content=raw)
    assert 400 <= response.status_code < 500
    assert response.headers["x-error-code"]


def test_every_door_is_shut_without_a_token(hub: Running) -> None:
    with httpx.Client(base_url=hub.url, trust_env=False) as anonymous:
        for method, url, content in MALFORMED:
            if method != "GET" and not url.startswith(("/lfs", "/xet", "/api/validate-yaml")):
                raw = json.dumps(content).encode() if isinstance(content, dict) else content
                assert 400 <= anonymous.request(method, url, content=raw).status_code < 500, url
        valid_requests = [
            ("POST", "/api/repos/create", {"name": "x"}),
            ("DELETE", "/api/repos/delete", {"name": "m", "organization": "local"}),
            ("PUT", "/api/models/local/m/settings", {"private": True}),
            ("POST", "/api/models/local/m/branch/b", {}),
            ("POST", "/api/models/local/m/discussions", {"title": "t", "pullRequest": True}),
            ("POST", "/api/models/local/m/preupload/main", {"files": []}),
            ("GET", "/api/models/local/m/xet-write-token/main", {}),
            ("GET", "/api/models/local/m/xet-write-token/None?create_pr=1", {}),
            ("POST", "/local/m.git/info/lfs/objects/batch", {"operation": "upload", "objects": []}),
            ("POST", "/api/collections", {"title": "t", "namespace": "local"}),
        ]
        for method, url, content in valid_requests:
            assert anonymous.request(method, url, json=content).status_code == 401, url
        assert anonymous.post("/api/models/local/m/commit/main", content=commit_body({"b": b""})).status_code == 401


def test_ranges_are_served_and_refused(http: httpx.Client) -> None:
    url = "/local/m/resolve/main/a.txt"
    for byte_range, status, content in (
        ("bytes=0-3", 206, b"0123"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=0-100000", 206, b"0123456789"),
    ):
        response = http.get(url, headers={"range": byte_range})
        assert (response.status_code, response.content) == (status, content)
        assert response.headers["content-range"].endswith("/10")
    response = http.get(url, headers={"range": "bytes=10-"})
    assert (response.status_code, response.headers["content-range"]) == (416, "bytes */10")
    assert response.headers["x-error-code"]
    head = http.head(url)
    assert (head.headers["content-length"], head.content) == ("10", b"")
    assert head.headers["etag"] == '"' + hashlib.sha1(b"blob 10\x000123456789").hexdigest() + '"'
    assert len(head.headers["x-repo-commit"]) == 40


def lfs_batch(http: httpx.Client, repo: str, data: bytes) -> dict[str, Any]:
    objects = [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}]
    response = http.post(f"/{repo}.git/info/lfs/objects/batch", json={"operation": "upload", "objects": objects})
    return response.json()["objects"][0]


def commit_lfs_file(http: httpx.Client, repo: str, data: bytes, path: str = "w.bin") -> httpx.Response:
    value = {"path": path, "algo": "sha256", "oid": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return http.post(
        f"/api/models/{repo}/commit/main",
        content=commit_body({}) + b"\n" + json.dumps({"key": "lfsFile", "value": value}).encode(),
    )


def test_an_upload_address_is_good_for_one_object_only(http: httpx.Client) -> None:
    data = b"weights" * 100
    href = lfs_batch(http, "local/m", data)["actions"]["upload"]["href"]
    with httpx.Client(trust_env=False) as anonymous:
        for changed_href, status in (
            (href.replace("repo=1", "repo=2"), 403),
            (href.replace("expires=1", "expires=9"), 403),
            (href.replace(f"size={len(data)}", f"size={len(data) + 1}"), 403),
            (href[:-1] + ("0" if href[-1] != "0" else "1"), 403),
        ):
            assert changed_href != href
            assert anonymous.put(changed_href, content=data).status_code == status
        assert anonymous.put(href, content=data[:-1]).status_code == 400
        assert anonymous.put(href, content=b"x" + data[1:]).status_code == 400
        assert anonymous.put(href, content=data + b"x").status_code == 413
        assert commit_lfs_file(http, "local/m", data).status_code == 400
        assert anonymous.put(href, content=data).status_code == 200
    assert "actions" not in lfs_batch(http, "local/m", data)


def test_a_full_disk_is_said_and_commits_nothing(
    hub: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space_left(store: Store, path: Path, sha256: str) -> None:
        raise OSError(28, "No space left on device")

    head = http.get("/api/models/local/m").json()["sha"]
    monkeypatch.setattr(Store, "add_file", no_space_left)
    response = commit(http, "local/m", {"b.txt": b"never stored before"})
    assert (response.status_code, response.headers["x-error-code"]) == (507, "Storage")
    assert list((hub.root / "incoming").iterdir()) == []
    assert http.get("/api/models/local/m").json()["sha"] == head


def test_a_body_without_end_is_cut_off(http: httpx.Client) -> None:
    response = http.post("/api/repos/create", content=b" " * (16 * 2**20 + 1))
    assert (response.status_code, response.headers["x-error-code"]) == (413, "TooLarge")


def test_an_upload_that_breaks_off_leaves_nothing(hub: Running, http: httpx.Client) -> None:
    data = b"never whole" * 1000
    address = httpx.URL(lfs_batch(http, "local/m", data)["actions"]["upload"]["href"])
    with socket.create_connection((address.host, address.port or 80)) as connection:
        request_head = f"PUT {address.raw_path.decode()} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(request_head.encode() + data[:5000])
        incoming = hub.root / "incoming"
        while not any(incoming.iterdir()):  # until the hub has begun to write; the test's time limit ends this
            time.sleep(0.01)
    while any(incoming.iterdir()):
        time.sleep(0.01)
    assert commit_lfs_file(http, "local/m", data).status_code == 400


def test_of_commits_on_one_parent_one_wins_and_without_parent_all_land(hub: Running, http: httpx.Client) -> None:
    http.post("/api/repos/create", json={"name": "busy"})
    head = http.get("/api/models/local/busy").json()["sha"]

    def status_of_commit(number: int, **header: str) -> int:
        with client(hub) as session:
            return commit(session, "local/busy", {f"{number}{len(header)}.txt": b"x"}, **header).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda number: status_of_commit(number, parentCommit=head), range(8)))
        assert sorted(statuses) == [200] + [412] * 7
        assert list(pool.map(status_of_commit, range(8))) == [200] * 8
    assert len(http.get("/api/models/local/busy").json()["siblings"]) == 10  # 9 and .gitattributes
    assert len(http.get("/api/models/local/busy/commits/main").json()) == 10


def test_knowing_the_hash_of_a_private_file_does_not_open_it(hub: Running, http: httpx.Client) -> None:
    data = b"secret" * 50
    http.post("/api/repos/create", json={"name": "hidden", "private": True})
    http.put(lfs_batch(http, "local/hidden", data)["actions"]["upload"]["href"], content=data)
    assert commit_lfs_file(http, "local/hidden", data).status_code == 200
    with client(hub, localhub.add_user(hub.root, "thief")) as other:
        other.post("/api/repos/create", json={"name": "mine"})
        assert commit_lfs_file(other, "thief/mine", data).status_code == 400
        assert "actions" in lfs_batch(other, "thief/mine", data)


def test_a_card_that_the_hub_would_refuse_is_refused(http: httpx.Client) -> None:
    response = commit(http, "local/m", {"README.md": b"---\nlicense: [MIT License!]\n---\n"})
    assert (response.status_code, response.headers["x-error-code"]) == (400, "BadMetadata")
    assert http.post("/api/validate-yaml", json={"content": "# no metadata"}).json()["warnings"]


@pytest.mark.parametrize(
    "yaml_text",
    [
        "- a list",
        "license: 5",
        "tags: one",
        "tags: [1, 2]",
        "base_model: /home/me/model",
        "language: Klingon",
        "model-index: [{name: x}]",
        "model-index: 5",
        "x: .nan",
        'x: "\\ud800"',
        "x: &x [*x]",
        "x: {1: [",
        "a: &a [1]\nb: " + "[" + ", ".join(["*a"] * 9) + "]",
        "x: " + "y" * 70_000,
    ],
)
def test_bad_metadata_is_found(yaml_text: str) -> None:
    data, errors = metadata.parse_card(f"---\n{yaml_text}\n---\ntext")
    assert errors
    json.dumps(data)


def test_good_metadata_becomes_tags() -> None:
    text = "license: mit\nlanguage: [en, de]\ntags: [gptq]\nday: 2025-01-02\n"
    text += "base_model: a/b\nbase_model_relation: quantized\n"
    result = "task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: x, value: 1}]"
    text += f"model-index: [{{name: m, results: [{{{result}}}]}}]"
    data, errors = metadata.parse_card(f"---\r\n{text}\r\n---\r\n")
    assert errors == [] and data["day"] == "2025-01-02"
    assert metadata.tags(data) == ["gptq", "en", "de", "license:mit", "base_model:a/b", "base_model:quantized:a/b"]


# Running


def test_tokens_are_kept_private_and_given_ones_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with localhub.start(tmp_path / "a") as hub:
        assert (hub.root / "token").read_text().strip() == hub.token
        assert stat.S_IMODE((hub.root / "token").stat().st_mode) == 0o600
        first_token = hub.token
    with localhub.start(tmp_path / "a") as hub:
        assert hub.token == first_token
    monkeypatch.setenv("HUBPLUGIN_HUB_TOKEN", "from-the-environment")
    with localhub.start(tmp_path / "b") as hub:
        assert hub.token == "from-the-environment"
        assert client(hub).get("/api/whoami-v2").status_code == 200
    stored = b"".join(path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file())
    assert b"from-the-environment" not in stored


def test_a_broken_list_of_users_is_an_error_at_the_start_and_ignored_later(tmp_path: Path) -> None:
    with localhub.start(tmp_path) as hub:
        (tmp_path / "users.json").write_text("{")
        assert client(hub).get("/api/whoami-v2").status_code == 200
    for invalid in ("{", "[]", '{"a": {}}', '{"a": {"role": "king", "token_sha256": "' + "0" * 64 + '"}}'):
        (tmp_path / "users.json").write_text(invalid)
        with pytest.raises(ServeError, match="users"), localhub.start(tmp_path):
            pass
    (tmp_path / "users.json").unlink()
    with localhub.start(tmp_path) as hub:
        assert client(hub).get("/api/whoami-v2").status_code == 200


@pytest.mark.parametrize(
    ("name", "role"), [("", "write"), ("a/b", "write"), ("api", "read"), ("a--b", "read"), ("a", "king")]
)
def test_a_user_who_cannot_be_is_refused(tmp_path: Path, name: str, role: str) -> None:
    with pytest.raises(ServeError):
        localhub.add_user(tmp_path, name, role)


def test_a_port_or_a_root_in_use_is_an_error_in_three_parts(tmp_path: Path) -> None:
    with localhub.start(tmp_path) as hub:
        port = int(hub.url.rsplit(":", 1)[1])
        with pytest.raises(ServeError) as error:
            localhub.serve(tmp_path / "other", port=port)
        assert (error.value.where, error.value.fix) == (f"127.0.0.1:{port}", "free the port or give another")
        with pytest.raises(ServeError, match="held by another hub"), localhub.start(tmp_path):
            pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ServeError, match="cannot be written"), localhub.start(tmp_path / "file" / "root"):
        pass
    with localhub.start(tmp_path) as again:
        assert client(again).get("/api/whoami-v2").status_code == 200


def test_ctrl_c_ends_the_server_without_a_traceback(tmp_path: Path) -> None:
    script = f"""
import signal, sys
from pathlib import Path
from hubplugin import localhub
try:
    localhub.serve(Path({str(tmp_path / "hub")!r}), port={free_port()})
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "http://127.0.0.1:" in line
    token = (tmp_path / "hub" / "token").read_text().strip()
    assert token not in line
    httpx.get(line.split()[1] + "/api/models", trust_env=False).raise_for_status()
    process.send_signal(2)
    remaining_stderr = process.communicate(timeout=30)[1]
    assert (process.returncode, remaining_stderr) == (130, "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def commit_texts(
    db: sqlite3.Connection, repo: Repo, title: str, texts: dict[str, str | None], ref: str = "refs/heads/main"
) -> Commit:
    """Commit files with these texts. A file whose text is None is deleted."""

    def change_tree(tree: Tree) -> Tree:
        for path, text in texts.items():
            tree.pop(path, None)
            if text is not None:
                tree[path] = TreeEntry(text, text, len(text), lfs=False)
        return tree

    return git.create_commit(db, repo.id, ref, change_tree, CommitDetails(title, "", "a"))


def open_pull_request(db: sqlite3.Connection, repo: Repo) -> int:
    return discussions.open_discussion(db, repo, NewDiscussion("t", "", "b", is_pull_request=True, status="open"))


def texts_of(tree: Tree) -> dict[str, str]:
    return {path: entry.sha256 for path, entry in tree.items()}


def test_a_commit_that_fails_leaves_nothing(store: Store) -> None:
    with store.write() as db:
        repo = repos.create(db, "models", "a/b", False, "a")

    def fail(tree: Tree) -> Tree:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError), store.write() as db:
        commit_texts(db, repo, "first", {"x": "1"})
        git.create_commit(db, repo.id, "refs/heads/main", fail, CommitDetails("second", "", "a"))
    with store.read() as db:
        commits = git.history(db, repo.id, git.resolve(db, repo.id, "main"))
        assert [commit.title for commit in commits] == ["initial commit"]


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.temporary_path().write_bytes(b"half")
    sha256 = store.add_bytes(b"whole")
    store.close()
    store = Store(tmp_path)
    assert list(store.incoming.iterdir()) == []
    assert store.blob_path(sha256).read_bytes() == b"whole"
    store.close()


def test_a_merge_keeps_both_sides_and_tells_conflicts(store: Store) -> None:
    with store.write() as db:
        repo = repos.create(db, "models", "a/b", False, "a")
        commit_texts(db, repo, "base", dict.fromkeys(("same", "ours", "theirs", "gone", "both"), "0"))
        num = open_pull_request(db, repo)
        theirs = {"theirs": "1", "gone": None, "new": "1", "both": "2"}
        commit_texts(db, repo, "theirs", theirs, f"refs/pr/{num}")
        commit_texts(db, repo, "ours", {"ours": "1", "also": "1", "both": "2"})
        merged = discussions.merge(db, repo, num, "a")
        assert texts_of(merged.tree) == {"same": "0", "ours": "1", "theirs": "1", "new": "1", "also": "1", "both": "2"}

        num = open_pull_request(db, repo)
        commit_texts(db, repo, "theirs", {"same": None}, f"refs/pr/{num}")
        commit_texts(db, repo, "ours", {"same": "1"})
        with pytest.raises(HTTPException, match="409"):
            discussions.merge(db, repo, num, "a")


def test_the_last_change_of_files_and_folders_is_found(store: Store) -> None:
    with store.write() as db:
        repo = repos.create(db, "models", "a/b", False, "a")
        first = commit_texts(db, repo, "1", {"d/x": "1", "d/y": "1", "z": "1"})
        second = commit_texts(db, repo, "2", {"d/y": "2"})
        last_commits = git.last_commits(db, repo.id, second, {"d", "d/x", "d/y", "z"})
    assert {path: commit.oid for path, commit in last_commits.items()} == {
        "d": second.oid,
        "d/y": second.oid,
        "d/x": first.oid,
        "z": first.oid,
    }


def test_short_hashes_must_be_clear_and_long_enough(store: Store) -> None:
    with store.write() as db:
        repo = repos.create(db, "models", "a/b", False, "a")
        head = git.resolve(db, repo.id, "main").oid
        assert git.resolve(db, repo.id, head[:7]).oid == head
        for revision in (head[:6], "0" * 40, head.upper(), ""):
            with pytest.raises(HTTPException, match="404"):
                git.resolve(db, repo.id, revision)
