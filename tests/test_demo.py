"""`hubplugin demo`, as a new user runs it."""

import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from hubplugin import report


@pytest.mark.slow
@pytest.mark.serve
@pytest.mark.timeout(1200)
def test_the_demo_goes_from_an_empty_folder_to_an_answer_in_the_chat_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hubplugin", "demo", "--once", "--out", str(tmp_path)]
    demo = subprocess.run(command, capture_output=True, text=True, check=False)
    assert demo.returncode == 0, demo.stderr[-2000:]
    assert re.search(r"Answer: +\w+", demo.stdout), demo.stdout[-500:]
    variants = [report.read(path.parent) for path in (tmp_path / "variants").glob("*/report.json")]
    assert len(variants) == 5 and all(variant.passed for variant in variants)
    command_lines = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
    still_running = [words for words in command_lines if str(tmp_path) in " ".join(words or [])]
    assert not still_running
