"""Which runs the benchmark consists of, and where each result lies. Standard library only; runs nothing.

A cell is one setting that all engines meet: model, calibration ids, bits, group size. Its results are one JSON file.
"""

import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SEQUENCE = 512  # tokens
TOKENS = (8192, 32768, 131072)
SEEDS = (0, 1, 2, 3, 4)
MODELS = ("docs", "75m", "350m")
LAYERS = ("75m-3-layers", "75m-6-layers", "75m", "75m-24-layers")  # one shape, growing
# recipes that seek quality and not speed: one round, and only where quality means something
ONCE = (
    *("ours-fisher", "ours-tuned", "ours-rounded", "gptqmodel-mse", "llmcompressor-mse"),
    *("autoround", "autoround-light", "onecomp", "onecomp-mse"),
)
ENGINES = ("ours", "ours-fast", "ours-plain", "gptqmodel", "llmcompressor", *ONCE)
ROUNDS = 3
LONG = 10**13  # weights times tokens from which on one round is all a cell gets
# millions of weights in the blocks' linears, by model; of the others only speed means anything
TRAINED = {"smollm2-moved": 106, "smollm2": 106, "docs": 9}
SIZES = {**TRAINED, "75m": 75, "350m": 340, "75m-3-layers": 19, "75m-6-layers": 38, "75m-24-layers": 151}


@dataclass(frozen=True)
class Cell:
    """One setting. `data` says where ids come from: the model's own samples, random ids or a text file."""

    model: str
    tokens: int
    bits: int = 4
    group_size: int = 128
    seed: int = 0
    data: str = "self"  # self | random | text
    engines: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        """Calibration sequences."""
        return self.tokens // SEQUENCE

    @property
    def name(self) -> str:
        """Of its result file."""
        return f"{self.model}.{self.data}.w{self.bits}g{self.group_size}.{self.tokens}.seed{self.seed}"

    def rounds(self, engine: str, wanted: int | None) -> int:
        """How often an engine runs."""
        if engine in ONCE or (wanted is None and SIZES[self.model] * 10**6 * self.tokens >= LONG):
            return 1
        return wanted or ROUNDS

    @property
    def path(self) -> Path:
        """Of its results."""
        return RESULTS / f"{self.name}.json"

    def read(self) -> dict[str, Any]:
        """What is known so far."""
        if self.path.exists():
            return json.loads(self.path.read_text(encoding="utf-8"))
        setting = {key: value for key, value in asdict(self).items() if key != "engines"}
        return {"cell": setting, "settings": {}, "runs": []}

    def write(self, results: dict[str, Any]) -> None:
        """Keep what is known, whole or not at all."""
        RESULTS.mkdir(exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def _cell(model: str, tokens: int, engines: Sequence[str], text: bool, bits: int, group: int, seed: int) -> Cell:
    data = "random" if model not in TRAINED else "text" if text or model != "docs" else "self"
    kept = tuple(engine for engine in engines if engine not in ONCE or model in (*TRAINED, "tiny"))
    return Cell(model, tokens, bits, group, seed, data, kept)


def planned(text: bool, engines: Sequence[str]) -> list[Cell]:
    """The whole benchmark: speed by size and tokens, the curve over layers, quality over seeds."""
    cells = [_cell(model, tokens, engines, text, 4, 128, 0) for model in MODELS for tokens in TOKENS]
    ours = [engine for engine in engines if engine.startswith("ours")]
    cells += [_cell(model, TOKENS[0], ours, text, 4, 128, 0) for model in LAYERS if model not in MODELS and ours]
    quality = [engine for engine in engines if engine not in ("autoround-light", "ours-rounded")]
    settings = itertools.product((128, 32), SEEDS)
    cells += [
        _cell("docs", 32768, quality, text, 4, group, seed) for group, seed in settings if (group, seed) != (128, 0)
    ]
    return cells


def chosen(
    models: Sequence[str],
    tokens: Sequence[int],
    engines: Sequence[str],
    text: bool,
    bits: Sequence[int],
    groups: Sequence[int],
    seeds: Sequence[int],
) -> list[Cell]:
    """Every combination of what was asked for."""
    rows = itertools.product(models, tokens, bits, groups, seeds)
    return [_cell(model, count, engines, text, bit, group, seed) for model, count, bit, group, seed in rows]
