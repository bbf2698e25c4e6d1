"""Edits of others stay through every later commit of ours, and what would be lost is shown before anything is."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from publish_helpers import REPO, WEIGHTS, by_hand, document, finished, folder, read

from hubplugin.errors import HubError
from hubplugin.hub.publishing import publish, push

INDEX = "model.safetensors.index.json"


@pytest.fixture
def made(tmp_path: Path, pico_folder: Path) -> Path:
    return folder(tmp_path / "Int4", pico_folder)


def again(made: Path, number: int) -> bool:
    """Publish a folder whose report has changed."""
    (made / "report.json").write_text(f'{{"run": {number}}}')
    return push.push(made, REPO, private=True).changed


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        ({"README__md": "---\nlicense: apache-2.0\n---\n# Theirs\n"}, "README.md"),
        ({"chat_template__jinja": "mended"}, "chat_template.jinja"),
        ({"LICENSE": "a longer text"}, "LICENSE"),
    ],
)
def test_an_edit_that_stayed_once_stays_through_later_commits(hub: HfApi, made: Path, edit, name: str) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, **edit)
    theirs = read(hub, name)
    for number in (1, 2, 3):
        assert again(made, number), "our report is new each time"
        assert read(hub, name) == theirs
    (made / name).write_text("---\nlicense: mit\n---\nours, changed after theirs\n")
    with pytest.raises(HubError, match=f"others have changed {name}"):
        push.push(made, REPO, private=True)
    push.push(made, REPO, private=True, force=True)
    assert read(hub, name) == (made / name).read_text()
    (made / name).write_text("---\nlicense: mit\n---\nours alone again\n")
    assert push.push(made, REPO, private=True).changed, "by force it became ours"


@pytest.mark.parametrize("name", ["LICENSE", "generation_config.json"])
def test_a_file_that_others_deleted_stays_deleted(hub: HfApi, made: Path, name: str) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, deleted=name)
    for number in (1, 2):
        assert again(made, number)
        assert name not in hub.list_repo_files(REPO)
    push.push(made, REPO, private=True, force=True)
    assert name in hub.list_repo_files(REPO)


@pytest.mark.parametrize("name", ["merges.txt", "NOTICE", "picture.png"])
@pytest.mark.parametrize("first", [True, False])
def test_files_that_we_never_wrote_are_never_deleted(hub: HfApi, made: Path, name: str, first: bool) -> None:
    if first:
        hub.create_repo(REPO, private=True)
    else:
        push.push(made, REPO, private=True)
    hub.upload_file(path_or_fileobj=b"theirs", path_in_repo=name, repo_id=REPO)
    for number in (1, 2, 3):
        again(made, number)
    push.push(made, REPO, private=True, force=True)
    assert read(hub, name) == "theirs"


def test_what_an_earlier_release_published_is_ours(hub: HfApi, made: Path) -> None:
    """Its commits have a title and say no more."""
    (made / "vocab.json").write_text("{}")
    hub.create_repo(REPO, private=True)
    hub.upload_folder(repo_id=REPO, folder_path=made, commit_message="Publish with hubplugin")
    (made / "vocab.json").unlink()
    assert again(made, 1)
    assert "vocab.json" not in hub.list_repo_files(REPO)


def test_weights_that_others_added_are_not_mixed_with_ours(hub: HfApi, made: Path) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, **{INDEX: '{"weight_map": {}}', "model-00001-of-00001.safetensors": b"weights of theirs"})
    head = hub.model_info(REPO).sha
    with pytest.raises(HubError, match=r"model-00001-of-00001\.safetensors"):
        push.push(made, REPO, private=True)
    assert hub.model_info(REPO).sha == head
    push.push(made, REPO, private=True, force=True)
    assert [name for name in hub.list_repo_files(REPO) if name.startswith("model")] == [WEIGHTS]


def test_a_squashed_history_needs_a_word_once_and_leaves_no_stale_shards(hub: HfApi, made: Path) -> None:
    single = (made / WEIGHTS).read_bytes()
    (made / WEIGHTS).rename(made / "model-00001-of-00001.safetensors")
    (made / INDEX).write_text("{}")
    push.push(made, REPO, private=True)
    hub.delete_repo(REPO)
    hub.create_repo(REPO, private=True)
    hub.upload_folder(repo_id=REPO, folder_path=made, commit_message="Super-squash branch 'main'")
    for name in (INDEX, "model-00001-of-00001.safetensors"):
        (made / name).unlink()
    (made / WEIGHTS).write_bytes(single)
    with pytest.raises(HubError, match="no commit of ours"):
        push.push(made, REPO, private=True)
    push.push(made, REPO, private=True, force=True)
    assert [name for name in hub.list_repo_files(REPO) if name.startswith("model")] == [WEIGHTS]
    assert again(made, 1)


def test_a_shard_that_both_sides_removed_is_no_conflict(hub: HfApi, made: Path) -> None:
    (made / "model-00009-of-00009.safetensors").write_bytes(b"x")
    push.push(made, REPO, private=True)
    by_hand(hub, deleted="model-00009-of-00009.safetensors")
    (made / "model-00009-of-00009.safetensors").unlink()
    assert again(made, 1)


@pytest.mark.parametrize("name", ["README.md", "generation_config.json"])
def test_how_a_text_that_stays_differs_is_shown_without_what_a_terminal_obeys(
    hub: HfApi, made: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, **{name: (made / name).read_text() + "a line \x1b[2Jof theirs\n"})
    push.push(made, REPO, private=True)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "of theirs" in line]
    assert "\x1b" not in said


def test_a_long_text_is_shown_in_part(hub: HfApi, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    push.push(made, REPO, private=True)
    by_hand(hub, README__md="".join(f"line {number} of theirs\n" for number in range(500)))
    capsys.readouterr()
    push.push(made, REPO, private=True)
    said = [line for line in capsys.readouterr().err.splitlines() if "of theirs" in line or "more lines" in line]
    assert "-line 1 of theirs" in said and "more lines" in said[-1] and len(said) < 60


def test_all_repos_are_looked_at_before_the_first_commit(hub: HfApi, tmp_path: Path, pico_folder: Path) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", pico_folder, asked)
    publish.publish(asked, out)
    by_hand(hub, "local/pico-Int8", config__json="{}")
    (out / "Int4" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Ours, again\n")
    with pytest.raises(HubError, match=r"config\.json"):
        publish.publish(asked, out)
    assert "again" not in read(hub, "README.md", "local/pico-Int4")
    assert all(pushed.changed for pushed in publish.publish(asked, out, force=True))


@pytest.mark.parametrize("card", ["---\nlicense: Apache License 2.0\n---\n", "---\nlanguage: [English]\n---\n"])
def test_all_cards_are_looked_at_before_the_first_commit(hub: HfApi, tmp_path: Path, pico_folder, card: str) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", pico_folder, asked)
    (out / "Int8" / "README.md").write_text(card)
    with pytest.raises(HubError) as refused:
        publish.publish(asked, out)
    assert "Int8" in refused.value.where and not hub.repo_exists("local/pico-Int4")
