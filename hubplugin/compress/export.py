"""Encodings -> a folder in AutoGPTQ's, compressed-tensors' or our formats, or a plain smaller model; and back to dense.

Any loader that reads these formats reads the folder, with no option and no code of ours; factors need our plugin. Knows
encodings, formats and the plan. Knows no method and no Hub.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from hubplugin.checkpoint import formats, model_folder, safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.encodings import Coded, CodedFactors, LowRank
from hubplugin.checkpoint.format_names import FACTOR_B, factor_a
from hubplugin.checkpoint.resume import Fingerprint, FinishedBlocks
from hubplugin.checkpoint.safetensors_io import TORCH_DTYPES, Reader
from hubplugin.compress.blocks.block_record import Block
from hubplugin.compress.quantization_config import quantization_config, quantize_config
from hubplugin.model.architectures.families import Family
from hubplugin.plan import sizes
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.report import LinearResult


class Folder:
    """A variant's folder in the making. Give it every block in order, then `finish`.

    `finished` counts the blocks that a killed run left. Raises CompressError where they have another fingerprint.
    """

    def __init__(
        self, path: Path, base: Path, plan: VariantPlan, family: Family, fingerprint: Fingerprint | None = None
    ) -> None:
        self.path, self._base, self._plan, self._family = path, base, plan, family
        self._reader = Reader(base)
        self._blocks = FinishedBlocks(path, fingerprint or Fingerprint())
        self.finished = len(self._blocks)

    def add(self, block: Block) -> None:
        """Write one block: its linears as encoded, its other tensors as in the base."""
        tensors: dict[str, Tensor] = {}
        written = set()
        for name, encoding in block.encodings.items():
            written |= {f"{name}.weight", f"{name}.bias"}
            if isinstance(encoding, Coded):
                tensors |= {f"{name}.{part}": tensor for part, tensor in self._coded(name, encoding).items()}
            elif isinstance(encoding, LowRank | CodedFactors):
                tensors |= self._factors(name, encoding)
            else:
                tensors[f"{name}.weight"] = self._as_stored(f"{name}.weight", block.weights[name])
            if name in block.biases:
                tensors[f"{name}.bias"] = self._as_stored(f"{name}.bias", block.biases[name])
        for base_name in self._reader.headers:
            name = block.prefix + base_name.removeprefix(block.source)
            if base_name.startswith(block.source + ".") and name not in written and name in self._plan.tensors:
                tensors[name] = self._reader.get(base_name)
        self._blocks.add(block.index, tensors, block.samples, block.results)

    def _coded(self, name: str, encoding: Coded) -> dict[str, Tensor]:
        """The tensors of codes of a linear, or of one of its factors, by the last part of their names."""
        scheme = self._plan.linear(name).scheme
        assert scheme is not None
        base_name = sizes.origin(self._family, f"{name}.weight", self._plan.sources)
        return formats.tensors(encoding, scheme.layout, TORCH_DTYPES[self._reader.headers[base_name].dtype])

    def _factors(self, name: str, encoding: LowRank | CodedFactors) -> dict[str, Tensor]:
        factors = self._plan.linear(name).factors
        assert factors is not None
        names = factor_a(name, factors.shared), f"{name}.{FACTOR_B}"
        if isinstance(encoding, LowRank):
            return dict(zip(names, (encoding.a, encoding.b), strict=True))
        parts = {one: self._coded(name, codes) for one, codes in zip(names, (encoding.a, encoding.b), strict=True)}
        return {f"{one}.{end}": tensor for one, tensors in parts.items() for end, tensor in tensors.items()}

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.to(TORCH_DTYPES[self._plan.tensors[name].dtype])

    def dense(self, index: int) -> dict[str, Tensor]:
        """The dense tensors of a finished block, by their names inside the block."""
        reader, prefix = self._blocks.reader(index), self._family.block.format(i=index)
        view = DenseView(self.path, reader, quantization_config(self._plan) or {})
        return dict(view.below(prefix))

    def results(self) -> list[LinearResult]:
        """The lines of the report of all finished blocks."""
        return [result for index in range(len(self._blocks)) for result in self._blocks.results(index)]

    def samples(self) -> dict[str, Tensor]:
        """The rows of all finished blocks that the gate compares, by linear."""
        return {name: rows for index in range(len(self._blocks)) for name, rows in self._blocks.samples(index).items()}

    def finish(self, keep_blocks: bool = False) -> None:
        """Write the weights, config.json, quantize_config.json and the tokenizer's files.

        With `keep_blocks` the finished blocks stay, for a run that is killed later on.
        """
        readers = [self._blocks.reader(index) for index in range(len(self._blocks))]
        reader_of = {name: reader for reader in (self._reader, *readers) for name in reader.headers}
        order = [name for reader in (*readers, self._reader) for name in reader.headers]
        headers = {name: reader_of[name].headers[name] for name in order if name in self._plan.tensors}
        safetensors_io.write(self.path, headers, lambda name: reader_of[name].get(name))
        config = dict(self._plan.config)
        quantization = quantization_config(self._plan)
        if quantization:
            config["quantization_config"] = quantization
        if beside := quantize_config(self._plan):
            _dump(beside, self.path / "quantize_config.json")
        _dump(config, self.path / "config.json")
        model_folder.copy(model_folder.companions(self._base), self._base, self.path)
        if not keep_blocks:
            self._blocks.remove()


def _dump(data: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
