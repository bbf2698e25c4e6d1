"""The settings of `method: lowrank`: which linears become two factors, and what they may weigh. Knows no model."""

from typing import ClassVar, Literal

from pydantic import Field

from hubplugin.manifest.base import Damp, Ignore, Qep, QepTokens, Real, StepSettings, Whole


class LowRank(StepSettings):
    """Low-rank factors in place of linears, after whitening their inputs (SVD-LLM); one search spreads the ranks.

    `qep` corrects the target of linears that stay dense too.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2403.07378"

    method: Literal["lowrank"] = Field(description="The method of this step.", examples=["lowrank"])
    ratio: Real = Field(
        gt=0,
        lt=1,
        description="The ratio of the linears' weights that is removed, at least: ranks are multiples, rounded down. "
        "Two factors of rank r hold r * (outputs + inputs) weights; a linear stays dense where no rank below "
        "break-even, outputs * inputs / (outputs + inputs), is worth its error.",
        examples=[0.2],
    )
    rank_multiple: Whole = Field(
        default=32,
        ge=1,
        le=1024,
        description="The number that all ranks are multiples of, as kernels like them.",
        examples=[32],
    )
    layout: Literal["factored", "merged"] = Field(
        default="factored",
        description="How factors are stored. factored: as two matrices, which vLLM multiplies with hubplugin installed "
        "beside it. merged: as their product, which loads everywhere and saves nothing.",
        examples=["merged"],
    )
    ignore: Ignore = ()
    qep: Qep = True
    qep_tokens: QepTokens = 2**15
    damp: Damp = 0.01
