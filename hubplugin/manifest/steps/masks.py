"""The settings of masks, which set single weights to zero: a sparsity or a pattern n:m, exactly one of them.

Part of the manifest schema; knows no model and no torch.
"""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hubplugin.manifest.base import Damp, Ignore, Real, StepSettings, Text, fault

MOST_IN_PATTERN = 64  # largest m of n:m; a block of columns holds complete groups of m


class Masking(StepSettings):
    """A mask: single weights become zero, by sparsity or by an n:m pattern along the inputs. All weights are stored."""

    sparsity: Real | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The ratio of each linear's weights to set to zero.",
        examples=[0.5],
    )
    pattern: Text | None = Field(
        default=None,
        description='A pattern "n:m" in quotes: of m consecutive inputs, an output keeps n weights.',
        examples=["2:4"],
    )
    ignore: Ignore = ()

    @field_validator("pattern", mode="before")
    @classmethod
    def _is_pattern(cls, value: Any) -> Any:
        # without quotes, YAML 1.1 takes 2:4 for two minutes and four seconds: the number 124
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", value, re.ASCII) if isinstance(value, str) else None
        if value is not None and not (match and int(match[1]) < int(match[2]) <= MOST_IN_PATTERN):
            raise fault(
                f"{value!r} is no pattern n:m with n below m, and m at most {MOST_IN_PATTERN}",
                'write it in quotes, such as pattern: "2:4"',
            )
        return value

    @model_validator(mode="after")
    def _one_measure(self) -> "Masking":
        if (self.sparsity is None) == (self.pattern is None):
            raise fault("needs exactly one of `sparsity:` and `pattern:`", 'write sparsity: 0.5 or pattern: "2:4"')
        return self

    @property
    def kept(self) -> tuple[int, int] | None:
        """n and m of a pattern: n weights are kept of every m."""
        if self.pattern is None:
            return None
        n, m = self.pattern.split(":")
        return int(n), int(m)

    @property
    def ratio(self) -> float:
        """The ratio of weights that becomes zero."""
        if self.kept:
            return 1 - self.kept[0] / self.kept[1]
        assert self.sparsity is not None
        return self.sparsity


class Wanda(Masking):
    """A mask by |weight| times the norm of its input, per output; kept weights do not change (Wanda)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.11695"

    method: Literal["wanda"] = Field(description="The method of this step.", examples=["wanda"])


class SparseGpt(Masking):
    """A mask by OBS saliency, per block of columns, with error feedback to the later columns (SparseGPT)."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2301.00774"

    method: Literal["sparsegpt"] = Field(description="The method of this step.", examples=["sparsegpt"])
    damp: Damp = 0.01
