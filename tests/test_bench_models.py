"""Models of the benches and what settings of gptq are worth on them. Nothing is fetched and nothing is quantized."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import ablation
import cells
import models

from hubplugin.demo import smollm2


def test_weights_move_by_half_a_step_of_their_group_at_most() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(6, 96, generator=generator)
    weight[0, :32] = 0.5  # a group without a step stays
    moved = smollm2.off_grid(weight, torch.Generator().manual_seed(0))
    groups = weight.reshape(-1, 32)
    step = (groups.max(1).values - groups.min(1).values) / 15
    far = (moved - weight).reshape(-1, 32).abs().max(1).values
    assert bool((far <= step / 2 + 1e-6).all()) and torch.equal(moved[0, :32], weight[0, :32])
    assert float((far[1:] / step[1:]).min()) > 0.4, "the whole of the step is used"
    assert torch.equal(moved, smollm2.off_grid(weight, torch.Generator().manual_seed(0)))


def test_a_real_model_is_calibrated_on_text_and_meets_all_engines(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="text file"):
        models.tokens("smollm2", tmp_path, 4, 0, None)
    (cell,) = cells.chosen(["smollm2-moved"], [8192], cells.ENGINES, False, [4], [64], [0])
    assert cell.data == "text" and cell.engines == cells.ENGINES
    assert set(models.REAL) < set(cells.TRAINED) < set(cells.SIZES)


def run(name: str, seed: int, kl: float) -> dict[str, Any]:
    known = {"bits": 3, "group_size": 64, "seed": seed, "name": name}
    return {**known, "mean_kl": kl, "p99_kl": 10 * kl, "perplexity": 30 + kl}


def test_settings_are_compared_with_the_default_of_the_same_seed() -> None:
    half = "corrected on half of the tokens"
    runs = [
        run(ablation.DEFAULT, 0, 0.2),
        run(ablation.DEFAULT, 1, 0.4),
        run(half, 1, 0.5),
        run("and two passes", 2, 1),
    ]
    table = "\n".join(ablation._table(3, 64, runs))
    assert f"| {ablation.DEFAULT} | 2 | 0.3000 (0.2000 to 0.4000) | 1.00 | 3.000 | 30.300 |" in table
    assert f"| {half} | 1 | 0.5000 | 1.25 | 5.000 | 30.500 |" in table
    assert "| and two passes | 1 | 1.0000 | - | 10.000 | 31.000 |" in table
    assert ablation._table(4, 64, runs) == []


def test_the_page_fits_the_results() -> None:
    assert ablation.PAGE.read_text(encoding="utf-8") == ablation.render(ablation.results())
