"""The settings of `method: recover`: training a pruned model back towards its base. Knows no model and no torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hubplugin.manifest.base import Real, Whole
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.steps.training.base import Training


class Recover(Training):
    """Recovery of a pruned model: training on the base's hidden states, block by block, then on its predictions."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"

    method: Literal["recover"] = Field(description="The method of this step.", examples=["recover"])
    learning_rate: Real | None = Field(
        default=None,
        gt=0,
        le=0.1,
        description="The learning rate. Left out: 0.0001, with lora 0.001.",
        examples=[0.0001],
    )
    lora: Whole | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="The rank of adapters, which are merged at the end. Left out: all weights are trained.",
        examples=[16],
    )

    @model_validator(mode="after")
    def _adapts(self) -> "Recover":
        if self.lora is not None and self.distill == 0:
            raise _fault("adapters are trained by distillation, and there is none", "remove it, or set distill", "lora")
        return self
