"""A metric is one row: the gate, the card and the bench table know it from there."""

import sys
from pathlib import Path

import card_helpers
import pytest
import torch
from gate_helpers import candidate
from huggingface_hub import ModelCard

from hubplugin import report
from hubplugin.evaluation import gate, metrics, token_statistics
from hubplugin.evaluation.cards import card, card_metadata, numbers
from hubplugin.evaluation.metrics import QUALITY, SIZES, CardRow, Column, Metric, ModelIndex
from hubplugin.evaluation.speed_metrics import SPEED
from hubplugin.evaluation.token_statistics import LogitsPiece, Statistic, TokenValues, kl_from_base
from hubplugin.manifest import metrics as manifest_metrics
from hubplugin.manifest.metrics import GATE_KEYS, PERPLEXITY, GateKey, Thresholds

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import table

MAX_KL = Metric(
    "max_kl",
    label="max KL",
    unit="nats per token",
    better="lower",
    value=metrics.recorded("max_kl"),
    relative=True,
    card=CardRow("KL(base ‖ this), greatest", numbers.figures),
    column=Column("max KL", "{:.4f}".format, base="0"),
    model_index=ModelIndex("max_kl_divergence", "greatest KL(base || variant)"),
)


def test_what_a_manifest_limits_and_what_logits_give_has_a_row() -> None:
    rows = {metric.key: metric for metric in (*QUALITY, *SPEED)}
    assert {key: row.better for key, row in GATE_KEYS.items()} == {key: rows[key].better for key in GATE_KEYS}
    assert set(token_statistics.STATISTICS) - {"perplexity_stderr"} <= set(rows)
    assert set(token_statistics.STATISTICS) <= set(report.Quality.model_fields)
    assert len({metric.key for metric in (*QUALITY, *SIZES)}) == len(QUALITY) + len(SIZES)


def test_a_row_and_a_statistic_are_all_that_a_new_metric_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    greatest = Statistic(kl_from_base, lambda kl: float(kl.max()), needs_base=True)
    monkeypatch.setitem(token_statistics.STATISTICS, "max_kl", greatest)
    for module in (metrics, card, card_metadata, table):
        monkeypatch.setattr(module, "QUALITY", (*QUALITY, MAX_KL))
    values = TokenValues(against_base=True)
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    values.add(LogitsPiece(logits, torch.tensor([0, 1]), torch.tensor([[0.0, 1.0], [0.0, 2.0]])))
    quality = values.quality(windows=2)
    greatest_kl = 2 * (torch.tensor(2.0).sigmoid() - torch.tensor(-2.0).sigmoid())
    assert getattr(quality, "max_kl") == pytest.approx(float(greatest_kl))  # noqa: B009
    evaluation = card_helpers.report().evaluation
    assert evaluation is not None
    made = card_helpers.report(
        evaluation=evaluation.model_copy(update={"variant": quality}), seconds={"compress and export": 1.0}
    )
    report.write(made, tmp_path)
    assert report.read(tmp_path).evaluation == made.evaluation
    text = card.render(made)
    assert f"| KL(base ‖ this), greatest | | {numbers.figures(float(greatest_kl))} |" in text
    results = {result.metric_type for result in ModelCard(text).data.eval_results}
    assert "max_kl_divergence" in results
    assert f"{float(greatest_kl):.4f}" in table.row(made).split(" | ")


def test_without_the_base_nothing_is_compared_with_it() -> None:
    values = TokenValues(against_base=False)
    values.add(LogitsPiece(torch.zeros(4, 8), torch.tensor([1, 2, 3, 4])))
    quality = values.quality(windows=2)
    assert quality.perplexity == pytest.approx(8) and quality.perplexity_stderr == pytest.approx(0, abs=1e-6)
    assert quality.mean_kl is quality.p99_kl is quality.top1_agreement is None


@pytest.mark.parametrize(
    ("thresholds", "passed", "said"),
    [
        ({}, True, "the manifest sets no threshold"),
        ({"perplexity_ratio": 1.2}, True, "perplexity ratio 1.1667, allowed 1.2"),
        ({"mean_kl": 0.1}, False, "mean KL 0.1523, allowed 0.1"),
        (
            {"perplexity_ratio": 1.2, "mean_kl": 0.2},
            True,
            "perplexity ratio 1.1667, allowed 1.2; mean KL 0.1523, allowed 0.2",
        ),
    ],
)
def test_the_gate_holds_measured_numbers_against_thresholds(
    thresholds: dict[str, float], passed: bool, said: str
) -> None:
    line = gate.quality(candidate(evaluation=card_helpers.report().evaluation, thresholds=Thresholds(**thresholds)))
    assert (line.passed, line.detail) == (passed, said)
    assert gate.quality(candidate(evaluation=None, thresholds=Thresholds(**thresholds))).passed == (not thresholds)


def test_what_was_not_measured_does_not_pass() -> None:
    evaluation = card_helpers.report().evaluation
    assert evaluation is not None
    without = evaluation.model_copy(update={"variant": evaluation.base})
    line = gate.quality(candidate(evaluation=without, thresholds=Thresholds(mean_kl=0.1)))
    assert not line.passed and line.detail == "mean KL not measured, allowed 0.1"


def test_a_limit_of_a_metric_where_more_is_better_is_a_least_value() -> None:
    row = GateKey("top1_agreement", "higher", {"gt": 0, "le": 1}, "The least top-1 agreement.", 0.9, PERPLEXITY)
    assert row.holds(0.9, 0.8) and not row.holds(0.7, 0.8) and not row.holds(None, 0.8)
    assert not row.holds(float("nan"), 0.8)
    assert set(manifest_metrics.Thresholds.model_fields) == {*GATE_KEYS, "tasks"}  # whose keys are names of tasks


def test_the_table_has_a_cell_under_every_head() -> None:
    for changes in ({}, {"evaluation": None}):
        made = card_helpers.report(seconds={"compress and export": 12.34}, **changes)
        for line in (table.row(made), table.base_row(made)):
            assert len(line.split(" | ")) == len(table.COLUMNS)
    assert table.base_row(card_helpers.report()).split(" | ")[5:] == [
        *("20.460 ± 0.310", "1.0000", "0", "0", "100.0%", "-", "-")
    ]
