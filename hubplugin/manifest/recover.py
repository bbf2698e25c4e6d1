"""The settings of `method: recover`: training a pruned model back towards its base. Knows no model and no torch."""

from typing import ClassVar, Literal

from pydantic import (
    Field,
    model_validator,
)

from hubplugin.manifest.base import Real, StepSettings, Whole
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.source import Source


class Recover(StepSettings):
    """Training a pruned model back towards the base: its blocks on hidden states, then all of it on predictions."""

    paper: ClassVar[str] = "https://arxiv.org/abs/1503.02531"

    method: Literal["recover"]
    blocks: Whole = Field(default=2, ge=0, le=100)  # epochs over hidden states of up to 65536 tokens; 0: left out
    distill: Real = Field(default=1, ge=0, le=100)  # epochs over the base's predictions; 0: left out
    learning_rate: Real | None = Field(default=None, gt=0, le=0.1)  # None: 1e-4, with lora 1e-3
    top_k: Whole = Field(default=64, ge=1)  # of the base's tokens that are told apart; the others count as one
    lora: Whole | None = Field(default=None, ge=1, le=1024)  # rank of adapters, merged in the end; None: all weights
    minutes: Real | None = Field(default=None, gt=0)  # of wall time; training is planned to end within
    data: Source | None = None  # None: the calibration tokens. More text is worth more than more epochs

    @model_validator(mode="after")
    def _something(self) -> "Recover":
        if self.blocks == self.distill == 0:
            raise _fault("nothing is trained", "give blocks or distill an epoch, or remove the step")
        if self.lora is not None and self.distill == 0:
            raise _fault("adapters are trained by distillation, and there is none", "remove it, or set distill", "lora")
        return self
