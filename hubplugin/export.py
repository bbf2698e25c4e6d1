"""Encodings -> a folder in AutoGPTQ's or compressed-tensors' format, or a plain smaller model; and back to dense.

The folder explains itself: any loader that reads these formats reads it, with no option and no code of ours. No method,
no mathematics, no Hub.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubplugin import checkpoint, declare, layout, sizes
from hubplugin import folder as model_folder
from hubplugin.checkpoint import Reader
from hubplugin.compress import Block
from hubplugin.errors import CheckpointError
from hubplugin.family import Family
from hubplugin.journal import Journal
from hubplugin.methods.base import Grid
from hubplugin.plan import VariantPlan
from hubplugin.report import LinearResult
from hubplugin.schemes import COMPRESSED_TENSORS, GPTQ

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # by safetensors' names


class Folder:
    """A variant's folder in the making. Give it every block in order, then `finish`.

    Blocks that an earlier, interrupted run finished are there already: `finished` counts them. `identity` says what the
    folder is made from, by name; CompressError is raised where blocks made from something else stand there.
    """

    def __init__(
        self, path: Path, base: Path, plan: VariantPlan, family: Family, identity: Mapping[str, str] | None = None
    ) -> None:
        self.path, self._base, self._plan, self._family = path, base, plan, family
        self._reader = Reader(base)
        self._journal = Journal(path, identity or {})
        self.finished = len(self._journal)

    def add(self, block: Block) -> None:
        """Write one block: its linears as encoded, everything else of it as in the base."""
        tensors: dict[str, Tensor] = {}
        own = set()
        for name, encoding in block.encodings.items():
            own |= {f"{name}.weight", f"{name}.bias"}
            if isinstance(encoding, Grid):
                tensors |= {f"{name}.{part}": tensor for part, tensor in self._grid(name, encoding).items()}
            else:
                tensors[f"{name}.weight"] = self._as_stored(f"{name}.weight", block.weights[name])
            if name in block.biases:
                tensors[f"{name}.bias"] = self._as_stored(f"{name}.bias", block.biases[name])
        for old in self._reader.headers:
            name = block.prefix + old.removeprefix(block.source)
            if old.startswith(block.source + ".") and name not in own and name in self._plan.tensors:
                tensors[name] = self._reader.get(old)
        self._journal.add(block.index, tensors, block.samples, block.results)

    def _grid(self, name: str, encoding: Grid) -> dict[str, Tensor]:
        scheme = self._plan.linear(name).scheme
        assert scheme is not None
        old = sizes.origin(self._family, f"{name}.weight", self._plan.sources)
        return layout.tensors(encoding, scheme.layout, DTYPES[self._reader.headers[old].dtype])

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(DTYPES[self._plan.tensors[name].dtype])

    def dense(self, index: int) -> dict[str, Tensor]:
        """The dense tensors of a finished block, by their names inside the block."""
        reader, prefix = self._journal.reader(index), self._family.block.format(i=index)
        view = DenseView(self.path, reader, declare.quantization_config(self._plan) or {})
        return dict(view.below(prefix))

    def results(self) -> list[LinearResult]:
        """What the report says of all finished blocks."""
        return [result for index in range(len(self._journal)) for result in self._journal.results(index)]

    def samples(self) -> dict[str, Tensor]:
        """The rows of all finished blocks that the gate compares, by linear."""
        return {
            name: rows for index in range(len(self._journal)) for name, rows in self._journal.samples(index).items()
        }

    def finish(self, keep_journal: bool = False) -> None:
        """Write the weights, config.json, quantize_config.json and the tokenizer's files."""
        readers = [self._journal.reader(index) for index in range(len(self._journal))]
        place = {name: reader for reader in (self._reader, *readers) for name in reader.headers}
        order = [name for reader in (*readers, self._reader) for name in reader.headers]
        kept = {name: place[name].headers[name] for name in order if name in self._plan.tensors}
        checkpoint.write(self.path, kept, lambda name: place[name].get(name))
        config = dict(self._plan.config)
        quantization = declare.quantization_config(self._plan)
        if quantization:
            config["quantization_config"] = quantization
            if quantization["quant_method"] == GPTQ:
                _dump(quantization, self.path / "quantize_config.json")
        _dump(config, self.path / "config.json")
        for file in companions(self._base):
            shutil.copyfile(file, self.path / file.name)  # the cache holds links; copy what they point to
        if not keep_journal:
            self._journal.drop()


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


def _dump(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class DenseView:
    """A model folder as if it were dense: quantized linears are dequantized on the way out. A `stream.Source`.

    Reads what `layout` names, from whatever tool: AutoGPTQ's format with zeros of its first or second version and any
    g_idx, compressed-tensors' packed and int8 weights. Raises CheckpointError for weights quantized in another way.
    """

    def __init__(self, folder: Path, reader: Reader | None = None, quantization: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.config = {} if reader else model_folder.read_config(self.folder, str(folder))
        self._reader = reader or Reader(folder)
        self._quantization = self.config.get("quantization_config") or {} if quantization is None else quantization
        self._bits, self._zero_shift = _grids(self._quantization, str(folder))

    @property
    def int8_inputs(self) -> tuple[str, ...]:
        """The linears whose inputs an engine rounds to int8, token by token, before it multiplies."""
        groups = self._quantization.get("config_groups", {}).values()
        if not any((group.get("input_activations") or {}).get("strategy") == "token" for group in groups):
            return ()
        int8 = (name for name, header in self._reader.headers.items() if header.dtype == "I8")
        return tuple(name.removesuffix(".weight") for name in int8 if name.endswith(".weight"))

    def __contains__(self, name: str) -> bool:
        return name in self._reader or self._is_quantized(name)

    def _is_quantized(self, name: str) -> bool:
        return name.endswith(".weight") and layout.is_quantized(self._reader.headers, name.removesuffix(".weight"))

    def get(self, name: str) -> Tensor:
        """A dense tensor; float32 where it was dequantized, else as stored."""
        if not self._is_quantized(name):
            return self._reader.get(name)
        return layout.dense(self._reader, name.removesuffix(".weight"), self._bits, self._zero_shift)

    def names(self) -> Iterator[str]:
        """The names of all dense tensors."""
        for name in self._reader.headers:
            module, _, part = name.rpartition(".")
            if part not in layout.BESIDE:
                yield f"{module}.weight" if part in layout.CODES else name

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All dense tensors under a prefix, by the rest of their name."""
        for name in self.names():
            if name.startswith(prefix + "."):
                yield name[len(prefix) + 1 :], self.get(name)


def _grids(quantization: dict[str, Any], where: str) -> tuple[frozenset[int], int]:
    """The widths of codes that a quantization_config names, and what its zeros are stored less by."""
    method = quantization.get("quant_method")
    if method == COMPRESSED_TENSORS:
        groups = quantization.get("config_groups", {}).values()
        return frozenset(group["weights"]["num_bits"] for group in groups if group.get("weights")), 0
    if method in (None, GPTQ):
        rules = [quantization, *(quantization.get("dynamic") or {}).values()]
        second = quantization.get("checkpoint_format") == "gptq_v2"
        return frozenset(rule["bits"] for rule in rules if "bits" in rule), 0 if second else 1
    raise CheckpointError(
        f"{where}/config.json: quantization_config",
        f"{method!r} is no quantization that is read here",
        "name a dense model, or one in AutoGPTQ's or compressed-tensors' format",
    )
