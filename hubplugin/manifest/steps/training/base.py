"""What the steps that train towards the base share: how long, on which text, with what loss. Knows no model."""

import math

from pydantic import Field, model_validator

from hubplugin.manifest.base import Real, StepSettings, Whole
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.source import Source


class Distilling(StepSettings):
    """The settings of a step that trains a whole model on the base's predictions."""

    distill: Real = Field(
        default=1,
        ge=0,
        le=100,
        description="A number of epochs of distillation on the base's predictions. 0: none.",
        examples=[0.5],
    )
    learning_rate: Real | None = Field(default=None, gt=0, le=0.1, description="The learning rate.", examples=[0.0001])
    top_k: Whole | None = Field(
        default=None,
        ge=1,
        description="The number of the base's most probable tokens in the distillation loss. The others count as one. "
        "Left out: all of the vocabulary.",
        examples=[64],
    )
    minutes: Real | None = Field(
        default=None,
        gt=0,
        description="The most minutes of wall time. Training is planned to end within them.",
        examples=[10],
    )
    data: Source | None = Field(
        default=None,
        description="A source of training tokens. Left out: the calibration tokens. More text is worth more than more "
        "epochs.",
        examples=[{"files": ["texts/a.txt"], "samples": 1024, "sequence_length": 512}],
    )

    @property
    def limit(self) -> float:
        """The most seconds of wall time; infinite where none are set."""
        return math.inf if self.minutes is None else 60 * self.minutes


class Training(Distilling):
    """The settings of a step that trains: block by block, then all of the model on the base's predictions."""

    blocks: Whole = Field(
        default=2,
        ge=0,
        le=100,
        description="A number of epochs of each block on the base's hidden states, of at most 65536 tokens. 0: none.",
        examples=[2],
    )

    @model_validator(mode="after")
    def _trains(self) -> "Training":
        if self.blocks == self.distill == 0:
            raise _fault("nothing is trained", "give blocks or distill an epoch, or remove the step")
        return self
