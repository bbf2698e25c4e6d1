"""The settings of a source of token sequences: `calibrate:`, `evaluate.perplexity:` and `data:` of a step that trains.

Knows which keys go together. Knows no tokenizer, no file and no network.
"""

from pathlib import Path
from typing import Any

from pydantic import (
    AliasChoices,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StrictBool,
    model_validator,
)

from hubplugin.manifest.base import Settings, Text, Whole
from hubplugin.manifest.base import fault as _fault

LENGTH = "sequence_length"
FORMER_LENGTH = "tokens"  # its name until 0.1.0, still accepted


def _accept_former_name(schema: dict[str, Any]) -> None:
    """The JSON Schema knows the former key too, as deprecated."""
    length = schema["properties"][LENGTH]
    limits = {key: length[key] for key in ("type", "minimum", "maximum")}
    former = {"deprecated": True, "description": f"Former name of {LENGTH}."}
    schema["properties"][FORMER_LENGTH] = {**former, "examples": length["examples"], **limits}
    schema["not"] = {"required": [LENGTH, FORMER_LENGTH]}


class Source(Settings):
    """A source of tokens: a dataset of the Hub, local files, or the base model's own samples. Exactly one of these."""

    model_config = ConfigDict(json_schema_extra=_accept_former_name)

    dataset: Text | None = Field(
        default=None, description="A dataset's name on the Hub.", examples=["Salesforce/wikitext"]
    )
    config: Text | None = Field(
        default=None, description="The dataset's configuration.", examples=["wikitext-2-raw-v1"]
    )
    split: Text = Field(default="train", description="The dataset's split.", examples=["test"])
    revision: Text | None = Field(
        default=None, description="The dataset's branch, tag or commit, in quotes.", examples=["main"]
    )
    column: Text | None = Field(
        default=None,
        description="The column of the text or the messages, with dots where it is nested. Left out: the only one that "
        "holds either.",
        examples=["text", "data.messages"],
    )
    files: tuple[Text, ...] | None = Field(
        default=None,
        description="A list of paths, relative to the manifest: .txt, .md or .jsonl.",
        examples=[["texts/a.txt", "texts/b.jsonl"]],
    )
    self_: StrictBool = Field(
        default=False, alias="self", description="Sample from the base model itself, without data.", examples=[True]
    )
    samples: Whole = Field(default=128, ge=1, le=65536, description="A number of sequences.", examples=[128])
    sequence_length: Whole = Field(
        default=2048,
        ge=16,
        le=131072,
        validation_alias=AliasChoices(LENGTH, FORMER_LENGTH),
        description="A number of tokens per sequence.",
        examples=[512],
    )
    seed: Whole = Field(default=0, ge=0, description="A seed of random choices.", examples=[1])
    skip: Whole = Field(
        default=0,
        ge=0,
        description="The greatest number of rows that may be left out because they cannot be used, such as a system "
        "turn under a template without one. 0: the first one ends the run, for the data would not be what the manifest "
        "says. Report and card say how many were left out.",
        examples=[100],
    )

    # not a field: it must not travel into reports
    _length_key: str = PrivateAttr(default=LENGTH)

    @model_validator(mode="wrap")
    @classmethod
    def _former_name(cls, data: Any, validate: ModelWrapValidatorHandler["Source"]) -> "Source":
        """Remember whether the manifest says `tokens`, the former name of `sequence_length`."""
        former = isinstance(data, dict) and FORMER_LENGTH in data
        if former and LENGTH in data:
            raise _fault(f"is the former name of {LENGTH}, which is given too", "remove it", FORMER_LENGTH)
        source = validate(data)
        if former:
            source._length_key = FORMER_LENGTH
        return source

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
        for key, what in (("column", "columns"), ("skip", "rows")):
            if self.self_ and getattr(self, key):
                raise _fault(f"the model's own samples have no {what}", "remove it", key)
        return self

    @property
    def length_key(self) -> str:
        """The key that the manifest gives the sequence length by: `sequence_length`, or `tokens`, its former name."""
        return self._length_key

    @property
    def renamed(self) -> bool:
        """Whether the manifest uses the former name."""
        return self._length_key != LENGTH

    def describe(self) -> str:
        """One line for reports and cards."""
        if self.self_:
            return "samples of the base model itself"
        if self.files:
            return "files " + ", ".join(Path(name).name for name in self.files)
        config = f" ({self.config})" if self.config else ""
        return f"dataset {self.dataset}{config}, split {self.split}"
