"""The main job as a newcomer starts it."""

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
    words = [sys.executable, "-m", "hubplugin", "demo", "--once", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(r"Answer: +\w+", done.stdout), done.stdout[-500:]
    variants = [report.read(path.parent) for path in (tmp_path / "variants").glob("*/report.json")]
    assert len(variants) == 5 and all(made.passed for made in variants)
    left = [child.info["cmdline"] for child in psutil.process_iter(["cmdline"])]
    assert not [words for words in left if str(tmp_path) in " ".join(words or [])], "something was left running"
