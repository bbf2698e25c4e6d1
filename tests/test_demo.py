"""`hubplugin demo`, as a new user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from hubplugin import demo, report

RUN = """
import pathlib, sys
from hubplugin import demo
raise SystemExit(demo.run(*map(pathlib.Path, sys.argv[1:]), once=True))
"""


def shorter(place: Path) -> Path:
    """The demo's manifest with the two variants that it may serve, on half of the tokens."""
    manifest = yaml.safe_load(demo.MANIFEST.read_text(encoding="utf-8"))
    kept = (demo.DENSE_VARIANT, demo.SERVED_VARIANT)
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
