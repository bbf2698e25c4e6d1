"""What is private stays private: bases, in whatever way they are named, and repos in collections."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, snapshot_download
from publish_helpers import document, finished

from hubplugin.errors import HubError
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish, push
from hubplugin.localhub.users import add_user

TITLE = ', collection: "Compressed"'


def preflight(place: Path, **how: Any) -> list[str]:
    asked = document(place, **how)
    return publish.preflight(asked, snapshots.peek(asked.manifest.model, asked.folder))


@pytest.fixture
def cached(hub: HfApi, tmp_path: Path) -> str:
    """The base as a snapshot folder of the client's cache, which does not tell whether its repo is private."""
    return snapshot_download("local/pico", cache_dir=tmp_path / "cache", endpoint=hub.endpoint)


def test_the_hub_is_asked_whether_a_cached_base_is_private(hub: HfApi, tmp_path: Path, cached: str) -> None:
    assert preflight(tmp_path, model=cached, private=False) == []
    hub.update_repo_settings("local/pico", private=True)
    with pytest.raises(HubError) as refused:
        preflight(tmp_path, model=cached, private=False)
    assert "the base is private" in refused.value.what and "accept_private_base" in refused.value.fix
    assert preflight(tmp_path, model=cached, private=True) == []
    assert preflight(tmp_path, model=cached, private=False, more=", accept_private_base: true") == []


def test_a_cached_base_that_the_token_cannot_see_may_be_private(
    hub: HfApi, tmp_path: Path, cached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.update_repo_settings("local/pico", private=True)
    monkeypatch.setenv("HF_TOKEN", add_user(tmp_path / "hub", "stranger"))
    with pytest.raises(HubError, match="hidden from this token"):
        preflight(tmp_path, model=cached, private=False, owner="stranger")
    assert preflight(tmp_path, model=cached, private=True, owner="stranger") == []


def test_the_hub_is_asked_whether_a_cached_base_is_gated(hub: HfApi, tmp_path: Path, cached: str) -> None:
    hub.update_repo_settings("local/pico", gated="auto")
    with pytest.raises(HubError, match="is gated"):
        preflight(tmp_path, model=cached)
    assert preflight(tmp_path, model=cached, more=", accept_license: true") == []


@pytest.mark.parametrize("private", [False, None])
def test_a_base_that_became_private_after_the_run_is_not_disclosed(
    hub: HfApi, tmp_path: Path, pico_folder: Path, private: bool | None
) -> None:
    asked = document(tmp_path, private=False)
    out = finished(tmp_path / "out", pico_folder, asked, private=private)
    hub.update_repo_settings("local/pico", private=True)
    with pytest.raises(HubError, match="the base is private"):
        publish.publish(asked, out)
    assert not hub.repo_exists("local/pico-Int4")


def test_a_base_that_was_seen_public_may_be_gone_since(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path, private=False)
    out = finished(tmp_path / "out", pico_folder, asked, repo="local/gone", private=False)
    assert len(publish.publish(asked, out)) == 2
    never_seen = finished(tmp_path / "other", pico_folder, asked, repo="local/gone")
    with pytest.raises(HubError, match="hidden from this token"):
        publish.publish(asked, never_seen)


def test_a_variant_of_a_base_that_became_gated_is_gated(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path, private=False, more=", accept_license: true")
    out = finished(tmp_path / "out", pico_folder, asked)
    hub.update_repo_settings("local/pico", gated="manual")
    publish.publish(asked, out)
    assert hub.model_info("local/pico-Int4").gated == "auto"


def test_a_local_base_is_nobodys_repo(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    assert preflight(tmp_path, model=str(pico_folder), private=False) == []


def test_a_public_collection_does_not_show_private_repos(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    group = hub.create_collection("Compressed", namespace="local")
    asked = document(tmp_path, more=TITLE)
    with pytest.raises(HubError, match="would show the names of private repos"):
        preflight(tmp_path, more=TITLE)
    out = finished(tmp_path / "out", pico_folder, asked)
    with pytest.raises(HubError, match="would show the names of private repos"):
        publish.publish(asked, out)
    assert not hub.repo_exists("local/pico-Int4")
    hub.update_collection_metadata(group.slug, private=True)
    assert preflight(tmp_path, more=TITLE) == []
    publish.publish(asked, out)
    assert len(hub.get_collection(group.slug).items) == 2


def test_a_repo_that_stays_private_stays_out_of_a_public_collection(
    hub: HfApi, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create_repo("local/hidden", private=True)
    hub.create_repo("local/shown")
    url = push.collect("Both", "local", {"local/hidden": "", "local/shown": ""}, private=False)
    items = hub.get_collection(url.split("/collections/")[1]).items
    assert [item.item_id for item in items] == ["local/shown"]
    assert "local/hidden is private and stays out" in capsys.readouterr().err
