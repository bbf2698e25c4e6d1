"""Encodings -> a folder in AutoGPTQ's or compressed-tensors' format, or a plain smaller model; and back to dense.

The folder explains itself: any loader that reads these formats reads it, with no option and no code of ours. No method,
no mathematics, no Hub.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubplugin.checkpoint import formats, safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import Grid
from hubplugin.checkpoint.format_names import GPTQ
from hubplugin.checkpoint.journal import Journal
from hubplugin.checkpoint.model_folder import companions
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress.block_record import Block
from hubplugin.compress.quantization_config import quantization_config
from hubplugin.model.families import Family
from hubplugin.plan import sizes
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import LinearResult

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
        return formats.tensors(encoding, scheme.layout, DTYPES[self._reader.headers[old].dtype])

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(DTYPES[self._plan.tensors[name].dtype])

    def dense(self, index: int) -> dict[str, Tensor]:
        """The dense tensors of a finished block, by their names inside the block."""
        reader, prefix = self._journal.reader(index), self._family.block.format(i=index)
        view = DenseView(self.path, reader, quantization_config(self._plan) or {})
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
        safetensors_io.write(self.path, kept, lambda name: place[name].get(name))
        config = dict(self._plan.config)
        quantization = quantization_config(self._plan)
        if quantization:
            config["quantization_config"] = quantization
            if quantization["quant_method"] == GPTQ:
                _dump(quantization, self.path / "quantize_config.json")
        _dump(config, self.path / "config.json")
        for file in companions(self._base):
            shutil.copyfile(file, self.path / file.name)  # the cache holds links; copy what they point to
        if not keep_journal:
            self._journal.drop()


def _dump(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
