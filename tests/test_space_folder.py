"""The folder of a Space: its card, its requirements, and a program that starts from what lies beside it."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from hubplugin import cli
from hubplugin.errors import ServeError
from hubplugin.space import folder
from serve import ports

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("space") / "mine"
    folder.write(place, max_parameters=300_000_000)
    return place


def test_its_card_is_what_a_space_of_gradio_needs(written: Path) -> None:
    _, front, text = (written / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["sdk"] == "gradio" and about["sdk_version"] == metadata.version("gradio")
    assert about["app_file"] == "app.py" and about["hf_oauth"] is True
    assert about["hf_oauth_scopes"] == ["read-repos", "contribute-repos"]  # no right to repos of other origin
    assert len(about["short_description"]) <= 60 and "300 M parameters" in text


def test_all_that_is_imported_is_pinned_at_the_version_that_is_installed(written: Path) -> None:
    index, *lines = (written / "requirements.txt").read_text().splitlines()
    assert index.startswith("--extra-index-url https://")
    pinned = {line.split("==")[0]: line.split("==")[1] for line in lines}
    for line in metadata.requires("hubplugin") or ():
        asked = Requirement(line)
        if asked.marker is None or asked.marker.evaluate({"extra": "ui"}):
            assert asked.specifier.contains(pinned[asked.name].split("+")[0], prereleases=True), line
    assert "hubplugin" not in pinned and "pytest" not in pinned and pinned["torch"] == metadata.version("torch")
    assert all(Requirement(line) for line in lines)


def test_its_program_starts_from_its_own_files(written: Path, tmp_path: Path) -> None:
    port = str(ports.choose(ports.LOOPBACK, None))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"GRADIO_SERVER_PORT": port, "HF_HOME": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path / "up")}
    process = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=written,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url == f"http://127.0.0.1:{port}", process.stderr and process.stderr.read()
        shown = httpx.get(url, trust_env=False)
        assert shown.status_code == 200 and "hubplugin space" in shown.text
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_the_verb_prints_the_command_that_uploads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], written: Path
) -> None:
    for _ in range(2):  # written again, it is the same folder
        with pytest.raises(SystemExit) as ended:
            cli.main(["space", "--write", str(tmp_path / "new")])
        assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [f"hf upload YOUR-NAME/compress {tmp_path / 'new'} . --repo-type space"] * 2
    assert not list((tmp_path / "new").rglob("*.pyc")) and (tmp_path / "new" / "serve" / "engine.py").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ServeError, match="is no empty folder"):
        folder.write(tmp_path / "other", max_parameters=1)
