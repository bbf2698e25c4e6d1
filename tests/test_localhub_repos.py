"""Repos of the embedded hub by the official client: how they begin, lists and infos, branches, history."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi
from localhub_helpers import api_of, hf, http_of, refused
from safetensors.torch import save

from hubplugin import localhub
from hubplugin.localhub.server import Running


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with localhub.start(tmp_path / "hub") as running:
        yield running


def fill(api: HfApi, repo: str, files: dict[str, bytes], **kwargs: Any) -> None:
    api.create_repo(repo, exist_ok=True)
    adds = [CommitOperationAdd(path, data) for path, data in files.items()]
    api.create_commit(repo, adds, commit_message="m", **kwargs)


# What is in a model


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> bytes:
    return save({f"t{number}": torch.zeros(shape, dtype=dtype) for number, shape in enumerate(shapes)})


def test_the_info_of_a_model_has_its_parameters_and_its_config(api: HfApi) -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "quantization_config": {"bits": 4}, "x": 1}
    files = {"model.safetensors": weights((2, 3), (4,)), "config.json": json.dumps(config).encode()}
    fill(api, "local/m", files | {"adapter.safetensors": weights((100,))})
    info = api.model_info("local/m")
    assert info.safetensors is not None and info.config is not None
    assert (info.safetensors.parameters, info.safetensors.total) == ({"F32": 10}, 10)
    assert info.config == {key: value for key, value in config.items() if key != "x"}
    assert "safetensors" in (info.tags or [])
    assert [model.id for model in api.list_models(filter="safetensors")] == ["local/m"]


def test_shards_are_counted_together_and_their_headers_are_served(api: HfApi) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": weights((n, 5), dtype=torch.bfloat16) for n in (1, 2)}
    index = {"metadata": {"total_size": 30}, "weight_map": {f"t{n}": name for n, name in enumerate(shards)}}
    fill(api, "local/m", shards | {"model.safetensors.index.json": json.dumps(index).encode()})
    safetensors = api.model_info("local/m").safetensors
    assert safetensors is not None and safetensors.parameters == {"BF16": 15}
    metadata = api.get_sharded_safetensors_metadata("local/m")
    assert set(metadata.files_metadata) == set(shards) and metadata.parameter_count == {"BF16": 15}
    with refused(404):
        api.get_sharded_safetensors_metadata("local/m", filename="no.json")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model.safetensors": b"\xff" * 100, "config.json": b"{"},
        {"model.safetensors": b"\x02\0\0\0\0\0\0\0[]", "config.json": b"[]"},
        {"model.safetensors": (9).to_bytes(8, "little") + b'{"a": {}}', "config.json": b'"x"'},
        {"model.safetensors": b"\0", "config.json": b"\xff"},
        {"sub/model.safetensors": weights((3,))},
    ],
)
def test_files_that_say_nothing_are_no_error(api: HfApi, files: dict[str, bytes]) -> None:
    fill(api, "local/m", files | {"a.txt": b"x"})
    info = api.model_info("local/m")
    assert info.safetensors is None and not info.config
    assert [model.id for model in api.list_models()] == ["local/m"]


def test_expand_names_what_is_wanted(api: HfApi, http: httpx.Client) -> None:
    fill(api, "local/m", {"a.txt": b"x"})
    info = api.model_info("local/m", expand=["private", "downloads"])
    assert info.private is False and info.downloads == 0 and info.siblings is None and info.sha is None
    assert set(http.get("/api/models/local/m?expand[]=likes").json()) == {"_id", "id", "likes"}
    (model,) = api.list_models(expand=["lastModified"])
    assert model.last_modified is not None and model.tags is None


# Lists


@pytest.fixture
def several(api: HfApi) -> HfApi:
    card = b"---\nlicense: mit\npipeline_tag: text-generation\ntags: [gptq]\n---\n"
    fill(api, "local/big-llama", {"README.md": card, "model.safetensors": weights((1000, 2))})
    fill(
        api, "local/small-llama", {"README.md": b"---\npipeline_tag: fill-mask\n---\n", "w.safetensors": weights((7,))}
    )
    fill(api, "org/a-bert", {"README.md": b"---\ndatasets: glue\n---\n"})
    api.update_repo_settings("org/a-bert", gated="auto")
    return api


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"pipeline_tag": "text-generation"}, ["big-llama"]),
        ({"pipeline_tag": "fill-mask"}, ["small-llama"]),
        ({"pipeline_tag": "translation"}, []),
        ({"gated": True}, ["a-bert"]),
        ({"gated": False}, ["small-llama", "big-llama"]),
        ({"search": "LLAMA"}, ["small-llama", "big-llama"]),
        ({"search": "llama", "filter": ["gptq", "license:mit"]}, ["big-llama"]),
        ({"trained_dataset": "glue"}, ["a-bert"]),
        ({"author": "ORG"}, ["a-bert"]),
        ({"num_parameters": "min:1K"}, ["big-llama"]),
        ({"num_parameters": "min:1,max:0.5K"}, ["small-llama"]),
        ({"inference_provider": "all"}, []),
        ({"sort": "created_at"}, ["a-bert", "small-llama", "big-llama"]),
        ({"sort": "last_modified"}, ["big-llama", "a-bert", "small-llama"]),
        ({"sort": "downloads"}, ["a-bert", "small-llama", "big-llama"]),
        ({"sort": "trending_score", "limit": 2}, ["a-bert", "small-llama"]),
        ({"sort": "num_parameters"}, ["big-llama", "small-llama", "a-bert"]),
    ],
)
def test_models_are_filtered_and_sorted(several: HfApi, wanted: dict[str, Any], expected: list[str]) -> None:
    several.upload_file(path_or_fileobj=b"x", path_in_repo="late.txt", repo_id="local/big-llama")
    assert [model.id.split("/")[1] for model in several.list_models(**wanted)] == expected


def test_wrong_filters_are_told_and_long_lists_have_pages(several: HfApi, http: httpx.Client) -> None:
    for query in ("sort=beauty", "num_parameters=many", "num_parameters=min:6X"):
        assert http.get(f"/api/models?{query}").status_code == 400
    url, names = "/api/models?limit=1&sort=id&filter=", []
    while url:
        page = http.get(url).raise_for_status()
        names += [model["id"] for model in page.json()]
        url = page.links.get("next", {}).get("url", "")
    assert names == ["local/big-llama", "local/small-llama", "org/a-bert"]
    assert http.get("/api/models?limit=0").json() == []
    several.create_repo("local/s", repo_type="space", space_sdk="static")
    card = b"---\nsdk: static\nmodels: [local/big-llama]\n---\n"
    several.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="local/s", repo_type="space")
    assert [space.id for space in several.list_spaces(models="local/big-llama")] == ["local/s"]
    assert list(several.list_spaces(datasets="glue")) == []


def test_own_repos_are_listed_with_their_storage(hub: Running, several: HfApi, tmp_path: Path) -> None:
    several.create_repo("local/d", repo_type="dataset", private=True)
    own = {repo.id: repo for repo in several.list_user_repos()}
    assert set(own) == {"local/big-llama", "local/small-llama", "local/d"}
    assert (own["local/d"].type, own["local/d"].visibility) == ("dataset", "private")
    assert own["local/big-llama"].storage > 8000 and own["local/big-llama"].storage_percent > 0.5
    assert [repo.id for repo in several.list_user_repos(namespace="org")] == ["org/a-bert"]
    assert "local/big-llama" in hf(hub, tmp_path, "repos", "ls")
    with refused(403):
        list(api_of(hub, localhub.add_user(hub.root, "other")).list_user_repos(namespace="org"))


# How repos begin


def test_a_repo_begins_with_the_files_that_are_given(http: httpx.Client) -> None:
    rules = "*.html filter=lfs diff=lfs merge=lfs -text"
    files = [
        {"encoding": "base64", "path": ".gitattributes", "content": "Ki5odG1sIGZpbHRlcj1sZnM="},
        {"path": "docs/hello.txt", "content": rules},
    ]
    body = {"name": "m", "organization": "local", "type": "model", "files": files, "license": "mit"}
    answer = http.post("/api/repos/create", json=body).raise_for_status().json()
    assert answer["id"] == "local/m"
    read = {path: http.get(f"/local/m/resolve/main/{path}").text for path in (".gitattributes", "docs/hello.txt")}
    assert read == {".gitattributes": "*.html filter=lfs", "docs/hello.txt": rules}
    assert http.get("/api/models/local/m").json()["cardData"] == {"license": "mit"}
    assert len(http.get("/api/models/local/m/commits/main").json()) == 1


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ("x", 400),
        ([5], 400),
        ([{"path": "../x", "content": ""}], 422),
        ([{"path": "a", "content": "!", "encoding": "base64"}], 400),
        ([{"path": "a", "content": ""}, {"path": "a/b", "content": ""}], 422),
        ([{"path": "README.md", "content": "---\nlicense: asdf\n---\n"}], 400),
    ],
)
def test_a_repo_does_not_begin_with_wrong_files(http: httpx.Client, files: Any, status: int) -> None:
    assert http.post("/api/repos/create", json={"name": "m", "files": files}).status_code == status
    assert http.get("/api/models/local/m").status_code == 404


def test_a_repo_is_duplicated_with_its_lfs_files(hub: Running, api: HfApi, tmp_path: Path) -> None:
    fill(api, "local/m", {"a.txt": b"text", "w.bin": b"\0weights"})
    api.update_repo_settings("local/m", private=True)
    api.duplicate_repo("local/m", "org/copy")
    assert api.model_info("org/copy").private
    assert api.list_repo_files("org/copy") == api.list_repo_files("local/m")
    assert http_of(hub).get("/org/copy/resolve/main/w.bin").content == b"\0weights"
    assert [item.title for item in api.list_repo_commits("org/copy")] == ["Duplicate from local/m"]
    with refused(409):
        api.duplicate_repo("local/m", "org/copy")
    assert api.duplicate_repo("local/m", "org/copy", exist_ok=True).repo_id == "org/copy"
    assert "local/second" in hf(hub, tmp_path, "repos", "duplicate", "local/m", "local/second")
    assert not api.duplicate_repo("local/m", "local/public", private=False).files_copy_pending
    assert not api.model_info("local/public").private
    other = api_of(hub, localhub.add_user(hub.root, "other"))
    with refused(404):
        other.duplicate_repo("local/m", "other/copy")
    with refused(403):
        other.duplicate_repo("local/public", "local/theirs")


def test_a_name_that_is_taken_is_told(api: HfApi) -> None:
    for name in ("a", "b"):
        api.create_repo(f"local/{name}")
    with refused(409, "A model repository called local/b already exists"):
        api.move_repo("local/a", "local/b")


# Branches and history


def test_a_branch_is_overwritten_where_that_is_asked_for(api: HfApi, http: httpx.Client) -> None:
    fill(api, "local/m", {"a.txt": b"1"})
    first = api.model_info("local/m").sha
    url = "/api/models/local/m/branch/side"
    assert http.post(url, json={}).status_code == 200
    assert http.post(url, json={"overwrite": False}).status_code == 409
    fill(api, "local/m", {"b.txt": b"1"})

    def head() -> str | None:
        return api.model_info("local/m", revision="side").sha

    assert http.post(url, json={"overwrite": True}).status_code == 200 and head() == first  # nothing else is asked for
    assert http.post(url, json={"overwrite": True, "startingPoint": "main"}).status_code == 200
    assert head() == api.model_info("local/m").sha
    assert http.post(url, json={"overwrite": True, "emptyBranch": True}).status_code == 200
    assert api.list_repo_files("local/m", revision="side") == []
    assert http.post("/api/models/local/m/branch/feat%2Fempty", json={"emptyBranch": True}).status_code == 200
    assert api.list_repo_files("local/m", revision="feat/empty") == []
    assert http.post(url, json={"overwrite": True, "startingPoint": "no"}).status_code == 404


def test_a_history_is_squashed_to_one_commit(api: HfApi) -> None:
    for number in range(3):
        fill(api, "local/m", {"a.txt": str(number).encode()})
    api.create_branch("local/m", branch="v/1")
    files = api.list_repo_tree("local/m")
    api.super_squash_history("local/m")
    (commit,) = api.list_repo_commits("local/m")
    assert commit.title == "Super-squash branch 'main' using huggingface_hub" and commit.authors == ["local"]
    assert [item.path for item in api.list_repo_tree("local/m")] == [item.path for item in files]
    assert len(api.list_repo_commits("local/m", revision="v/1")) == 4
    api.super_squash_history("local/m", branch="v/1", commit_message="mine")
    assert [item.title for item in api.list_repo_commits("local/m", revision="v/1")] == ["mine"]
    num = api.create_commit("local/m", [CommitOperationAdd("x", b"")], commit_message="m", create_pr=True).pr_num
    api.super_squash_history("local/m", branch=f"refs/pr/{num}")
    assert len(api.list_repo_commits("local/m", revision=f"refs/pr/{num}")) == 1
    assert api.list_repo_tree("local/m", expand=True)


def test_titles_of_commits_are_formatted_where_that_is_asked_for(api: HfApi) -> None:
    api.create_repo("local/m")
    add = [CommitOperationAdd("a.txt", b"1")]
    api.create_commit("local/m", add, commit_message="<b> & co", commit_description="more <i>")
    newest = api.list_repo_commits("local/m", formatted=True)[0]
    assert newest.formatted_title == "&lt;b&gt; &amp; co" and "more &lt;i&gt;" in (newest.formatted_message or "")
    assert api.list_repo_commits("local/m")[0].formatted_title is None
