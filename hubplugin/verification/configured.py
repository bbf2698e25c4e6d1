"""What a configuration says of each linear: AutoGPTQ's dictionary with `dynamic`, compressed-tensors' groups, or ours.

Knows the dictionaries of config.json and quantize_config.json; no tensor and no family.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hubplugin.checkpoint.format_names import CODEBOOK, COMPRESSED_TENSORS, GPTQ, LOW_RANK
from hubplugin.errors import CheckpointError

LINEAR = "Linear"  # compressed-tensors' word for every linear that has no rule of its own
HEADS = ("lm_head",)
# what both files say, where a folder has config.json's dictionary and quantize_config.json
COMMON = ("quant_method", "bits", "group_size", "sym", "desc_act", "checkpoint_format", "lm_head", "dynamic")
MARLIN = "marlin"
UNKNOWN_LAYOUTS = (MARLIN, "marlin_24", "marlin-24")  # words in another order


@dataclass(frozen=True)
class Claimed:
    """What is claimed of one linear."""

    bits: int
    group_size: int  # -1: a whole row
    symmetric: bool

    def __str__(self) -> str:
        group = "a row" if self.group_size <= 0 else f"{self.group_size} inputs"
        return f"{self.bits} bits, a scale for {group}"


@dataclass(frozen=True)
class Configured:
    """One dictionary."""

    entries: Mapping[str, Any]
    where: str

    @property
    def method(self) -> str:
        """The word that loaders dispatch on; AutoGPTQ's early files have none."""
        return str(self.entries.get("quant_method") or GPTQ)

    @property
    def is_gptq(self) -> bool:
        """Whether it is AutoGPTQ's."""
        return self.method == GPTQ

    @property
    def ranks(self) -> Mapping[str, int] | None:
        """By linear, the rank of its factors; None where the dictionary is not ours."""
        return self.entries.get("ranks", {}) if self.method == LOW_RANK else None

    @property
    def codes(self) -> "Configured":
        """What it says of codes: beside ranks it says that in a dictionary of its own, empty where there are none."""
        return Configured(self.entries.get("codes") or {}, self.where) if self.method == LOW_RANK else self

    @property
    def layout(self) -> str:
        """The format of the tensors, by the keys that tools write it under; empty: the method's usual one."""
        if self.entries.get("is_marlin_format"):
            return MARLIN
        return str(self.entries.get("checkpoint_format") or self.entries.get("format") or "")

    def check_known(self) -> None:
        """Raise CheckpointError for a format whose tensors are not read here."""
        unknown = self.layout if self.layout in UNKNOWN_LAYOUTS else ""
        if self.method == LOW_RANK:
            if self.codes.entries:
                self.codes.check_known()
            return
        if self.method not in (GPTQ, COMPRESSED_TENSORS, CODEBOOK):
            unknown = self.method
        if unknown:
            raise CheckpointError(
                f"{self.where}: quantization_config",
                f"{unknown!r} is a format that cannot be checked here",
                "name a dense model, or one in AutoGPTQ's, compressed-tensors' or hubplugin's format",
            )
        try:
            _ = self.default, self.of("model.layers.0.mlp.down_proj")
        except (TypeError, ValueError, KeyError, AttributeError, re.error) as error:
            what = f"cannot be understood: {type(error).__name__}: {error}"
            raise CheckpointError(
                f"{self.where}: quantization_config", what, "mend it, or make the model again"
            ) from error

    @property
    def default(self) -> Claimed | None:
        """What holds for linears that have no rule of their own; None: they stay dense."""
        if self.is_gptq or self.method == CODEBOOK:
            return Claimed(
                int(self.entries["bits"]), int(self.entries.get("group_size", -1)), bool(self.entries.get("sym", True))
            )
        return next((_weights(group) for group in self._groups() if LINEAR in group.get("targets", ())), None)

    def of(self, name: str) -> Claimed | None:
        """What is claimed of one linear; None: it is said to stay dense."""
        if self.method == CODEBOOK:
            return None if name in (self.entries.get("ignore") or ()) else self.default
        return self._gptq(name) if self.is_gptq else self._compressed_tensors(name)

    def _gptq(self, name: str) -> Claimed | None:
        default = self.default
        assert default is not None
        if name in HEADS and not self.entries.get("lm_head"):
            return None
        for pattern, rule in (self.entries.get("dynamic") or {}).items():
            sign, bare = (pattern[0], pattern[2:]) if pattern[:2] in ("-:", "+:") else ("+", pattern)
            if re.match(bare, name):
                if sign == "-":
                    return None
                return Claimed(
                    int(rule.get("bits", default.bits)),
                    int(rule.get("group_size", default.group_size)),
                    bool(rule.get("sym", default.symmetric)),
                )
        return default

    def _compressed_tensors(self, name: str) -> Claimed | None:
        if _named(name, self.entries.get("ignore") or ()):
            return None
        named = next((group for group in self._groups() if _named(name, group.get("targets", ()))), None)
        return _weights(named) if named else self.default

    def _groups(self) -> Iterable[dict[str, Any]]:
        return (self.entries.get("config_groups") or {}).values()


def _weights(group: Mapping[str, Any]) -> Claimed | None:
    weights = group.get("weights")
    if not weights:
        return None
    size = weights.get("group_size")
    whole = size is None or weights.get("strategy") in ("channel", "tensor")
    return Claimed(int(weights["num_bits"]), -1 if whole else int(size), bool(weights.get("symmetric", True)))


def _named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a list of compressed-tensors names a module: by its path, or by a regular expression after `re:`."""
    return any(
        bool(re.match(pattern[3:], name)) if pattern.startswith("re:") else pattern == name for pattern in patterns
    )
