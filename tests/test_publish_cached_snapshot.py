"""A base that is named by its folder in the cache of the Hub's client is the repo and the commit that it holds."""

import os
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from publish_helpers import document

from hubplugin.errors import HubError
from hubplugin.hub import resolve, snapshots


@pytest.fixture
def cached(hub: HfApi, tmp_path: Path) -> Path:
    return Path(snapshot_download("local/pico", cache_dir=tmp_path / "cache", endpoint=hub.endpoint))


def test_a_cached_snapshot_is_served_under_its_repos_name(cached: Path, tmp_path: Path) -> None:
    assert resolve.find(str(cached)) == [resolve.Found(cached, "local/pico")]
    document(tmp_path, model=str(cached))
    assert resolve.find(str(tmp_path / "m.yaml"), (), tmp_path / "out")[0] == resolve.Found(cached, "local/pico")


@pytest.mark.parametrize("named", ["./base", "."])
def test_a_link_to_a_cached_snapshot_and_a_path_from_it_are_known(cached: Path, tmp_path: Path, named: str) -> None:
    (tmp_path / "base").symlink_to(cached)
    start = tmp_path if named != "." else cached
    found = snapshots.peek(named, start)
    assert (found.repo, found.sha, found.on_hub) == ("local/pico", cached.name, True)


def test_no_network_is_needed(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    for found in (snapshots.peek(str(cached), tmp_path), snapshots.pull(str(cached), tmp_path)):
        assert (found.repo, found.sha, found.private) == ("local/pico", cached.name, None)


def test_a_plain_copy_of_it_is_a_local_folder(cached: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in cached.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    found = snapshots.peek(str(copy), tmp_path)
    assert (found.repo, found.sha, found.on_hub) == ("copy", None, False)


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_snapshot_that_is_not_whole_says_how_to_pull_the_rest(cached: Path, tmp_path: Path, gone: str) -> None:
    (cached / gone).unlink()
    for look in (snapshots.peek, snapshots.pull):
        with pytest.raises(HubError) as refused:
            look(str(cached), tmp_path)
        assert f"model: local/pico@{cached.name}" in refused.value.fix


@pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
def test_a_link_into_blobs_that_are_gone_is_a_missing_file(cached: Path, tmp_path: Path, gone: str) -> None:
    os.remove((cached / gone).resolve())
    with pytest.raises(HubError) as refused:
        snapshots.peek(str(cached), tmp_path)
    assert f"model: local/pico@{cached.name}" in refused.value.fix
