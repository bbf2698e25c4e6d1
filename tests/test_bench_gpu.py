"""The GPU benchmark's bookkeeping and its page; the script itself on a toy, without a GPU."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
BENCH = Path(__file__).parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import gpu  # noqa: E402
import gpu_page  # noqa: E402
import gpu_stages  # noqa: E402
import torch  # noqa: E402
from gpu_model import EIGHT_B, TINY, Weights  # noqa: E402

from hubplugin.kernels.second_moments import SecondMoments  # noqa: E402


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return gpu.measure(TINY, "cpu", 4, 128, with_rival=False)


@pytest.mark.parametrize("name", gpu.RUNS)
def test_a_toy_run_knows_every_stage_and_leaves_the_engine_as_it_was(name: str, found: dict[str, Any]) -> None:
    run = found["runs"][name]
    assert tuple(run["seconds"]) == gpu_stages.STAGES
    idle = {"cross moments"} if name == gpu.PLAIN else set()
    assert {stage for stage in gpu_page.CEILING if not run["seconds"][stage]} == idle
    assert {stage for stage in gpu_page.CEILING if not run["work"][stage]} == idle
    assert sum(run["seconds"].values()) <= run["wall"]  # each moment counts once
    assert run["fallbacks"] == 0 and 0 < run["mean_loss"] < 0.1
    assert SecondMoments.add.__module__ == "hubplugin.kernels.second_moments"


def test_packed_bytes_are_those_of_four_bit_codes_and_their_scales(found: dict[str, Any]) -> None:
    weights = TINY.layers * sum(inputs * outputs for inputs, outputs in TINY.input_groups())
    assert all(weights * 4 / 8 < run["packed_bytes"] < weights * 4.5 / 8 for run in found["runs"].values())


def test_the_8b_shape_is_the_work_that_arithmetic_says() -> None:
    work = EIGHT_B.work(corrected=0)
    tokens, weights = 128 * 2048, 32 * 218_103_808
    assert work["weights to the device"] == 2 * weights
    assert work["forward"] == 2 * tokens * weights + 32 * 2 * tokens * 2048 * 4096
    assert work["second moments"] == 32 * tokens * (3 * 4096**2 + 14336**2)
    half, whole = EIGHT_B.work(corrected=0.5), EIGHT_B.work(corrected=1)
    assert half["forward"] == 1.5 * work["forward"] and whole["forward"] == 2 * work["forward"]
    assert work["cross moments"] == 0 and half["cross moments"] == whole["cross moments"] / 2
    assert half["factor"] == 2 * work["factor"] == 2 * whole["factor"]
    assert work["factor"] == pytest.approx(34e12, rel=0.02) and work["sweep"] == pytest.approx(48e12, rel=0.02)


def test_a_stage_inside_a_stage_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr("gpu_stages.time.perf_counter", lambda: next(moments))
    marks = gpu_stages.TrainingCheckpoints("cpu")
    with marks.stage("sweep"), marks.stage("pack"):
        pass
    seconds = marks.seconds()
    assert (seconds["sweep"], seconds["pack"], seconds[gpu_stages.OTHER]) == (2.0 + 4.0, 3.0, 1.0 + 5.0)


def test_weights_of_one_seed_are_alike_and_norms_are_ones() -> None:
    first, second = Weights(TINY, "cpu"), Weights(TINY, "cpu")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(first.get(name), second.get(name)) and first.get(name).shape == (256, 384)
    assert set(dict(first.below("model.layers.0.input_layernorm"))) == {"weight"}
    assert bool((first.get("model.norm.weight") == 1).all()) and "lm_head.weight" not in first


def test_a_dry_run_prints_the_table_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_page, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(gpu_page, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny"])
    gpu.main()
    out = capsys.readouterr().out
    assert all(f"| {stage} | " in out for stage in gpu_stages.STAGES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--device", "cpu"], []])
def test_what_cannot_be_measured_is_refused(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refusal:
        gpu.main()
    assert refusal.value.code == 2


def test_without_a_result_the_page_says_so_and_how_to_get_one() -> None:
    page = gpu_page.page(None)
    assert "Not yet measured on a GPU" in page and "python bench/gpu.py\n" in page


def test_the_page_is_what_the_result_says() -> None:
    assert gpu_page.PAGE.read_text(encoding="utf-8") == gpu_page.page(gpu_page.result())


def test_a_rate_is_work_over_seconds_and_its_share_of_the_ceiling(found: dict[str, Any]) -> None:
    run = {
        **found["runs"][gpu.PLAIN],
        "wall": 20.0,
        "seconds": {"forward": 4.0, "pack": 1.0},
        "work": {"forward": 2e15},
        "peak_device_bytes": 40e9,
    }
    rival = {"version": "9.9", "wall": {"quantize": 70.0}}
    page = gpu_page.page(
        {**found, "runs": {"plain GPTQ": run}, "ceilings": {"bf16 product": 1e15}, "llmcompressor": rival}
    )
    assert (
        "| forward | 4.00 | 80% | 2,000 TFLOP | 500 TFLOP/s | 50% |" in page
        and "| pack | 1.00 | 20% |  |  |  |" in page
    )
    assert "## Plain GPTQ: 20.0 s" in page and "40.0 GB of device memory at most" in page
    assert "70.0 s, 3.5 times plain GPTQ." in page and "Not yet" not in page
