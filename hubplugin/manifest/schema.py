"""The manifest schema: what a user may write, and nothing else. Each method's settings have a file of their own.

Unknown keys are refused, values are checked as far as they can be without the model (`plan` does the rest).
This file knows no torch, no network and no model.
"""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    TypeAdapter,
    field_validator,
    model_validator,
)

from hubplugin.errors import ManifestError
from hubplugin.manifest import model_name
from hubplugin.manifest.base import Settings, StepSettings, Text
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.methods import METHODS
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.manifest.publish import MAIN, Publish, fill
from hubplugin.manifest.serving import Serving
from hubplugin.manifest.source import LENGTH, Source
from hubplugin.manifest.speed import Asked
from hubplugin.manifest.steps.training.base import Distilling
from hubplugin.manifest.steps.training.distill import Distill
from hubplugin.manifest.tasks import Asked as AskedTasks

EVALUATED = "evaluate.perplexity"  # where the sources of evaluation tokens stand

if TYPE_CHECKING:
    Step = StepSettings
else:  # the union of all rows: pydantic picks one by `method`
    Step = Annotated[Union[tuple(row.settings for row in METHODS.values())], Field(discriminator="method")]  # noqa: UP007


SEVERAL = TypeAdapter(tuple[Source, ...])


def _one_or_several(value: Any) -> Source | tuple[Source, ...]:
    """Sources as they stand in the manifest: faults are located below the key, or below an index of the list."""
    if not isinstance(value, list | tuple):
        return Source.model_validate(value)
    sources: tuple[Source, ...] = SEVERAL.validate_python(value)
    if not sources:
        raise _fault("names no source", "add one, such as {self: true, seed: 1}")
    for index, source in enumerate(sources):
        if source in sources[:index]:
            raise _fault(f"source {index + 1} of the list stands there before", "remove it")
    return sources


class Evaluate(Settings):
    """The evaluation of each variant beside the base."""

    perplexity: Annotated[
        Source | tuple[Source, ...],
        PlainValidator(_one_or_several, json_schema_input_type=Source | tuple[Source, ...]),
    ] = Field(
        description="A source of evaluation tokens, or a list of them, the main one first. The gate holds on each.",
        examples=[{"self": True, "seed": 1}, {"dataset": "owner/name", "split": "test"}],
    )
    kl: StrictBool = Field(
        default=True,
        description="Measure KL(base || variant), top-1 agreement, flips and the acceptance rate.",
        examples=[False],
    )
    tasks: AskedTasks
    speed: Asked
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="The precision of forward passes. A CPU that is no faster at bfloat16 (AVX2 alone, or Intel "
        "without AMX) stays with float32. The report has the floor of bfloat16, KL(base in float32 || base in "
        "bfloat16).",
        examples=["bfloat16"],
    )

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources of evaluation tokens, the main one first."""
        return self.perplexity if isinstance(self.perplexity, tuple) else (self.perplexity,)


class Gate(Thresholds):
    """Thresholds for all variants; an entry in `variants` overrides them for its variant."""

    variants: dict[str, Thresholds] = Field(
        default_factory=dict,
        description="Thresholds for single variants, by name, in place of the general ones.",
        examples=[{"Pruned-25": {"perplexity_ratio": 1.15}}],
    )

    def of(self, variant: str) -> Thresholds:
        """The thresholds that hold for one variant: its entry's, and the general ones where that names none."""
        overrides = self.variants.get(variant, Thresholds())
        tasks = {**self.tasks, **overrides.tasks}
        return Thresholds(**{**self.limits(), **overrides.limits()}, tasks=tasks)


class Manifest(Settings):
    """One base model and all of its variants."""

    model: Text = Field(
        description="The base model: owner/name or owner/name@revision on the Hub, or a local folder.",
        examples=["Qwen/Qwen3-0.6B", "./folder"],
    )
    calibrate: Source = Field(
        description="A source of calibration tokens.",
        examples=[{"self": True}, {"dataset": "owner/name", "split": "train"}],
    )
    variants: dict[str, tuple[Step, ...]] = Field(
        min_length=1,
        description="The variants: names with lists of steps. A step is a method with its settings.",
        examples=[{"Int4": [{"method": "gptq", "bits": 4}]}],
    )
    evaluate: Evaluate | None = Field(
        default=None,
        description="The evaluation of each variant. Left out: nothing is measured.",
        examples=[{"perplexity": {"dataset": "owner/name", "split": "test"}}],
    )
    gate: Gate = Field(
        default=Gate(),
        description="Thresholds that a variant must meet to be published.",
        examples=[{"perplexity_ratio": 1.1}],
    )
    publish: Publish | None = Field(
        default=None,
        description="Where variants are published. Left out: nowhere.",
        examples=[{"repo": "owner/{model}-{variant}"}],
    )
    serve: Serving = Field(
        default=Serving(),
        description="How the base and the variants are served. Left out: as is best known for the machine at hand.",
        examples=[{"max_model_len": 2048}],
    )

    @field_validator("variants")
    @classmethod
    def _variant_names(cls, value: dict[str, tuple[Step, ...]]) -> dict[str, tuple[Step, ...]]:
        for name, steps in value.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) or ".." in name:
                raise _fault(
                    f"{name!r} is not a name",
                    "use letters, digits and single '.', '_', '-', at most 64 characters",
                )
            if not steps:
                raise _fault("has no steps", "add one, such as - {method: gptq, bits: 4}", name)
        return value

    @model_validator(mode="after")
    def _gate_fits(self) -> "Manifest":
        for name, thresholds in {"": self.gate, **self.gate.variants}.items():
            place = f"gate.variants.{name}" if name else "gate"
            if name and name not in self.variants:
                near = difflib.get_close_matches(name, list(self.variants), n=1) or list(self.variants)[:1]
                raise _fault("no variant of this manifest has this name", f"did you mean `{near[0]}`?", place)
            for key in thresholds.limits():
                needs = GATE_KEYS[key].needs
                if self.evaluate is None or not getattr(self.evaluate, needs.key):
                    raise _fault(needs.missing, needs.fix, f"{place}.{key}")
            self._tasks_are_asked(thresholds, f"{place}.tasks")
        return self

    def _tasks_are_asked(self, thresholds: Thresholds, place: str) -> None:
        asked = self.evaluate.tasks.names if self.evaluate and self.evaluate.tasks else ()
        for name in thresholds.tasks:
            if name not in asked:
                raise _fault("no task of this name is asked", f"add it to evaluate.tasks: [{name}]", f"{place}.{name}")

    def sources(self) -> list[tuple[str, Source]]:
        """All sources of tokens with their places, such as `variants.Int4[0].data`."""
        found = [("calibrate", self.calibrate)]
        if self.evaluate is not None:
            several = isinstance(self.evaluate.perplexity, tuple)
            places = (f"[{index}]" if several else "" for index in range(len(self.evaluate.sources)))
            found += [(f"{EVALUATED}{at}", one) for at, one in zip(places, self.evaluate.sources, strict=True)]
        for name, steps in self.variants.items():
            for index, step in enumerate(steps):
                if isinstance(step, Distilling) and step.data is not None:
                    found.append((f"variants.{name}[{index}].data", step.data))
        return found

    def asked(self) -> dict[str, Distill]:
        """The steps whose data are prompts for a teacher, by the place of these, such as `variants.Small[0].data`."""
        steps = (
            (f"variants.{name}[{index}].data", step)
            for name, variant in self.variants.items()
            for index, step in enumerate(variant)
        )
        return {place: step for place, step in steps if isinstance(step, Distill) and step.answers}

    def repo_of(self, variant: str) -> str:
        """The repo id a variant is published to. Raises ManifestError where nothing is published."""
        if self.publish is None:
            raise ManifestError(
                "publish", "this manifest names no repo", 'add publish: {repo: "you/{model}-{variant}"}'
            )
        return self._filled(self.publish.repo, variant)

    def branch_of(self, variant: str) -> str:
        """The branch of its repo that a variant is published to."""
        return self._filled(self.publish.branch, variant) if self.publish and self.publish.branch else MAIN

    def tag_of(self, variant: str) -> str | None:
        """The tag for what is published of a variant; None: no tag."""
        return self._filled(self.publish.tag, variant) if self.publish and self.publish.tag else None

    def _filled(self, pattern: str, variant: str) -> str:
        return fill(pattern, model_name.repo(self.model).rstrip("/").split("/")[-1], variant)


class Document(BaseModel):
    """A manifest together with the text it was read from, which travels into report and card."""

    model_config = ConfigDict(frozen=True)

    path: str
    text: str
    sha256: str
    manifest: Manifest

    @property
    def notes(self) -> tuple[str, ...]:
        """What a plan says about the manifest itself, such as keys that have a new name."""
        former = [f"{place}.{source.length_key}" for place, source in self.manifest.sources() if source.renamed]
        return (f"{', '.join(former)}: this key is now called {LENGTH}",) if former else ()

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the manifest start from."""
        return Path(self.path).resolve().parent
