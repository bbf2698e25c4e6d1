"""A config.json that transformers has built is not built again; one that it refused is."""

import subprocess
import sys
from pathlib import Path

import pico
import pytest
from plan_helpers import config_json

from hubplugin.errors import PlanError
from hubplugin.hub import client
from hubplugin.model.architectures import families
from hubplugin.model.construction import buildable, verdicts

WHERE = "o/m/config.json"
REFUSED = {"hidden_act": "no_such_function"}


@pytest.fixture
def builds(monkeypatch):
    """How often transformers was asked."""
    asked, check = [], buildable.check
    monkeypatch.setattr(buildable, "check", lambda *arguments: (asked.append(arguments), check(*arguments))[1])
    return asked


def decide(folder: Path, **changes: object) -> None:
    config = config_json(pico.config("llama")) | changes
    verdicts.check(config, families.match(config, WHERE), WHERE, folder)


def test_what_was_built_once_is_not_built_again_until_its_config_changes(tmp_path, builds):
    folder = tmp_path / "not" / "there"
    decide(folder)
    decide(folder)
    assert len(builds) == 1
    decide(folder, rms_norm_eps=1e-5)
    assert len(builds) == 2


def test_what_was_refused_is_asked_again_and_says_why_again(tmp_path, builds):
    for _ in range(2):
        with pytest.raises(PlanError, match="no_such_function"):
            decide(tmp_path, **REFUSED)
    assert len(builds) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["versions", "sources"])
def test_other_code_asks_again(tmp_path, builds, monkeypatch, name):
    decide(tmp_path)
    if name == "versions":
        monkeypatch.setattr(verdicts.metadata, "version", lambda package: "0.0")
    else:
        monkeypatch.setattr(verdicts, "ROOM", tmp_path)
    verdicts._code.cache_clear()
    decide(tmp_path)
    verdicts._code.cache_clear()
    assert len(builds) == 2


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path, builds):
    (tmp_path / "file").write_text("")
    decide(tmp_path / "file" / "folder")
    decide(tmp_path / "file" / "folder")
    assert len(builds) == 2


def test_a_plan_that_was_made_before_needs_no_torch(tmp_path, pico_folder):
    manifest, text = tmp_path / "manifest.yaml", tmp_path / "text.txt"
    text.write_text("words " * 1000)
    manifest.write_text(
        f"model: {pico_folder}\ncalibrate: {{files: [{text}], samples: 2, sequence_length: 16}}\n"
        "variants: {Int4: [{method: gptq, bits: 4, group_size: 32}]}\n"
    )
    without = "import sys; sys.modules['torch'] = None; from hubplugin.cli import main; main()"
    called = [sys.executable, "-m", "hubplugin"], [sys.executable, "-c", without]
    said = [subprocess.run([*one, "plan", str(manifest)], capture_output=True, text=True) for one in called]
    assert said[0].returncode == 0 == said[1].returncode, said[1].stderr
    assert said[0].stdout == said[1].stdout


def test_the_folder_is_where_the_client_keeps_what_packages_made(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_ASSETS_CACHE")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert client.assets_folder("built") == tmp_path / "assets" / "hubplugin" / "built" / "default"
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "own"))
    assert client.assets_folder("built") == tmp_path / "own" / "hubplugin" / "built" / "default"


def test_building_models_does_not_load_scikit_learn():
    code = "import sys; from hubplugin.model.construction import skeleton; print('sklearn' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
