"""Trainings that variants of a manifest share are run once, and every byte is that of a variant alone."""

import errno
import os
from pathlib import Path

import pico
import pytest
from interruption_helpers import stopped
from sharing_helpers import alone, run, texts, weights

from hubplugin import sharing
from hubplugin.recovery import block_training, recover

PRUNED = "    - {method: prune, ffn: 0.25}"
RECOVERED = PRUNED + "\n    - {method: recover, blocks: 1}"
INT4 = "\n    - {method: gptq, bits: 4, group_size: 32}"
MANIFEST = f"""\
model: ./pico
calibrate: {{files: [text.txt], samples: 16, sequence_length: 32, seed: 0}}
variants:
  Pruned:
{PRUNED}
  Recovered:
{RECOVERED}
  Recovered-Int4:
{RECOVERED}{INT4}
  Recovered-longer:
{RECOVERED.replace("blocks: 1", "blocks: 2")}
  Distilled:
    - {{method: distill, student: ./student}}
  Distilled-Int4:
    - {{method: distill, student: ./student}}{INT4}
evaluate: {{perplexity: {{files: [held-out.txt], samples: 4, sequence_length: 32}}}}
gate: {{perplexity_ratio: 9999, mean_kl: 99, top1_agreement: 0}}
"""
NAMES = ("Pruned", "Recovered", "Recovered-Int4", "Recovered-longer", "Distilled", "Distilled-Int4")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of a base, texts and a manifest."""
    pico.write(tmp_path / "pico")
    pico.write(tmp_path / "student", num_hidden_layers=1, seed=1)
    texts(tmp_path)
    (tmp_path / "m.yaml").write_text(MANIFEST, encoding="utf-8")
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
    assert {file.name for file in (home / "out").iterdir()} == {*NAMES}


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
