"""Where token sequences come from: the settings under `calibrate:`, `evaluate.perplexity:` and `data:`."""

from pathlib import Path

from pydantic import (
    Field,
    StrictBool,
    model_validator,
)

from hubplugin.manifest.base import Settings, Text, Whole
from hubplugin.manifest.base import fault as _fault


class Source(Settings):
    """Where tokens come from: a Hub dataset, local files, or the base model's own samples. Exactly one."""

    dataset: Text | None = None
    config: Text | None = None
    split: Text = "train"
    revision: Text | None = None
    column: Text | None = None  # of the text or the messages; found by itself where there is one choice
    files: tuple[Text, ...] | None = None  # .txt, .md, .jsonl; relative to the manifest
    self_: StrictBool = Field(default=False, alias="self")  # sampled from the base, no data needed
    samples: Whole = Field(default=128, ge=1, le=65536)  # sequences
    tokens: Whole = Field(default=2048, ge=16, le=131072)  # tokens per sequence
    seed: Whole = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_source(self) -> "Source":
        given = [self.dataset is not None, bool(self.files), self.self_]
        if sum(given) != 1:
            raise _fault(
                "needs exactly one of `dataset:`, `files:` and `self: true`",
                "write one, such as {self: true}" if not any(given) else "keep one and remove the others",
            )
        for key in ("config", "split", "revision"):
            if self.dataset is None and key in self.model_fields_set:
                raise _fault("belongs to a dataset, and none is named", "remove it", key)
        if self.self_ and self.column is not None:
            raise _fault("the model's own samples have no columns", "remove it", "column")
        return self

    def describe(self) -> str:
        """One line for reports and cards."""
        if self.self_:
            return "samples of the base model itself"
        if self.files:
            return "files " + ", ".join(Path(name).name for name in self.files)
        config = f" ({self.config})" if self.config else ""
        return f"dataset {self.dataset}{config}, split {self.split}"
