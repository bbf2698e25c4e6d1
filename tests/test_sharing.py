"""Trainings that variants of a manifest share are run once, and every byte is that of a variant alone."""

import errno
import os
from pathlib import Path

import pico
import pytest
from interruption_helpers import stopped
from sharing_helpers import alone, run, weights, write

from hubplugin import sharing
from hubplugin.recovery import block_training, recover

PRUNE, INT4 = {"method": "prune", "ffn": 0.25}, {"method": "gptq", "bits": 4, "group_size": 32}
RECOVER, DISTILL = {"method": "recover", "blocks": 1}, {"method": "distill", "student": "./student"}
VARIANTS = {
    "Pruned": [PRUNE],
    "Recovered": [PRUNE, RECOVER],
    "Recovered-Int4": [PRUNE, RECOVER, INT4],
    "Recovered-longer": [PRUNE, {**RECOVER, "blocks": 2}],
    "Distilled": [DISTILL],
    "Distilled-Int4": [DISTILL, INT4],
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a base, texts and a manifest."""
    pico.write(tmp_path / "pico")
    pico.write(tmp_path / "student", num_hidden_layers=1, seed=1)
    write(tmp_path, VARIANTS, 16, perplexity_ratio=9999, mean_kl=99, top1_agreement=0)
    return tmp_path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that a training has written to."""
    seen: list[Path] = []
    real = recover._train

    def counted(setup, task, teachers, checkpoints):
        seen.append(checkpoints.folder.parent)
        return real(setup, task, teachers, checkpoints)

    monkeypatch.setattr(recover, "_train", counted)
    return seen


def test_equal_trainings_are_run_once_and_come_out_as_alone(home: Path, trained: list[Path], capsys) -> None:
    made = {one.variant: one for one in run(home)}
    assert [folder.parent.name for folder in trained] == [
        ".Recovered.part",
        ".Distilled.part",
        ".Recovered-longer.part",
    ]
    said = capsys.readouterr().err
    assert "Recovered, Recovered-Int4 | trained once" in said and "Distilled, Distilled-Int4 | trained once" in said
    # blocks that are only pruned are made once, for all that is trained of them
    assert said.count("Pruned | block 01/2") == 1 and "Recovered | block" not in said and "interrupted" not in said
    alone(home)
    assert weights(home, "out") == weights(home, "alone")
    first, second = made["Recovered"], made["Recovered-Int4"]
    assert first.recovery == second.recovery and first.recovery is not None
    assert second.seconds["compress and export"] > sum(first.recovery.seconds.values())
    assert {file.name for file in (home / "out").iterdir()} == {*VARIANTS}


@pytest.mark.parametrize("stop", [("_train", 1), ("_loss", 3), ("_link_file", 2)])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(stop, home, trained, monkeypatch) -> None:
    name, calls = stop
    with stopped(calls, sharing if name == "_link_file" else block_training, name, monkeypatch):
        run(home)
    trained.clear()
    run(home)
    assert len(trained) == (2 if name == "_link_file" else 3)  # what was trained is not trained again
    alone(home)
    assert weights(home, "out") == weights(home, "alone")


def test_where_files_cannot_be_linked_they_are_copied(home: Path, trained: list[Path], monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    run(home)
    assert len(trained) == 3
    alone(home)
    assert weights(home, "out") == weights(home, "alone")
