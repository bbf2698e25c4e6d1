"""Evaluation against the formulas in float64, and the page on what it costs."""

import argparse
import sys
from pathlib import Path

import pico
import pytest

from hubplugin.model import kl_divergence

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import evaluation


def test_evaluation_says_what_the_formulas_in_float64_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_divergence, "LOGITS", 5000)  # several pieces, and a last one that is smaller
    base, variant = pico.write(tmp_path / "base"), pico.write(tmp_path / "variant", seed=1)
    (tmp_path / "text.txt").write_text("A quiet river ran below the old mill. " * 80)
    given = {"base": base, "text": tmp_path / "text.txt", "folders": [variant], "windows": 6, "length": 40}
    before, now = (evaluation.measured(argparse.Namespace(**given, way=way)) for way in evaluation.WAYS[:2])
    assert before["tokens"] == now["tokens"] == 240
    for name, quality in before["quality"].items():
        for key, expected in quality.items():
            close = 1e-4 if key == "perplexity" else 1e-3
            assert now["quality"][name][key] == pytest.approx(expected, rel=close), f"{name}: {key}"
    assert before["quality"]["variant"]["mean_kl"] > 0.01
    for result in (before, now):
        result |= {"peak": 2**30, "others": 0.25}
    page = evaluation.page({"before": before, "now": now})
    assert "now: peak 1024 MiB, 25% of the cores were used by others" in page
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][1:] == [
        *("| base", "| variant", "| together")
    ]
