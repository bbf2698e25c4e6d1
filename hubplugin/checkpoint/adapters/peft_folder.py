"""An adapter as PEFT saves it: adapter_config.json and adapter_model.safetensors, in and out. Knows no model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint import encodings, safetensors_io
from hubplugin.checkpoint.format_names import LORA_A, LORA_B, lora
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.model_folder import read_json
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.disk import write_atomically
from hubplugin.errors import CheckpointError
from serve.endpoint.companions.adapters import CONFIG, WEIGHTS

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "added", "config", "factors", "stands_beside", "write"]


def config(base: str, branch: str | None, rank: int, alpha: int, linears: Sequence[str]) -> dict[str, Any]:
    """adapter_config.json of an adapter at `linears`, by full module path, whose product is multiplied by alpha / rank.

    `base` is the repo or folder of the model it stands beside, at a branch (None: main).
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": branch,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in linears}),
        "modules_to_save": None,
    }


def write_config(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write adapter_config.json."""
    write_atomically(folder / CONFIG, json.dumps(entries, indent=2, sort_keys=True) + "\n")


def stands_beside(folder: Path, base: str, branch: str | None) -> None:
    """Name the model that an adapter stands beside, as `config` does."""
    entries = read_json(folder / CONFIG, str(folder))
    write_config(folder, entries | {"base_model_name_or_path": base, "revision": branch})


def write(folder: Path, tensors: Mapping[str, Tensor], entries: Mapping[str, Any]) -> None:
    """Write both files. `tensors` go by PEFT's names. Raises CheckpointError where they cannot be written."""
    safetensors_io.write_atomically(folder / WEIGHTS, tensors, {"format": "pt"})
    write_config(folder, entries)


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder, read lazily. Raises CheckpointError where a file is missing or damaged."""

    folder: Path

    @cached_property
    def reader(self) -> Reader:
        """Its tensors."""
        return Reader(self.folder, (WEIGHTS,))

    @cached_property
    def scale(self) -> float:
        """What the product of its factors is multiplied by."""
        entries = read_json(self.folder / CONFIG, str(self.folder))
        try:
            return float(entries["lora_alpha"]) / int(entries["r"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            fix = "save it again by PEFT's save_pretrained"
            raise CheckpointError(str(self.folder / CONFIG), "names no lora_alpha and r", fix) from error

    @property
    def headers(self) -> Mapping[str, Header]:
        """Of its tensors."""
        return self.reader.headers

    def product(self, linear: str) -> Tensor | None:
        """What it adds to a linear's weight, float32 [outputs, inputs]; None where it has no factors for that."""
        if lora(linear, LORA_B) not in self.reader:
            return None
        b, a = (self.reader.get(lora(linear, part)) for part in (LORA_B, LORA_A))
        return encodings.product(b, a).mul_(self.scale)


def factors(linear: str, b: Tensor, a: Tensor) -> dict[str, Tensor]:
    """B [outputs, rank] and A [rank, inputs] of a linear, by PEFT's names."""
    return {lora(linear, LORA_A): a, lora(linear, LORA_B): b}


def added(weight: Tensor, product: Tensor | None) -> Tensor:
    """A weight and what an adapter adds to it, in float32."""
    return weight if product is None else weight.to(torch.float32) + product
