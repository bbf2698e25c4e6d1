"""The benchmark's bookkeeping: which runs, in which order, what the page says of them. No engine is run."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import cells  # noqa: E402
import environments  # noqa: E402
import measure  # noqa: E402
import page  # noqa: E402
import run  # noqa: E402


def result(engine: str, number: int, wall: float, kl: float | None = None, **more: Any) -> dict[str, Any]:
    """One run as `run.py` records it."""
    quality = {"perplexity": 10.0, "perplexity_stderr": 0.1, "mean_kl": kl, "p99_kl": 0.1, "top1_agreement": 0.9}
    return {
        "engine": engine,
        "round": number,
        "created": "2026-01-02T03:04:05+00:00",
        "wall": wall,
        "process_wall": wall + 3,
        "cpu": 2 * wall,
        "process_cpu": 2 * wall + 3,
        "others_share": 0.0,
        "peak_bytes": 700_000_000,
        "import_bytes": 500_000_000,
        "stages": {"import": 3.0, "load": 0.0, "quantize": wall, "save": 0.0},
        "safetensors_bytes": 9_000_000,
        "sha256": "0" * 64,
        **({"quality": quality} if kl is not None else {}),
        **more,
    }


def cell(runs: list[dict[str, Any]], **setting: Any) -> dict[str, Any]:
    """One result file."""
    tokens = {"source": "samples", "sequences": 16, "tokens_per_sequence": 512, "seed": 0, "sha256": "0" * 64}
    return {
        "cell": {"model": "docs", "tokens": 8192, "bits": 4, "group_size": 128, "seed": 0, "data": "self", **setting},
        "settings": {"ours": {"version": "1", "packages": {"torch": "2"}, "settings": {"damp": 0.01}}},
        "runs": runs,
        "machine": {**measure.machine(), "omp_wait_policy": ""},
        "calibration": tokens,
        "evaluation": {"held_out": tokens, "base": {"perplexity": 9.0, "perplexity_stderr": 0.1}},
    }


def test_every_planned_cell_has_a_file_of_its_own_and_engines() -> None:
    planned = cells.planned(False, cells.ENGINES)
    assert len({cell.name for cell in planned}) == len(planned)
    assert all(cell.engines for cell in planned)
    assert {cell.model for cell in planned} >= {*cells.MODELS, *cells.LAYERS}
    quality = [cell for cell in planned if (cell.model, cell.tokens) == ("docs", 32768)]
    assert {(cell.group_size, cell.seed) for cell in quality} == {
        (group, seed) for group in (128, 32) for seed in range(5)
    }


def test_slow_recipes_are_spared_the_models_whose_quality_means_nothing() -> None:
    (large,) = cells.chosen(["75m"], [8192], cells.ENGINES, False, [4], [128], [0])
    assert large.engines == ("ours", "ours-fast", "ours-plain", "gptqmodel", "llmcompressor")


def test_rounds_take_turns_and_start_with_another_engine_each_time() -> None:
    (chosen,) = cells.chosen(["75m"], [8192], ["ours", "gptqmodel"], False, [4], [128], [0])
    order = run.missing(chosen, {"runs": []}, None)
    assert order == [(0, "ours"), (0, "gptqmodel"), (1, "gptqmodel"), (1, "ours"), (2, "ours"), (2, "gptqmodel")]


def test_what_was_run_is_not_run_again() -> None:
    (chosen,) = cells.chosen(["75m"], [8192], ["ours", "gptqmodel"], False, [4], [128], [0])
    done = {"runs": [{"engine": "ours", "round": 0}, {"engine": "gptqmodel", "round": 0}]}
    assert run.missing(chosen, done, 1) == []
    assert run.missing(chosen, done, 2) == [(1, "gptqmodel"), (1, "ours")]


def test_a_run_whose_folder_was_lost_before_it_was_measured_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "WORK", tmp_path / "work")
    (chosen,) = cells.chosen(["docs"], [8192], ["ours", "gptqmodel"], False, [4], [128], [0])
    measured, lost = result("ours", 0, 1.0, kl=0.02), result("gptqmodel", 0, 2.0)
    chosen.write({**chosen.read(), "runs": [measured, lost]})
    assert run.begun(chosen, force=False)["runs"] == [measured]
    run.folder_of(chosen, lost).mkdir(parents=True)
    assert run.begun(chosen, force=False)["runs"] == [measured, lost]
    assert run.begun(chosen, force=True)["runs"] == []


def test_cost_counts_children_and_a_timeout_ends_them(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'x = bytearray(2**27); sum(range(10**7))'])"
    cost = measure.run([sys.executable, "-c", script], dict(os.environ), tmp_path / "log", 60)
    assert cost.status == 0 and not cost.timed_out
    assert cost.peak > 2**27 and cost.cpu > 0.05
    slow = measure.run([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), tmp_path / "log", 0.5)
    assert slow.timed_out and slow.status < 0 and "not done" in measure.why(tmp_path / "log", slow)


def test_the_reason_of_a_failure_names_no_path(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise OSError('/some/where/deep/file.txt is missing')"]
    cost = measure.run(command, dict(os.environ), tmp_path / "log", 60)
    assert measure.why(tmp_path / "log", cost) == "status 1: OSError: file.txt is missing"


def test_the_page_gives_medians_extremes_and_ratios_to_ours() -> None:
    runs = [result("ours", number, wall) for number, wall in enumerate((2.0, 1.0, 4.0))]
    runs += [result("gptqmodel", number, wall) for number, wall in enumerate((8.0, 10.0, 9.0))]
    text = page.render([cell(runs)])
    assert "| hubplugin | 3 | 2.0 (1.0-4.0) | 1.00 |" in text
    assert "| gptqmodel | 3 | 9.0 (8.0-10.0) | 4.50 |" in text
    assert "hubplugin takes 0.22 of its time" in text


def test_the_page_compares_quality_seed_by_seed() -> None:
    found = [
        cell([result("ours", 0, 1.0, kl=kl), result("gptqmodel", 0, 1.0, kl=theirs)], seed=seed)
        for seed, (kl, theirs) in enumerate(((0.01, 0.02), (0.03, 0.04), (0.02, 0.02)))
    ]
    line = next(line for line in page.render(found).splitlines() if line.startswith("| gptqmodel | 3 | 10.000"))
    assert "0.0200 (0.0200-0.0400) | 0.75 (0.50-1.00)" in line


def test_the_page_says_which_runs_failed_and_which_were_disturbed() -> None:
    failed = {"engine": "gptqmodel", "round": 0, "created": "2026-01-02", "failed": "status 1: no", "process_wall": 1.0}
    text = page.render([cell([result("ours", 0, 1.0, others_share=0.5), failed])])
    assert "failed: status 1: no" in text and "1 of 1 runs had to share the machine" in text


def test_the_line_over_tokens_is_the_least_squares_one() -> None:
    found = [
        cell([result("ours", 0, wall)], tokens=tokens) for tokens, wall in ((8192, 3.0), (32768, 6.0), (131072, 18.0))
    ]
    assert "2.0 s + 0.122 s per 1,000 tokens, R² 1.0000" in page.render(found)


def test_the_page_in_docs_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.render(page.results()), "run `make bench-page`"


def test_results_name_no_machine_and_no_path() -> None:
    for path in cells.RESULTS.glob("*.json"):
        assert not re.search(r'"(/|\w:\\\\)', path.read_text(encoding="utf-8")), path
        json.loads(path.read_text(encoding="utf-8"))


def test_every_rival_has_a_lock_with_torch_and_itself() -> None:
    for name in environments.NAMES:
        lines = (BENCH / "lock" / f"{name}.txt").read_text(encoding="utf-8").lower().splitlines()
        assert any(line.startswith("torch==") for line in lines)
        assert any(line.startswith(f"{name}==") for line in lines)
        assert all(re.fullmatch(r"[a-z0-9_.\-]+==[\w.]+", line) for line in lines), name
