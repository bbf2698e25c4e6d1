"""The settings of `method: eora` and `method: lora`: adapters beside another variant of the same manifest. Knows no
model."""

from typing import ClassVar, Literal

from pydantic import Field, StrictBool

from hubplugin.manifest.base import Damp, Real, StepSettings, Text, Whole
from hubplugin.manifest.steps.training.base import Distilling


class Adapting(StepSettings):
    """What all adapters share: the variant that they stand beside, and their rank."""

    of: Text = Field(
        description="The name of the variant that the adapter is for: another one of this manifest, above this one.",
        examples=["Int4"],
    )
    rank: Whole = Field(
        default=16,
        ge=1,
        le=512,
        description="The rank of the adapter: each linear gets rank * (outputs + inputs) more weights.",
        examples=[16],
    )


class Eora(Adapting):
    """An adapter that corrects another variant's error, in closed form from second moments; published on its own."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2410.21271"

    method: Literal["eora"] = Field(description="The method of this step.", examples=["eora"])
    qep: StrictBool = Field(
        default=True,
        description="Correct towards the base's outputs (QEP), also what earlier layers have done to a linear's "
        "inputs. false: towards the base's weights, as the paper does.",
        examples=[False],
    )
    qep_tokens: Whole = Field(
        default=2**15,
        ge=1,
        description="The most calibration tokens that also pass through the base, for qep. More take longer.",
        examples=[131072],
    )
    damp: Damp = 0.01


class Lora(Adapting, Distilling):
    """An adapter that is trained on the base's predictions beside another variant's weights; published on its own."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"

    method: Literal["lora"] = Field(description="The method of this step.", examples=["lora"])
    start: Literal["zero", "eora"] = Field(
        default="zero",
        description="Where training begins: zero, at the variant itself; eora, at eora's adapter of this rank.",
        examples=["eora"],
    )
    distill: Real = Field(
        default=1,
        gt=0,
        le=100,
        description="A number of epochs of distillation on the base's predictions.",
        examples=[0.5],
    )
    learning_rate: Real | None = Field(
        default=None, gt=0, le=0.1, description="The learning rate. Left out: 0.0002.", examples=[0.0005]
    )

    @property
    def begun(self) -> Eora | None:
        """The step that makes the adapter that training begins at; None where it begins at nothing."""
        return Eora(method="eora", of=self.of, rank=self.rank) if self.start == "eora" else None
