"""A model folder as if it were dense, whatever format its quantized weights are in. Knows formats. Knows no family."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hubplugin.checkpoint import formats
from hubplugin.checkpoint.adapters import composed, peft_folder
from hubplugin.checkpoint.adapters.peft_folder import Adapter
from hubplugin.checkpoint.encodings import Grid
from hubplugin.checkpoint.format_names import (
    CODEBOOK,
    COMPRESSED_TENSORS,
    FACTOR_A,
    FACTOR_B,
    GPTQ,
    LOW_RANK,
    is_factor,
    is_factored,
)
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.model_folder import read_json
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CheckpointError


class DenseView:
    """A model folder as if it were dense: quantized linears are dequantized on the way out, factors multiplied.

    Of a folder that adapters/composed.py has made, with the adapter's products added to the linears.

    A `WeightSource`. Reads what formats.py lists, from any tool: AutoGPTQ's format with zeros of its first or second
    version and any g_idx, compressed-tensors' packed, int8 and FP4 weights, our codebooks and factors. Raises
    CheckpointError for weights stored in another way.
    """

    def __init__(self, folder: Path, reader: Reader | None = None, quantization: dict[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.config = {} if reader else read_json(self.folder / "config.json", str(folder))
        self._reader = reader or Reader(folder)
        self._quantization = self.config.get("quantization_config") or {} if quantization is None else quantization
        self._adapter = Adapter(inside) if reader is None and (inside := composed.inside(self.folder)) else None
        self._bits, self._zero_offset = _bits_and_zero_offset(self._quantization, str(folder))

    @classmethod
    def without_adapter(cls, folder: Path) -> "DenseView":
        """The same, but of a folder with an adapter in it the weights alone: for whoever adds its products himself."""
        quantization = read_json(folder / "config.json", str(folder)).get("quantization_config")
        return cls(folder, Reader(folder), quantization or {})

    @property
    def int8_inputs(self) -> tuple[str, ...]:
        """The linears whose inputs an engine rounds to int8, token by token, before it multiplies."""
        groups = self._quantization.get("config_groups", {}).values()
        if not any((group.get("input_activations") or {}).get("strategy") == "token" for group in groups):
            return ()
        int8 = (name for name, header in self._reader.headers.items() if header.dtype == "I8")
        return tuple(name.removesuffix(".weight") for name in int8 if name.endswith(".weight"))

    def __contains__(self, name: str) -> bool:
        return name in self._reader or self._is_encoded(name)

    def _is_encoded(self, name: str) -> bool:
        headers, linear = self._reader.headers, name.removesuffix(".weight")
        return linear != name and (formats.is_quantized(headers, linear) or is_factored(headers, linear))

    def get(self, name: str) -> Tensor:
        """A dense tensor; float32 where it was dequantized, multiplied or added to, else as stored."""
        if not name.endswith(".weight") or self._adapter is None:
            return self._stored(name)
        return peft_folder.added(self._stored(name), self._adapter.product(name.removesuffix(".weight")))

    def _stored(self, name: str) -> Tensor:
        if not self._is_encoded(name):
            return self._reader.get(name)
        return formats.dense(self._reader, name.removesuffix(".weight"), self._bits, self._zero_offset)

    @property
    def headers(self) -> Mapping[str, Header]:
        """Of the tensors as they are stored."""
        return self._reader.headers

    @property
    def quantized(self) -> tuple[str, ...]:
        """The modules whose weight is stored as codes."""
        ends = (name.removesuffix(".weight") for name in self.names() if name.endswith(".weight"))
        return tuple(name for name in ends if formats.is_quantized(self._reader.headers, name))

    def grid(self, linear: str) -> Grid:
        """A quantized linear as the grid that it lies on."""
        return formats.grid(self._reader, linear, self._bits, self._zero_offset)

    def names(self) -> Iterator[str]:
        """The names of all dense tensors."""
        for name in self._reader.headers:
            module, _, part = name.rpartition(".")
            if part in (*formats.PARAMETERS, FACTOR_A) or module.endswith(f".{FACTOR_A}"):
                continue
            if is_factor(name):  # its B, or the codes of that
                yield f"{module.removesuffix(f'.{FACTOR_B}')}.weight"
            else:
                yield f"{module}.weight" if part in formats.CODES else name

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """All dense tensors under a prefix, by the rest of their name."""
        for name in self.names():
            if name.startswith(prefix + "."):
                yield name[len(prefix) + 1 :], self.get(name)


class ReplacedWeights(DenseView):
    """A model folder as if it were dense, with other tensors in place of some that it stores. A `WeightSource`."""

    def __init__(self, folder: Path, replaced: Mapping[str, Tensor]) -> None:
        super().__init__(folder)
        self._reader = _Replacing(self._reader, replaced)


class _Replacing(Reader):
    """A reader that hands out other tensors under some names."""

    def __init__(self, reader: Reader, replaced: Mapping[str, Tensor]) -> None:
        self.folder, self.headers = reader.folder, reader.headers
        self._below, self._replaced = reader, replaced

    def get(self, name: str) -> Tensor:
        return self._replaced[name] if name in self._replaced else self._below.get(name)


def _bits_and_zero_offset(quantization: dict[str, Any], where: str) -> tuple[frozenset[int], int]:
    """The widths of codes that a quantization_config names, and what its files hold zeros less by."""
    method = quantization.get("quant_method")
    if method == COMPRESSED_TENSORS:
        groups = quantization.get("config_groups", {}).values()
        return frozenset(group["weights"]["num_bits"] for group in groups if group.get("weights")), 0
    if method == CODEBOOK:
        return frozenset((int(quantization["bits"]),)), 0
    if method in (None, GPTQ):
        rules = [quantization, *(quantization.get("dynamic") or {}).values()]
        version_2 = quantization.get("checkpoint_format") == "gptq_v2"
        return frozenset(rule["bits"] for rule in rules if "bits" in rule), 0 if version_2 else 1
    if method == LOW_RANK:
        codes = quantization.get("codes")
        return _bits_and_zero_offset(codes, where) if codes else (frozenset(), 0)
    raise CheckpointError(
        f"{where}/config.json: quantization_config",
        f"{method!r} is no quantization that is read here",
        "name a dense model, or one in AutoGPTQ's, compressed-tensors' or hubplugin's format",
    )
