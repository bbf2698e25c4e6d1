"""The settings of methods that set single weights to zero: a share or a pattern, exactly one of them.

Part of the manifest schema; knows no model and no torch.
"""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hubplugin.manifest.base import Real, StepSettings, Text, fault

MOST_IN_PATTERN = 64  # of n:m; a block of columns holds whole ones


class Masking(StepSettings):
    """Single weights become zero: a share of them, or so many of every few along the inputs. All are stored."""

    sparsity: Real | None = Field(default=None, gt=0, lt=1)  # share of each linear's weights that becomes zero
    pattern: Text | None = None  # "n:m": of every m inputs in a row, an output keeps n
    ignore: tuple[Text, ...] = ()  # linears that stay whole, by the same patterns as gptq's

    @field_validator("pattern", mode="before")
    @classmethod
    def _is_pattern(cls, value: Any) -> Any:
        # without quotes, YAML 1.1 takes 2:4 for two minutes and four seconds: the number 124
        found = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", value, re.ASCII) if isinstance(value, str) else None
        if value is not None and not (found and int(found[1]) < int(found[2]) <= MOST_IN_PATTERN):
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
        kept, every = self.pattern.split(":")
        return int(kept), int(every)

    @property
    def share(self) -> float:
        """The share of weights that becomes zero."""
        if self.kept:
            return 1 - self.kept[0] / self.kept[1]
        assert self.sparsity is not None
        return self.sparsity


class Wanda(Masking):
    """Zeros by weight times the size of its input, row by row; what is kept stays as it is."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2306.11695"

    method: Literal["wanda"]


class SparseGpt(Masking):
    """Zeros by what OBS says they cost, block by block of columns; later weights of a row make up for them."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2301.00774"

    method: Literal["sparsegpt"]
    damp: Real = Field(default=0.01, gt=0, le=1)
