"""Variants to verify, made once from a pico model in a folder, and ways to spoil copies of them."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubplugin import pipeline, verification
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.plan import planner
from hubplugin.verification import Line, Outcome, Verification

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, sequence_length: 32}}
variants:
  GPTQ-Int4:
    - {{method: gptq, bits: 4, group_size: 32}}
  CT-Int8-asymmetric:
    - {{method: gptq, bits: 8, group_size: 32, symmetric: false, ignore: [layers.0.*.down_proj]}}
  W8A8:
    - {{method: gptq, bits: 8, group_size: -1, activation_bits: 8}}
  Mixed:
    - {{method: gptq, bits: 4, group_size: 32, format: gptq, overrides: {{down_proj: {{bits: 8, group_size: 64}}}}}}
  Pruned:
    - {{method: prune, ffn: 0.25}}
  Wanda-2of4:
    - {{method: wanda, pattern: "2:4"}}
  LowRank:
    - {{method: lowrank, ratio: 0.2, rank_multiple: 4}}
  LowRank-Int4:
    - {{method: lowrank, ratio: 0.4, rank_multiple: 8}}
    - {{method: gptq, bits: 4, group_size: -1}}
evaluate: {{perplexity: {{self: true, samples: 2, sequence_length: 32, seed: 1}}}}
gate: {{perplexity_ratio: 1000, top1_agreement: 0}}
"""
WEIGHTS = "model.safetensors"
Spoil = Callable[[Path], object]


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


def make(place: Path, model: str, manifest: str = MANIFEST) -> Path:
    """The variants of a manifest, as `hubplugin run` leaves them."""
    (place / "m.yaml").write_text(manifest.format(model=model), encoding="utf-8")
    asked = loading.load(place / "m.yaml")
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    planned = planner.make(asked, peek.config, peek.tensors, revision=peek.sha)
    pipeline.run(asked, planned, place / "out", dequantized)
    return place / "out"


def copy(folder: Path, place: Path, *spoiled: Spoil) -> Path:
    """A copy that has been spoiled."""
    made = shutil.copytree(folder, place / folder.name)
    for spoil in spoiled:
        spoil(made)
    return made


def foreign(folder: Path, place: Path, name: str, *spoiled: Spoil, card: str | None = "license: mit") -> Path:
    """A copy that looks as other tools leave it: no report and manifest, and a card of its own."""
    made = shutil.copytree(folder, place / name)
    for ours in ("report.json", "manifest.yaml", "README.md"):
        (made / ours).unlink()
    if card is not None:
        (made / "README.md").write_text(f"---\n{card}\n---\n# A model\n", encoding="utf-8")
    for spoil in spoiled:
        spoil(made)
    return made


def edit(name: str, old: str, new: str) -> Spoil:
    """Replace a text that must be there, once."""

    def spoil(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {name}"
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return spoil


def in_json(name: str, *path: str, value: Any) -> Spoil:
    """Set an entry of a JSON file."""

    def spoil(folder: Path) -> None:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (folder / name).write_text(json.dumps(values), encoding="utf-8")

    return spoil


def in_tensors(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    """Change the tensors of the only weight file."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / WEIGHTS, {"format": "pt"})

    return spoil


def without(*names: str) -> Spoil:
    """Remove files."""
    return lambda folder: [(folder / name).unlink() for name in names]


def failed(found: Verification, *but: str) -> list[str]:
    """The lines of claims that are false, as text; `but` names checks that may be left out."""
    return [str(line) for line in found.lines if line.outcome is Outcome.FAILED and line.check not in but]


def lines_of(found: Verification, check: str) -> list[Line]:
    """The lines of a check."""
    return [line for line in found.lines if line.check == check]


def looked(found: Verification) -> set[str]:
    """The checks that passed or failed."""
    return {line.check for line in found.lines if line.outcome is not Outcome.NOT_CHECKED}


def verify(folder: Path, base: Path | None = None, options: Iterable[str] = ()) -> Verification:
    """As the verb does."""
    return verification.verify(str(folder), str(base) if base else None, set(options))


def plus_one_in_words(words: Tensor, bits: int) -> Tensor:
    """One more in each code of packed words."""
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return (words.long() + ones).to(torch.int32) if words.numel() else words
