"""Cards in a real browser: no broken picture, no broken table, nothing wider than a phone."""

import sys
from pathlib import Path
from typing import Any

import pytest
import test_speed
from serve_helpers import browser
from test_card_plots import full

from hubplugin import writing

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import card_page

__all__ = ["browser"]  # a fixture

EVIL = "a|b <img src=x> | `c` [d](javascript:0)\n\n| not | a table |"


@pytest.mark.browser
def test_a_card_with_everything_in_it_is_whole(browser: Any, tmp_path: Path) -> None:
    writing.write(full(speed=test_speed.measured()), tmp_path)
    assert card_page.faults(browser, tmp_path) == []


@pytest.mark.browser
def test_what_a_model_brings_along_breaks_no_card(browser: Any, tmp_path: Path) -> None:
    made = full(notes=(EVIL,), manifest_text=f"model: {EVIL}", versions={EVIL: EVIL})
    base = made.base.model_copy(update={"licence_name": EVIL, "architecture": EVIL})
    writing.write(made.model_copy(update={"base": base}), tmp_path)
    assert card_page.faults(browser, tmp_path) == []


@pytest.mark.browser
def test_what_is_broken_is_found(browser: Any, tmp_path: Path) -> None:
    writing.write(full(), tmp_path)
    card = tmp_path / "README.md"
    (tmp_path / "variants.png").unlink()
    card.write_text(card.read_text().replace("| --- | ---: | ---: | ---: |", "| --- |") + "\n" + "long" * 400)
    found = card_page.faults(browser, tmp_path)
    assert any("picture variants.png" in fault for fault in found)
    assert any("no table" in fault for fault in found) and any("wider" in fault for fault in found)
