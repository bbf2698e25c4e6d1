"""`hf compress`: the real `hf` of this environment runs hubplugin, in a home folder of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubplugin import cli
from hubplugin.errors import HubError
from hubplugin.hub import extension

HF = Path(sys.executable).with_name("hf")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `hf` keeps its extensions: below the home folder, whatever HF_HOME says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".local" / "share" / "hf" / "extensions"


def verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["register-cli", *words])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def hf(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HF, *words], cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(not HF.is_file(), reason="no `hf` beside this Python")
def test_the_real_hf_runs_it_lists_it_and_forgets_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, said = verb(capsys)
    file = home / "hf-compress" / "manifest.json"
    assert (status, out) == (0, f"{file}\n") and "hf compress runs " in said
    before = file.read_bytes()
    assert verb(capsys)[:2] == (0, out) and file.read_bytes() == before, "registered again, nothing changes"

    done = hf("compress", "plan", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("where: nowhere.yaml\n"), done.stderr
    assert hf("compress", "--version", cwd=tmp_path).stdout == "0.1.0\n"
    assert "Compress Hub models by manifest" in hf("--help", cwd=tmp_path).stdout

    assert verb(capsys, "--remove")[:2] == (0, f"{file.parent}\n") and not file.parent.exists()
    assert verb(capsys, "--remove") == (0, "", "hf compress was not registered\n")


def test_another_environment_takes_its_place(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, program = extension.register()
    other = tmp_path / "bin" / "hubplugin"
    monkeypatch.setattr(extension, "_program", lambda: other)
    assert extension.register() == (file, other)
    assert json.loads(file.read_text())["executable_path"] == str(other) != str(program)


@pytest.mark.parametrize("held", ["another extension", "a broken one", "other files"])
def test_an_extension_of_others_is_never_touched(
    held: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = home / "hf-compress"
    place.mkdir(parents=True)
    theirs = {"owner": "a", "repo": "hf-compress", "repo_id": "a/hf-compress", "short_name": "compress"}
    theirs |= {"executable_path": "/bin/true", "type": "binary", "installed_at": "2026-01-01T00:00:00+00:00"}
    files = {"another extension": ("manifest.json", json.dumps(theirs)), "a broken one": ("manifest.json", "{")}
    name, text = files.get(held, ("hf-compress", "#!/bin/sh"))
    (place / name).write_text(text)
    for words in ([], ["--remove"]):
        status, out, said = verb(capsys, *words)
        assert (status, out) == (2, "") and f"where: {place}\n" in said, said
        assert "a/hf-compress" in said if held == "another extension" else "hubplugin registered" in said
    assert [path.name for path in place.iterdir()] == [name] and (place / name).read_text() == text


def test_what_others_put_beside_it_stays(home: Path) -> None:
    file, _ = extension.register()
    (file.parent / "notes").write_text("kept")
    assert extension.remove() == file.parent
    assert os.listdir(file.parent) == ["notes"]


def test_a_command_of_hf_itself_and_a_missing_program_are_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extension, "COMMAND", "upload")
    with pytest.raises(HubError, match="is a command of `hf` itself"):
        extension.register()
    monkeypatch.setattr(extension.sysconfig, "get_path", lambda *scheme: str(tmp_path))
    with pytest.raises(HubError, match="holds no program `hubplugin`"):
        extension.register()
    assert not home.exists()
