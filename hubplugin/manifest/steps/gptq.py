"""The settings of `method: gptq`, with overrides for single linears and a budget for all of them. Knows no model."""

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, StrictBool, model_serializer, model_validator

from hubplugin.manifest.base import Real, Settings, Text, Whole
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.steps.quantization import Quantization, without_unused

GPTQMODEL = "7.6.0"  # the release of gptqmodel that `engine: gptqmodel` is, as in pyproject.toml


class Override(Settings):
    """Settings for the linears of one pattern; keys that are left out keep the step's values."""

    bits: Literal[2, 3, 4, 8] | None = Field(default=None, description="Bits per weight.", examples=[8])
    group_size: Literal[-1, 32, 64, 128] | None = Field(
        default=None, description="Inputs that share one scale; -1: all inputs of an output.", examples=[64]
    )
    symmetric: StrictBool | None = Field(default=None, description="A grid without zero points.", examples=[False])
    activation_bits: Literal[8] | None = Field(
        default=None, description="Bits of activations at run time, per token (W8A8).", examples=[8]
    )


class Option(Settings):
    """A grid that a budget may choose for a unit of linears."""

    bits: Literal[2, 3, 4, 8] = Field(description="Bits per weight.", examples=[4])
    group_size: Literal[-1, 32, 64, 128] = Field(
        default=128, description="Inputs that share one scale; -1: all inputs of an output.", examples=[32]
    )
    symmetric: StrictBool = Field(default=True, description="A grid without zero points.", examples=[False])


class Budget(Settings):
    """A size limit; bits and group sizes are then chosen for each unit of linears from measured losses."""

    bits_per_weight: Real | None = Field(
        default=None,
        gt=0,
        description="The most bits per weight of the blocks' linears, with scales, zero points and g_idx.",
        examples=[4.5],
    )
    bytes: Whole | None = Field(
        default=None, gt=0, description="The most bytes of all tensors of the variant.", examples=[9000000]
    )
    options: tuple[Option, ...] = Field(
        default=(),
        description="A list of grids to choose from. Left out: 4 and 8 bits, symmetric, and with format: "
        "compressed-tensors also 2 and 3; with 4 bits alone the variant also runs on a CPU.",
        examples=[[{"bits": 4}, {"bits": 8}]],
    )

    @model_validator(mode="after")
    def _one_limit(self) -> "Budget":
        if (self.bits_per_weight is None) == (self.bytes is None):
            raise _fault("needs exactly one of `bits_per_weight:` and `bytes:`", "write {bits_per_weight: 4.5}")
        return self


class GridQuantization(Quantization):
    """Quantization to a uniform grid: its scales and zero points, grids of single linears, the format, the engine."""

    # settings that gptqmodel has too; the others belong to hubplugin's engine
    shared: ClassVar[frozenset[str]] = frozenset(
        {"method", "engine", "bits", "group_size", "symmetric", "format", "act_order", "clip_search", "damp"}
    )

    bits: Literal[2, 3, 4, 8] = Field(default=4, description="Bits per weight.", examples=[4])
    group_size: Literal[-1, 32, 64, 128] = Field(
        default=128, description="Inputs that share one scale; -1: all inputs of an output.", examples=[128]
    )
    symmetric: StrictBool = Field(
        default=True, description="A grid without zero points; false: a zero point per group.", examples=[False]
    )
    format: Literal["gptq", "compressed-tensors"] | None = Field(
        default=None,
        description="The checkpoint format. Left out: gptq where vLLM and transformers read it there (4 or 8 bits, "
        "symmetric, one grid for all linears, no head, no experts), else compressed-tensors.",
        examples=["gptq"],
    )
    activation_bits: Literal[8] | None = Field(
        default=None,
        description="Bits of activations at run time, per token (W8A8), with bits 8 and group_size -1. "
        "Left out: activations are not quantized.",
        examples=[8],
    )
    overrides: dict[Text, Override] = Field(
        default_factory=dict,
        description="Linears with other settings than the step's, by pattern. The first pattern that matches counts.",
        examples=[{"down_proj": {"bits": 8}}],
    )
    budget: Budget | None = Field(
        default=None,
        description="A size limit, in place of bits, group_size and symmetric. Measured losses choose the grid of each "
        "unit of linears.",
        examples=[{"bits_per_weight": 4.5}],
    )
    lm_head: StrictBool = Field(
        default=False, description="Quantize the output head too, where it is not tied.", examples=[True]
    )
    clip_search: StrictBool = Field(
        default=True,
        description="Search the scale of each group for the least weighted squared error.",
        examples=[False],
    )
    signed_scales: StrictBool = Field(
        default=True,
        description="Try negative scales too: the longer side of the grid then serves the larger weights.",
        examples=[False],
    )
    descent: Whole = Field(
        default=0,
        ge=0,
        le=8,
        description="A number of passes of coordinate descent over GPTQ's codes. 0: none.",
        examples=[1],
    )
    scale_refit: StrictBool = Field(
        default=False,
        description="Refit scales to their codes by least squares, after each pass of descent or, without one, once.",
        examples=[True],
    )
    fisher_tokens: Whole = Field(
        default=0,
        ge=0,
        description="The calibration tokens, at most, whose gradients show how much the predictions mind an error of "
        "each output: errors are then fed from output to output too. 0: none. Not with descent or scale_refit.",
        examples=[8192],
    )
    engine: Literal["hubplugin", "gptqmodel"] = Field(
        default="hubplugin",
        description=f"The engine that makes the codes: hubplugin's, or gptqmodel {GPTQMODEL}.",
        examples=["gptqmodel"],
    )

    @property
    def passes(self) -> int:
        """The number of passes over codes or scales after GPTQ's sweep."""
        return max(self.descent, int(self.scale_refit))

    @model_validator(mode="after")
    def _nothing_undoes_another(self) -> "GridQuantization":
        if self.fisher_tokens and self.passes:
            raise _fault(
                "`fisher_tokens:` feeds errors from output to output, and passes of descent or scale_refit undo that",
                "remove fisher_tokens, or descent and scale_refit",
            )
        return self

    @model_serializer(mode="wrap")
    def _as_it_acts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings in effect, for reports and cards: with another engine, switches of hubplugin's are off."""
        settings: dict[str, Any] = write(self)
        if self.engine != "hubplugin":
            switched_on = [name for name, value in settings.items() if value is True and name not in self.shared]
            settings.update(dict.fromkeys(switched_on, False))
        if not self.fisher_tokens:  # a folder made before the setting was there is still what the manifest asks for
            settings.pop("fisher_tokens", None)
        return without_unused(settings)


class Gptq(GridQuantization):
    """Weight quantization with error feedback (GPTQ), in AutoGPTQ's or compressed-tensors' checkpoint format."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"

    method: Literal["gptq"] = Field(description="The method of this step.", examples=["gptq"])
