"""`hubplugin publish --dry-run`: what would be sent, file by file; the Hub stays as it is."""

from pathlib import Path

import pytest
from fault_helpers import Site, impatient, site
from publish_helpers import by_hand, document, finished

from hubplugin import cli
from hubplugin.errors import HubError
from hubplugin.hub.publishing import publish

__all__ = ["impatient", "site"]  # fixtures


@pytest.fixture
def base(site: Site, pico_folder: Path) -> Path:
    site.api.create_repo("local/pico")
    site.api.upload_folder(repo_id="local/pico", folder_path=pico_folder)
    site.watch.clear()
    return pico_folder


def states(lines: list[str], repo: str) -> dict[str, tuple[str, int]]:
    """Path -> what becomes of it, and bytes to send."""
    rows = [line.split("\t") for line in lines]
    return {path: (state, int(size)) for name, state, size, path in rows if name == repo}


def test_a_dry_run_lists_everything_and_changes_nothing(
    site: Site, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", base, asked)
    with pytest.raises(SystemExit) as done:
        cli.main(["publish", str(tmp_path / "m.yaml"), "--out", str(out), "--dry-run"])
    assert done.value.code == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for variant in ("Int4", "Int8"):
        sizes = {path.name: ("new", path.stat().st_size) for path in (out / variant).iterdir()}
        assert states(lines, f"local/pico-{variant}") == sizes
    assert "would make the private repo" in printed.err and "nothing was changed" in printed.err
    assert site.watch.writes == [] and not site.api.repo_exists("local/pico-Int4")
    assert list(publish.dry_run(asked, out)) == lines, "twice the same"


def test_what_is_listed_is_what_a_publish_sends(site: Site, base: Path, tmp_path: Path) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", base, asked)
    publish.publish(asked, out)
    lines = list(publish.dry_run(asked, out))
    assert {state for state, _ in states(lines, "local/pico-Int4").values()} == {"same"}
    (out / "Int4" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Again\n")
    (out / "Int4" / "NOTICE").write_text("said by hand\n")
    site.watch.clear()
    listed = states(list(publish.dry_run(asked, out)), "local/pico-Int4")
    card = (out / "Int4" / "README.md").stat().st_size
    assert (listed["README.md"], listed["NOTICE"]) == (("changed", card), ("new", 13))
    assert sum(size for _, size in listed.values()) == card + 13
    assert site.watch.writes == []
    first, second = publish.publish(asked, out)
    assert first.changed and not second.changed
    (out / "Int4" / "NOTICE").unlink()
    assert states(list(publish.dry_run(asked, out)), "local/pico-Int4")["NOTICE"] == ("removed", 0)


def test_edits_of_others_are_named(site: Site, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = document(tmp_path)
    out = finished(tmp_path / "out", base, asked)
    publish.publish(asked, out)
    by_hand(site.api, "local/pico-Int4", README__md="# Theirs\n")
    capsys.readouterr()
    lines = list(publish.dry_run(asked, out))
    assert states(lines, "local/pico-Int4")["README.md"] == ("kept", 0)
    assert "changed by others: README.md" in capsys.readouterr().err
    by_hand(site.api, "local/pico-Int4", config__json="{}")
    head, listed = site.api.model_info("local/pico-Int4").sha, []
    with pytest.raises(HubError, match=r"others have changed config\.json"):
        for line in publish.dry_run(asked, out):
            listed.append(line)
    assert states(listed, "local/pico-Int4")["config.json"] == ("conflict", 0)
    assert len(states(listed, "local/pico-Int8")) == len(list((out / "Int8").iterdir())), "all repos are listed"
    forced = states(list(publish.dry_run(asked, out, force=True)), "local/pico-Int4")
    assert (forced["config.json"][0], forced["README.md"][0]) == ("changed", "changed")
    assert site.api.model_info("local/pico-Int4").sha == head
