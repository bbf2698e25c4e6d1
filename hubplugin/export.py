"""Encodings -> a folder in AutoGPTQ's checkpoint format, or a plain smaller model; and that folder read back as dense.

The folder explains itself: any loader that reads "gptq" reads it, with no option and no code of ours. No method, no
mathematics beyond `scale * (code - zero)`, no Hub.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hubplugin
from hubplugin import folder as model_folder
from hubplugin import pack
from hubplugin.checkpoint import Reader, Writer
from hubplugin.compress import Block
from hubplugin.family import Family
from hubplugin.manifest import Gptq
from hubplugin.methods import grid
from hubplugin.methods.base import Grid
from hubplugin.plan import VariantPlan

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # by safetensors' names


class Folder:
    """A variant's folder in the making. Give it every block in order, then `finish`."""

    def __init__(self, path: Path, base: Path, plan: VariantPlan, family: Family) -> None:
        self.path, self._base, self._plan, self._family = path, base, plan, family
        self._reader = Reader(base)
        self._writer = Writer(path)
        self._in_blocks: set[str] = set()

    def add(self, block: Block) -> None:
        """Write one block: its linears as encoded, everything else of it as in the base."""
        for name, encoding in block.encodings.items():
            self._in_blocks |= {f"{name}.weight", f"{name}.bias"}
            if isinstance(encoding, Grid):
                for key, tensor in gptq_tensors(encoding).items():
                    self._writer.add(f"{name}.{key}", tensor)
            else:
                self._add_dense(f"{name}.weight", block.weights[name])
            if name in block.biases:
                self._add_dense(f"{name}.bias", block.biases[name])
        for name in self._reader.headers:
            if name.startswith(block.prefix + ".") and name not in self._in_blocks:
                self._in_blocks.add(name)
                self._writer.add(name, self._reader.get(name))

    def _add_dense(self, name: str, tensor: Tensor) -> None:
        self._writer.add(name, tensor.to(DTYPES[self._plan.tensors[name].dtype]))

    def finish(self) -> None:
        """Write what lies outside the blocks, config.json, quantize_config.json and the tokenizer's files."""
        for name in self._reader.headers:
            if name not in self._in_blocks and name in self._plan.tensors:
                self._writer.add(name, self._reader.get(name))
        self._writer.finish()
        config = dict(self._plan.config)
        quantization = quantization_config(self._plan)
        if quantization:
            config["quantization_config"] = quantization
            _dump(quantization, self.path / "quantize_config.json")
        _dump(config, self.path / "config.json")
        for file in companions(self._base):
            shutil.copyfile(file, self.path / file.name)  # the cache holds links; copy what they point to


def companions(base: Path) -> list[Path]:
    """The tokenizer, template, generation and licence files of a model folder: copied byte for byte."""
    own = ("config.json", "README.md", *model_folder.WEIGHTS)
    return sorted(
        file
        for file in base.iterdir()
        if file.is_file()
        and model_folder.allowed(file.name, model_folder.PULLED)
        and not model_folder.allowed(file.name, own)
    )


def gptq_tensors(encoding: Grid) -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx of one linear, as AutoGPTQ stores them (format "gptq")."""
    outputs, inputs = encoding.codes.shape
    groups = inputs // encoding.group_size
    return {
        "qweight": pack.pack_rows(encoding.codes.T, encoding.bits),
        "qzeros": pack.zeros(groups, outputs, encoding.bits),
        "scales": encoding.scales.T.contiguous(),
        "g_idx": (torch.arange(inputs) // encoding.group_size).to(torch.int32),
    }


def quantization_config(plan: VariantPlan) -> dict[str, Any] | None:
    """The dict for config.json and quantize_config.json; None for a variant without quantization."""
    steps = [step for step in plan.steps if isinstance(step, Gptq)]
    if not steps:
        return None
    step = steps[0]
    return {
        "quant_method": "gptq",
        "bits": step.bits,
        "group_size": step.group_size,
        "sym": True,
        "desc_act": False,  # columns went back to their places: g_idx is trivial and loaders may ignore it
        "static_groups": False,
        "true_sequential": True,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "damp_percent": step.damp,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        "meta": {
            "quantizer": [f"hubplugin:{hubplugin.__version__}"],
            "act_group_aware": step.act_order,
            "clip_search": step.clip_search,
            "damp_percent": step.damp,
            "report": "report.json",
        },
    }


def _dump(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class DenseView:
    """A model folder as if it were dense: GPTQ linears are dequantized on the way out. A `stream.Source`."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.config = model_folder.read_config(self.folder, str(folder))
        self._reader = Reader(folder)
        self._quantization = self.config.get("quantization_config") or {}

    def __contains__(self, name: str) -> bool:
        return name in self._reader or self._packed(name)

    def _packed(self, name: str) -> bool:
        return name.endswith(".weight") and f"{name.removesuffix('.weight')}.qweight" in self._reader

    def get(self, name: str) -> Tensor:
        """A dense tensor; float32 where it was dequantized, else as stored."""
        if not self._packed(name):
            return self._reader.get(name)
        return dequantize(self._reader, name.removesuffix(".weight"), self._quantization["bits"])

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All dense tensors under a prefix, by the rest of their name."""
        for name in self._reader.headers:
            if not name.startswith(prefix + ".") or name.endswith((".qzeros", ".scales", ".g_idx")):
                continue
            plain = name.removesuffix(".qweight") + ".weight" if name.endswith(".qweight") else name
            yield plain[len(prefix) + 1 :], self.get(plain)


def dequantize(reader: Reader, name: str, bits: int) -> Tensor:
    """One linear [outputs, inputs] in float32 from its four stored tensors, by the g_idx and zeros that are stored."""
    codes = pack.unpack_rows(reader.get(f"{name}.qweight"), bits).T.float()
    group_of = reader.get(f"{name}.g_idx").long()
    scales = reader.get(f"{name}.scales").float().T[:, group_of]
    zeros = pack.unpack_rows(reader.get(f"{name}.qzeros").T.contiguous(), bits).float() + 1
    return grid.values(codes, scales, zeros[:, group_of])
