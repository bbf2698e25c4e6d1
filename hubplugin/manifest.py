"""The manifest schema: what a user may write, and nothing else. What masks take stands in mask_settings.py.

Unknown keys are refused, values are checked as far as they can be without the model (`plan` does the rest).
This file knows no torch, no network and no model.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from hubplugin import yamlfile
from hubplugin.errors import ManifestError
from hubplugin.explain import explain
from hubplugin.mask_settings import Mask, SparseGpt, Wanda
from hubplugin.prune_settings import Prune
from hubplugin.settings import Real, Settings, Text, Whole
from hubplugin.settings import fault as _fault

GPTQMODEL = "7.6.0"  # the release of gptqmodel that `engine: gptqmodel` is, as in pyproject.toml


class Override(Settings):
    """What some linears do differently; a key that is not named is the step's own."""

    bits: Literal[2, 3, 4, 8] | None = None
    group_size: Literal[-1, 32, 64, 128] | None = None
    symmetric: StrictBool | None = None
    activation_bits: Literal[8] | None = None


class Option(Settings):
    """One grid that a budget may choose for a unit of linears."""

    bits: Literal[2, 3, 4, 8]
    group_size: Literal[-1, 32, 64, 128] = 128
    symmetric: StrictBool = True


class Budget(Settings):
    """What a variant may weigh; bits and group sizes are then chosen, linear by linear, from measured losses."""

    bits_per_weight: Real | None = Field(default=None, gt=0)  # of the blocks' linears, with scales and all
    bytes: Whole | None = Field(default=None, gt=0)  # of all tensors of the folder
    options: tuple[Option, ...] = ()  # empty: those that stock vLLM reads in the step's format

    @model_validator(mode="after")
    def _one_limit(self) -> "Budget":
        if (self.bits_per_weight is None) == (self.bytes is None):
            raise _fault("needs exactly one of `bits_per_weight:` and `bytes:`", "write {bits_per_weight: 4.5}")
        return self


class Gptq(Settings):
    """Weight quantization with error feedback, written in AutoGPTQ's checkpoint format or compressed-tensors'."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2210.17323"
    # what gptqmodel has too; the rest is our own engine's
    shared: ClassVar[frozenset[str]] = frozenset(
        {"method", "engine", "bits", "group_size", "symmetric", "format", "act_order", "clip_search", "damp"}
    )

    method: Literal["gptq"]
    bits: Literal[2, 3, 4, 8] = 4
    group_size: Literal[-1, 32, 64, 128] = 128  # inputs that share one scale; -1: a whole row
    symmetric: StrictBool = True  # false: every group has a zero point of its own
    format: Literal["gptq", "compressed-tensors"] | None = None  # None: gptq where stock vLLM reads it
    activation_bits: Literal[8] | None = None  # 8: activations are rounded to int8 per token at run time (W8A8)
    ignore: tuple[Text, ...] = ()  # linears that stay dense: patterns of module paths (schemes.py says the rule)
    overrides: dict[Text, Override] = Field(default_factory=dict)  # pattern -> what these linears do differently
    budget: Budget | None = None  # in place of bits, group_size and symmetric: chosen to fit it
    lm_head: StrictBool = False  # quantize the output head too
    act_order: StrictBool = True  # columns by second moment, inside and across groups (GAR); g_idx stays trivial
    clip_search: StrictBool = True  # search each group's scale for the least weighted squared error
    signed_scales: StrictBool = True  # and try negative ones: the long side of the grid serves the larger weights
    qep: StrictBool = True  # aim at the base's outputs, so that later layers make up for the errors of earlier ones
    qep_tokens: Whole = Field(default=2**15, ge=1)  # at most so many calibration tokens pass through the base for that
    descent: Whole = Field(default=0, ge=0, le=8)  # passes of coordinate descent over the codes that GPTQ found
    scale_refit: StrictBool = False  # refit scales to their codes by least squares, after each such pass or once
    damp: Real = Field(default=0.01, gt=0, le=1)  # of the mean diagonal of the second moments
    engine: Literal["hubplugin", "gptqmodel"] = "hubplugin"  # who makes the codes; all else is ours

    @property
    def passes(self) -> int:
        """How often codes or scales are gone through once more after GPTQ's own sweep."""
        return max(self.descent, int(self.scale_refit))

    @model_serializer(mode="wrap")
    def _as_it_acts(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written into reports and cards: switches of our own engine are off where another one works."""
        found: dict[str, Any] = write(self)
        if self.engine != "hubplugin":
            found.update({name: False for name, value in found.items() if value is True and name not in self.shared})
        if not found.get("qep"):
            found.pop("qep_tokens", None)
        return found


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


class Recover(Settings):
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


Step = Annotated[Gptq | Prune | Recover | Mask, Field(discriminator="method")]


class Evaluate(Settings):
    """What is measured on each finished folder, base and variant in one run."""

    perplexity: Source
    kl: StrictBool = True  # mean and 99th percentile of KL(base || variant), and top-1 agreement


class Thresholds(Settings):
    """The quality a variant must keep to be published."""

    perplexity_ratio: Real | None = Field(default=None, ge=1)  # variant / base
    mean_kl: Real | None = Field(default=None, gt=0)  # nats per token


class Gate(Thresholds):
    """Thresholds for all variants; what a variant's own entry in `variants` names, it sets differently."""

    variants: dict[str, Thresholds] = Field(default_factory=dict)

    def of(self, variant: str) -> Thresholds:
        """The thresholds that hold for one variant: its own, and the general ones where it names none."""
        own = self.variants.get(variant, Thresholds())
        return Thresholds(
            perplexity_ratio=self.perplexity_ratio if own.perplexity_ratio is None else own.perplexity_ratio,
            mean_kl=self.mean_kl if own.mean_kl is None else own.mean_kl,
        )


class Publish(Settings):
    """Where variants go. `{model}` and `{variant}` are filled in."""

    repo: str
    private: StrictBool = True
    collection: Text | None = Field(default=None, max_length=59)
    accept_license: StrictBool = False  # the base is gated, or its licence puts duties on derivatives

    @field_validator("repo")
    @classmethod
    def _is_repo(cls, value: str) -> str:
        filled = value.replace("{model}", "m").replace("{variant}", "v")
        shape = 'write it as "owner/{model}-{variant}"'
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", filled, re.ASCII):
            raise _fault(f"{value!r} is no repo on the Hub", shape)
        if "{variant}" not in value.split("/")[1]:
            raise _fault("without {variant} every variant would go to the same repo", shape)
        return value


class Manifest(Settings):
    """One base model and all of its variants."""

    model: Text  # Hub id, optionally @revision; or a local folder
    calibrate: Source
    variants: dict[str, tuple[Step, ...]] = Field(min_length=1)
    evaluate: Evaluate | None = None
    gate: Gate = Gate()
    publish: Publish | None = None

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
            if thresholds.perplexity_ratio is not None and self.evaluate is None:
                raise _fault(
                    "nothing measures a perplexity",
                    "add evaluate: {perplexity: ...}",
                    f"{place}.perplexity_ratio",
                )
            if thresholds.mean_kl is not None and not (self.evaluate and self.evaluate.kl):
                raise _fault("nothing measures a KL", "add evaluate: with kl: true", f"{place}.mean_kl")
        return self

    def repo_of(self, variant: str) -> str:
        """The repo id a variant is published to. Raises ManifestError where nothing is published."""
        if self.publish is None:
            raise ManifestError(
                "publish", "this manifest names no repo", 'add publish: {repo: "you/{model}-{variant}"}'
            )
        model = self.model.split("@")[0].rstrip("/").split("/")[-1]
        return self.publish.repo.replace("{model}", model).replace("{variant}", variant)


class Document(BaseModel):
    """A manifest together with the text it was read from, which travels into report and card."""

    model_config = ConfigDict(frozen=True)

    path: str
    text: str
    sha256: str
    manifest: Manifest

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the manifest start from."""
        return Path(self.path).resolve().parent


def load(path: str | Path) -> Document:
    """Read and check a manifest. Raises ManifestError with the place in the file and what is allowed."""
    file = yamlfile.read(Path(path))
    if not isinstance(file.data, dict):
        what = "is empty" if file.data is None else "holds no mapping of keys to values"
        raise ManifestError(str(path), what, "start with `model: owner/name`; see README, The manifest")
    try:
        manifest = Manifest.model_validate(file.data)
    except ValidationError as error:
        raise _schema_error(Path(path), error) from error
    return Document(path=str(path), text=file.text, sha256=file.sha256, manifest=manifest)


METHODS: dict[str, type[Settings]] = {
    "gptq": Gptq,
    "prune": Prune,
    "recover": Recover,
    "wanda": Wanda,
    "sparsegpt": SparseGpt,
}


def _schema_error(path: Path, error: ValidationError) -> ManifestError:
    """The first problem as place, cause and remedy; the number of others is added to the cause."""
    problems = error.errors(include_url=False)
    problem = problems[0]
    place = ""
    for index, part in enumerate(problem["loc"]):
        if part in METHODS and index and isinstance(problem["loc"][index - 1], int):
            continue  # pydantic names the branch of the union; the user did not write it
        if part == "[key]":
            continue  # and this is how it says that the key before it is wrong
        place += f"[{part}]" if isinstance(part, int) and problem["loc"][-1] != "[key]" else f".{part}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        place += ".method"
    if problem["type"] == "fault" and problem["ctx"]["place"]:
        place += f".{problem['ctx']['place']}"
    what, fix = explain(problem, METHODS, _near)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ManifestError(f"{path}: {place.lstrip('.') or 'manifest'}", what + more, fix)


def _near(key: str, parents: list[Any]) -> str:
    """What an unknown key may have meant: the nearest of those allowed in its place, or all of them."""
    sections: dict[str, type[Settings]] = {
        "calibrate": Source,
        "data": Source,
        "perplexity": Source,
        "evaluate": Evaluate,
        "gate": Gate,
        "publish": Publish,
        "budget": Budget,
        **METHODS,
    }
    section = sections.get(parents[-1], Thresholds) if parents else Manifest
    section = Override if "overrides" in parents else Option if "options" in parents else section
    allowed = [info.alias or name for name, info in section.model_fields.items()]
    near = difflib.get_close_matches(key, allowed, n=1)
    return f"did you mean `{near[0]}`?" if near else f"remove it; allowed here: {', '.join(allowed)}"
