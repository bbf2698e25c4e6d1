"""Publishing to repos that others write to as well, from bases that not everyone may see; nothing of theirs is lost."""

from pathlib import Path
from typing import Any

import card_helpers
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, snapshot_download
from publish_helpers import REPO, WEIGHTS, by_hand, document, folder, read

from hubplugin import report
from hubplugin.errors import HubError
from hubplugin.evaluation.cards import card
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish, push
from hubplugin.manifest.model_name import cached_snapshot


@pytest.fixture
def made(tmp_path: Path, pico_folder: Path) -> Path:
    """A folder as publishing finds it."""
    return folder(tmp_path / "Int4", pico_folder)


def count(api: HfApi) -> int:
    return len(api.list_repo_commits(REPO))


def test_an_unchanged_folder_leaves_what_others_wrote_and_makes_no_commit(hub: HfApi, made: Path, capsys) -> None:
    push.push(made, REPO, private=True)
    theirs = (made / "README.md").read_text() + "\n## How to cite\n"
    by_hand(hub, README__md=theirs, chat_template__jinja="mended", notes__txt="a file of theirs", deleted="LICENSE")
    before = count(hub)
    again = push.push(made, REPO, private=True)
    assert not again.changed and count(hub) == before
    assert (read(hub, "README.md"), read(hub, "chat_template.jinja")) == (theirs, "mended")
    assert "notes.txt" in hub.list_repo_files(REPO) and "LICENSE" not in hub.list_repo_files(REPO)
    said = capsys.readouterr().err
    assert "changed by others: README.md" in said and "these stay as they are" in said


def test_a_new_file_of_ours_goes_up_beside_an_edit_of_theirs(hub: HfApi, made: Path) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, README__md="theirs")
    (made / "report.json").write_text('{"new": 1}')
    assert push.push(made, REPO, private=True).changed
    assert (read(hub, "README.md"), read(hub, "report.json")) == ("theirs", '{"new": 1}')
    (made / "README.md").write_text("the same\n")
    by_hand(hub, README__md="the same\n")
    assert not push.push(made, REPO, private=True).changed, "both sides made the same edit"


@pytest.mark.parametrize(
    ("edit", "ours", "named"),
    [
        ({"README__md": "# Theirs\n"}, {"README.md": "# Ours, again\n"}, "README.md"),
        ({"config__json": "{}"}, {}, "config.json"),  # the report's numbers are about it
        ({"deleted": WEIGHTS}, {}, WEIGHTS),
        ({"README__md": "x", "message": "Publish with hubplugin!"}, {"README.md": "y"}, "README.md"),
    ],
)
def test_edits_on_both_sides_are_shown_and_need_an_explicit_word(hub, made, capsys, edit, ours, named) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, **edit)
    for name, text in ours.items():
        (made / name).write_text(text)
    head, files = hub.model_info(REPO).sha, hub.list_repo_files(REPO)
    with pytest.raises(HubError) as refused:
        push.push(made, REPO, private=True)
    assert f"others have changed {named} since our commit" in refused.value.what and "--force" in refused.value.fix
    assert (hub.model_info(REPO).sha, hub.list_repo_files(REPO)) == (head, files)
    assert f"by others: {named}" in capsys.readouterr().err
    push.push(made, REPO, private=True, force=True)
    upstream = Path(hub.hf_hub_download(REPO, named)).read_bytes()
    assert upstream == (made / named).read_bytes()


def test_how_a_text_differs_is_shown(hub: HfApi, made: Path, capsys) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, README__md="# Theirs\n")
    (made / "README.md").write_text("# Ours, again\n")
    with pytest.raises(HubError):
        push.push(made, REPO, private=True)
    said = capsys.readouterr().err
    assert "-# Theirs" in said and "+# Ours, again" in said


def test_shards_of_our_own_go_and_files_of_others_by_the_same_names_stay(hub: HfApi, made: Path) -> None:
    (made / "vocab.json").write_text("{}")
    push.push(made, REPO, private=True)
    (made / "vocab.json").unlink()
    by_hand(hub, merges__txt="theirs")
    push.push(made, REPO, private=True)
    files = hub.list_repo_files(REPO)
    assert "vocab.json" not in files and "merges.txt" in files


def test_a_card_that_stood_in_a_repo_before_us_is_not_overwritten(hub: HfApi, made: Path) -> None:
    hub.create_repo(REPO, private=True)
    by_hand(hub, README__md="# A plan\n")
    with pytest.raises(HubError, match="its history has no commit of ours"):
        push.push(made, REPO, private=True)
    assert read(hub, "README.md") == "# A plan\n"
    assert push.push(made, REPO, private=True, force=True).changed


# before any work


def preflight(tmp_path: Path, **asked: Any) -> list[str]:
    wanted = document(tmp_path, **asked)
    return publish.preflight(wanted, snapshots.peek(wanted.manifest.model, wanted.folder))


@pytest.mark.parametrize(
    ("front", "said"),
    [
        ("license: llama3", "the manifest does not accept that"),
        ("license: cc-by-nd-4.0", "forbids publishing"),
        ("extra_gated_prompt: please", "is gated"),
    ],
)
def test_what_a_licence_forbids_is_said_before_any_work(hub: HfApi, tmp_path: Path, front: str, said: str) -> None:
    hub.upload_file(path_or_fileobj=f"---\n{front}\n---\n".encode(), path_in_repo="README.md", repo_id="local/pico")
    with pytest.raises(HubError, match=said):
        preflight(tmp_path)


def test_a_licence_in_another_spelling_is_named_by_its_id(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    front = "---\nlicense: Apache License 2.0\nlanguage: [English, de]\n---\n"
    (folder(tmp_path / "base", pico_folder) / "README.md").write_text(front)
    (note,) = preflight(tmp_path, model="./base")
    assert "cards say `license: apache-2.0`" in note


def test_a_private_base_stays_private_unless_told(hub: HfApi, tmp_path: Path) -> None:
    assert preflight(tmp_path, private=False) == []
    hub.update_repo_settings("local/pico", private=True)
    assert snapshots.peek("local/pico", tmp_path).private and snapshots.pull("local/pico", tmp_path).private
    with pytest.raises(HubError) as refused:
        preflight(tmp_path, private=False)
    assert "the base is private" in refused.value.what and "accept_private_base" in refused.value.fix
    assert preflight(tmp_path, private=True) == []
    assert preflight(tmp_path, private=False, more=", accept_private_base: true") == []


def test_repos_are_looked_at_before_any_work(hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HubError, match="does not belong to stranger"):
        preflight(tmp_path, owner="stranger")
    hub.create_repo("local/pico-Int4", private=False)
    with pytest.raises(HubError, match="the repo is public"):
        preflight(tmp_path)
    by_hand_names = [CommitOperationAdd(WEIGHTS, b"weights of someone")]
    hub.create_commit("local/pico-Int4", by_hand_names, commit_message="theirs")
    with pytest.raises(HubError, match="hubplugin did not publish"):
        preflight(tmp_path, private=False)
    monkeypatch.delenv("HF_TOKEN")
    (note,) = preflight(tmp_path)
    assert "no token" in note


def test_a_snapshot_in_the_clients_cache_keeps_its_name_and_commit(hub: HfApi, tmp_path: Path) -> None:
    cached = snapshot_download("local/pico", cache_dir=tmp_path / "cache", endpoint=hub.endpoint)
    found = snapshots.peek(cached, tmp_path)
    sha = hub.model_info("local/pico").sha
    assert (found.repo, found.sha, found.on_hub) == ("local/pico", sha, True)
    pulled = snapshots.pull(cached, tmp_path)
    assert (pulled.repo, pulled.sha, pulled.path) == ("local/pico", sha, Path(cached))
    assert document(tmp_path, model=cached).manifest.repo_of("Int4") == "local/pico-Int4"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (f"/c/models--o--n/snapshots/{'a' * 40}", ("o/n", "a" * 40)),
        (f"/c/models--gpt2/snapshots/{'0' * 40}", ("gpt2", "0" * 40)),
        (f"/c/models--o--a.b-c/snapshots/{'1' * 40}/", ("o/a.b-c", "1" * 40)),
        (f"/c/datasets--o--n/snapshots/{'a' * 40}", None),
        ("/c/models--o--n/snapshots/main", None),
        (f"/c/models--o--n/blobs/{'a' * 40}", None),
        ("owner/name", None),
    ],
)
def test_only_the_caches_own_layout_names_a_repo(path: str, named: tuple[str, str] | None) -> None:
    assert cached_snapshot(path) == named


def test_cards_name_what_the_hub_accepts() -> None:
    made = card_helpers.report()
    base = made.base.model_copy(update={"licence": "Apache License 2.0", "languages": ("English", "de", "zh-Hant")})
    data = ModelCard(card.render(made.model_copy(update={"base": base}))).data
    assert (data.license, data.license_name, data.language) == ("apache-2.0", None, ["de", "zh-Hant"])
    assert report.Base.model_validate(base.model_dump()) == base
