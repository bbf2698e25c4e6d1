"""What one variant's search measures on the base, the next variant's does not measure again."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pico
import pytest
from verify_helpers import make

from hubplugin import decisions, report
from hubplugin.checkpoint.resume import Decision, Fingerprint
from hubplugin.compress.search import bit_allocation, layer_dropping, width_curves
from hubplugin.compress.search.layer_dropping import LAYER
from hubplugin.compress.search.measurements import Dropped, Kept
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model.architectures import families

HEAD = """\
model: {model}
calibrate: {{self: true, samples: 8, sequence_length: 48}}
variants:
"""
CODES = "    - {{method: gptq, bits: 4, group_size: 32}}\n"


def pruned(name: str, how: str) -> str:
    return f"  {name}:\n    - {{{{method: prune, {how}}}}}\n"


def mixed(name: str, bits: float) -> str:
    budget = f"budget: {{{{bits_per_weight: {bits}}}}}"
    return f"  {name}:\n    - {{{{method: gptq, format: compressed-tensors, {budget}}}}}\n"


PRUNED = {"Less": pruned("Less", "ratio: 0.2"), "More": pruned("More", "ratio: 0.45")}
DAMPED = pruned("Damped", "ratio: 0.2, damp: 0.02")
MIXED = {"Small": mixed("Small", 3.6), "Large": mixed("Large", 5)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    pico.write(tmp_path / "base", num_hidden_layers=4)
    return tmp_path


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The measurements that are made, in their order."""
    seen = list[str]()

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **named: seen.append(name) or real(*given, **named))

    counted(layer_dropping._Dropping, "one_more")
    counted(width_curves, "measure")
    counted(bit_allocation, "measure")
    yield seen


def alone(place: Path, manifest: str, name: str) -> report.Report:
    shutil.rmtree(place / "out", ignore_errors=True)
    return report.read(make(place, "base", manifest) / name)


def test_ratios_share_what_is_measured_and_come_out_as_alone(place: Path, measured: list[str]) -> None:
    less = alone(place, HEAD + PRUNED["Less"], "Less")
    coded = alone(place, HEAD + PRUNED["More"] + CODES, "More")
    measured.clear()
    shutil.rmtree(place / "out")
    out = make(place, "base", HEAD + PRUNED["Less"] + PRUNED["More"] + CODES)
    assert measured.count("measure") == 1 and measured.count("one_more") == int(0.45 * 4)
    for expected in (less, coded):
        made = report.read(out / expected.variant)
        assert (
            made.shaping == expected.shaping and made.files["model.safetensors"] == expected.files["model.safetensors"]
        )
    seconds = report.read(out / "More").seconds
    assert seconds["shape, measured before"] > 0
    assert "shape, measured before" not in less.seconds


def test_what_depends_on_a_setting_is_measured_again(place: Path, measured: list[str]) -> None:
    make(place, "base", HEAD + PRUNED["Less"])
    make(place, "base", HEAD + PRUNED["Less"] + DAMPED)
    assert measured.count("measure") == 2
    make(place, "base", (HEAD + PRUNED["Less"]).replace("samples: 8", "samples: 9"))
    assert measured.count("measure") == 3


def test_budgets_share_sensitivities_and_come_out_as_alone(place: Path, measured: list[str]) -> None:
    expected = [alone(place, HEAD + MIXED[name], name) for name in MIXED]
    measured.clear()
    shutil.rmtree(place / "out")
    out = make(place, "base", HEAD + "".join(MIXED.values()))
    assert measured == ["measure"] and len(list((out / decisions.MEASURED).iterdir())) == 1
    for one in expected:
        assert report.read(out / one.variant).allocation == one.allocation
    assert expected[0].allocation != expected[1].allocation


def test_a_search_that_was_killed_goes_on_after_the_last_removal(
    place: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    base = open_model(place / "base", families.FAMILIES["llama"])
    ids = pico.tokens(4, 16)
    space: Any = SimpleNamespace(family=families.FAMILIES["llama"], base=SimpleNamespace(layers=4), per_layer=False)
    whole = layer_dropping.drop(base, ids, space, {LAYER: 3})
    kept = Kept(Decision(place / "removals.json", Fingerprint({"a": "b"}), Dropped))
    assert layer_dropping.drop(base, ids, space, {LAYER: 1}, kept) == whole[:1]
    measured.clear()
    assert layer_dropping.drop(base, ids, space, {LAYER: 3}, kept) == whole and measured == ["one_more"] * 2
    monkeypatch.setattr(base, "hidden_states", lambda *_: pytest.fail("measured again"))
    assert layer_dropping.drop(base, ids, space, {LAYER: 2}, kept) == whole[:2] and kept.reused > 0
    other = Kept(Decision(place / "removals.json", Fingerprint({"a": "c"}), Dropped))
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        layer_dropping.drop(base, ids, space, {LAYER: 1}, other)
