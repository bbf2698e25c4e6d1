"""The manifest schema: what a user may write, and nothing else. Each method's settings have a file of their own.

Unknown keys are refused, values are checked as far as they can be without the model (`plan` does the rest).
This file knows no torch, no network and no model.
"""

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    field_validator,
    model_validator,
)

from hubplugin.errors import ManifestError
from hubplugin.manifest import model_name
from hubplugin.manifest.base import Settings, StepSettings, Text
from hubplugin.manifest.base import fault as _fault
from hubplugin.manifest.methods import METHODS, recovery_of
from hubplugin.manifest.metrics import GATE_KEYS, Thresholds
from hubplugin.manifest.source import LENGTH, Source
from hubplugin.manifest.speed import Asked

if TYPE_CHECKING:
    Step = StepSettings
else:  # the union of all rows: pydantic picks one by `method`
    Step = Annotated[Union[tuple(row.settings for row in METHODS.values())], Field(discriminator="method")]  # noqa: UP007


MAIN = "main"
VARIANT = "{variant}"


def fill(pattern: str, model: str, variant: str) -> str:
    """The name that a pattern of `publish:` means for one variant."""
    return pattern.replace("{model}", model).replace(VARIANT, variant)


def is_ref(name: str) -> bool:
    """Whether the Hub takes a name for a branch or a tag: git's rules, and nothing that reads as a commit."""
    wrong = r"\.\.|//|/\.|\.lock(/|$)|[./]$|^refs/|^HEAD$|^[0-9a-f]{7,40}$"
    return bool(re.fullmatch(r"\w[\w./+-]{0,199}", name, re.ASCII)) and not re.search(wrong, name)


class Evaluate(Settings):
    """The evaluation of each variant beside the base."""

    perplexity: Source = Field(
        description="A source of evaluation tokens.",
        examples=[{"self": True, "seed": 1}, {"dataset": "owner/name", "split": "test"}],
    )
    kl: StrictBool = Field(
        default=True,
        description="Measure mean and 99th percentile of KL(base || variant), and top-1 agreement.",
        examples=[False],
    )
    speed: Asked


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
        return Thresholds(**{**self.limits(), **overrides.limits()})


class Publish(Settings):
    """Where variants are published."""

    repo: str = Field(
        description="The repo of each variant, in quotes. `{model}` and `{variant}` are filled in.",
        examples=["owner/{model}-{variant}"],
    )
    branch: Text | None = Field(
        default=None,
        description="The branch of each variant, in quotes, filled in like repo. With `{variant}` in it, all variants "
        "may go to one repo. The Hub shows and searches the card of main alone. Left out: main.",
        examples=["{variant}"],
    )
    tag: Text | None = Field(
        default=None,
        description="A tag for what is published, in quotes, filled in like repo. A tag that is there never moves: "
        "publishing other files under it is refused. Left out: no tag.",
        examples=["v1.0"],
    )
    pull_request: StrictBool = Field(
        default=False,
        description="Open a pull request in each repo, which must be there, in place of a commit to main: for repos of "
        "others. Published again, an open one is updated.",
        examples=[True],
    )
    private: StrictBool = Field(default=True, description="Create private repos.", examples=[False])
    gated: Literal["auto", "manual"] | None = Field(
        default=None,
        description="The gate of the repos: auto lets in whoever asks, manual whom you accept. A gate that is there is "
        "never loosened. Left out: auto where the base is gated, else none.",
        examples=["manual"],
    )
    collection: Text | None = Field(
        default=None,
        max_length=59,
        description="The title of a collection of all variants. Left out: no collection.",
        examples=["My models, compressed"],
    )
    accept_license: StrictBool = Field(
        default=False,
        description="Accept the licence of a gated base, or of one that binds derivatives.",
        examples=[True],
    )

    accept_private_base: StrictBool = Field(
        default=False,
        description="Accept that public variants show what is made from a private base.",
        examples=[True],
    )

    @field_validator("repo")
    @classmethod
    def _is_repo(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", fill(value, "m", "v"), re.ASCII):
            raise _fault(f"{value!r} is no repo on the Hub", 'write it as "owner/{model}-{variant}"')
        return value

    @field_validator("branch", "tag")
    @classmethod
    def _is_ref(cls, value: str | None) -> str | None:
        if value is not None and not is_ref(fill(value, "m", "v")):
            raise _fault(f"{value!r} is no name that git takes", 'write it as "{variant}" or "v1.0"')
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> "Publish":
        for_each = VARIANT in self.repo.split("/")[1]
        if not for_each and VARIANT not in (self.branch or ""):
            what = "without {variant} every variant would go to the same repo"
            raise _fault(what, 'write it as "owner/{model}-{variant}", or add branch: "{variant}"', "repo")
        if self.tag and not for_each and VARIANT not in self.tag:
            what = "without {variant} every variant would have the same tag, in one repo"
            raise _fault(what, 'write it as "{variant}-v1.0"', "tag")
        if self.tag and self.tag == (self.branch or MAIN):
            what = "a tag and a branch of one name: which of them a revision means, clients decide differently"
            raise _fault(what, f'use another tag, such as "{self.tag}-v1.0"', "tag")
        if self.pull_request:
            for key, (what, fix) in _NOT_PULLED.items():
                if getattr(self, key) is not None:
                    raise _fault(what, fix, key)
        return self


# what a pull request cannot come with
_NOT_PULLED = {
    "branch": ("a pull request goes to main", "remove branch, or pull_request"),
    "tag": ("what a pull request holds is not published before its repo's owner merges it", "remove tag; tag it then"),
    "gated": ("only a repo's owner can gate it, and a pull request is for repos of others", "remove gated"),
    "collection": ("a collection is made under the name of a repo's owner, here of others", "remove collection"),
}


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
        return self

    def sources(self) -> list[tuple[str, Source]]:
        """All sources of tokens with their places, such as `variants.Int4[0].data`."""
        found = [("calibrate", self.calibrate)]
        if self.evaluate is not None:
            found.append(("evaluate.perplexity", self.evaluate.perplexity))
        for name, steps in self.variants.items():
            for index, step in enumerate(steps):
                recover = recovery_of([step])
                if recover is not None and recover.data is not None:
                    found.append((f"variants.{name}[{index}].data", recover.data))
        return found

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
