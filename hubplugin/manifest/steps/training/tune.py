"""The settings of `method: tune`: training what stands beside a quantized model's codes. Knows no model."""

from typing import ClassVar, Literal

from pydantic import Field, StrictBool, model_validator

from hubplugin.manifest.base import Real
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.source import Source
from hubplugin.manifest.steps.training.base import Training


class Tune(Training):
    """Tuning of a quantized model: scales, norms and biases trained towards the base; codes rounded again, if asked."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2305.14152"

    method: Literal["tune"] = Field(description="The method of this step.", examples=["tune"])
    learning_rate: Real | None = Field(
        default=None,
        gt=0,
        le=0.1,
        description="The learning rate of distillation, as a ratio of what is trained. Left out: 0.0003.",
        examples=[0.0003],
    )
    data: Source | None = Field(
        default=None,
        description="A source of training tokens. Left out: the calibration tokens, which the codes are fitted to "
        "already: other text of the same kind is worth more.",
        examples=[{"files": ["texts/a.txt"], "samples": 1024, "sequence_length": 512, "seed": 1}],
    )
    rounding: StrictBool = Field(
        default=False,
        description="Search the rounding of weights too, while blocks are trained: a code may move by one.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _rounds(self) -> "Tune":
        if self.rounding and self.blocks == 0:
            raise _fault("codes are rounded anew block by block, and no block is trained", "set blocks", "rounding")
        return self
