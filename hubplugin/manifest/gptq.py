"""The settings of `method: gptq`, with overrides for single linears and a budget for all of them. Knows no model."""

from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    model_serializer,
    model_validator,
)

from hubplugin.manifest.base import Real, Settings, StepSettings, Text, Whole
from hubplugin.manifest.base import fault as _fault

GPTQMODEL = "7.6.0"  # the release of gptqmodel that `engine: gptqmodel` is, as in pyproject.toml


class Override(Settings):
    """What some linears do differently; a key that is not named is the step's own."""

    bits: Literal[2, 3, 4, 8] | None = None
    group_size: Literal[-1, 32, 64, 128] | None = None
    symmetric: StrictBool | None = None
    activation_bits: Literal[8] | None = None


class Option(Settings):
    """One grid that a budget may choose for a unit of linears."""

    bits: Literal[2, 3, 4, 8]
    group_size: Literal[-1, 32, 64, 128] = 128
    symmetric: StrictBool = True


class Budget(Settings):
    """What a variant may weigh; bits and group sizes are then chosen, linear by linear, from measured losses."""

    bits_per_weight: Real | None = Field(default=None, gt=0)  # of the blocks' linears, with scales and all
    bytes: Whole | None = Field(default=None, gt=0)  # of all tensors of the folder
    options: tuple[Option, ...] = ()  # empty: those that stock vLLM reads in the step's format

    @model_validator(mode="after")
    def _one_limit(self) -> "Budget":
        if (self.bits_per_weight is None) == (self.bytes is None):
            raise _fault("needs exactly one of `bits_per_weight:` and `bytes:`", "write {bits_per_weight: 4.5}")
        return self


class Quantization(StepSettings):
    """What every quantizer's step may say: the grid, which linears, the format, and what targets are corrected by."""

    # what gptqmodel has too; the rest is our own engine's
    shared: ClassVar[frozenset[str]] = frozenset(
        {"method", "engine", "bits", "group_size", "symmetric", "format", "act_order", "clip_search", "damp"}
    )

    bits: Literal[2, 3, 4, 8] = 4
    group_size: Literal[-1, 32, 64, 128] = 128  # inputs that share one scale; -1: a whole row
    symmetric: StrictBool = True  # false: every group has a zero point of its own
    format: Literal["gptq", "compressed-tensors"] | None = None  # None: gptq where stock vLLM reads it
    activation_bits: Literal[8] | None = None  # 8: activations are rounded to int8 per token at run time (W8A8)
    ignore: tuple[Text, ...] = ()  # linears that stay dense: patterns of module paths (schemes.py says the rule)
    overrides: dict[Text, Override] = Field(default_factory=dict)  # pattern -> what these linears do differently
    budget: Budget | None = None  # in place of bits, group_size and symmetric: chosen to fit it
    lm_head: StrictBool = False  # quantize the output head too
    act_order: StrictBool = True  # columns by second moment, inside and across groups (GAR); g_idx stays trivial
    clip_search: StrictBool = True  # search each group's scale for the least weighted squared error
    signed_scales: StrictBool = True  # and try negative ones: the long side of the grid serves the larger weights
    qep: StrictBool = True  # aim at the base's outputs, so that later layers make up for the errors of earlier ones
    qep_tokens: Whole = Field(default=2**15, ge=1)  # at most so many calibration tokens pass through the base for that
    descent: Whole = Field(default=0, ge=0, le=8)  # passes of coordinate descent over the codes that GPTQ found
    scale_refit: StrictBool = False  # refit scales to their codes by least squares, after each such pass or once
    damp: Real = Field(default=0.01, gt=0, le=1)  # of the mean diagonal of the second moments
    engine: Literal["hubplugin", "gptqmodel"] = "hubplugin"  # who makes the codes; all else is ours

    @property
    def passes(self) -> int:
        """How often codes or scales are gone through once more after GPTQ's own sweep."""
        return max(self.descent, int(self.scale_refit))

    @model_serializer(mode="wrap")
    def _as_it_acts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written into reports and cards: switches of our own engine are off where another one works."""
        found: dict[str, Any] = write(self)
        if self.engine != "hubplugin":
            found.update({name: False for name, value in found.items() if value is True and name not in self.shared})
        if not found.get("qep"):
            found.pop("qep_tokens", None)
        return found


class Gptq(Quantization):
    """Weight quantization with error feedback, written in AutoGPTQ's checkpoint format or compressed-tensors'."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"

    method: Literal["gptq"]
