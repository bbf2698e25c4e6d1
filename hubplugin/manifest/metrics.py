"""The keys of `gate:`: the metrics that a manifest may set a limit on, one row each.

Knows keys, allowed values and what `evaluate:` must ask for. Knows no torch and measures nothing: evaluation/metrics.py
or evaluation/speed_metrics.py has a row of the same key for each of these, and says how it is measured and shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, create_model

from hubplugin.manifest.base import Real, Settings

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Measurement:
    """A key of `evaluate:` that a metric needs, and the error where it is not set."""

    key: str
    missing: str
    fix: str


PERPLEXITY = Measurement("perplexity", "nothing measures a perplexity", "add evaluate: {perplexity: ...}")
KL = Measurement("kl", "nothing measures a KL", "add evaluate: with kl: true")
SPEED = Measurement("speed", "nothing measures a speed", "add speed: true to evaluate:")


@dataclass(frozen=True)
class GateKey:
    """One row: a key of `gate:` whose value is a limit on a metric."""

    key: str  # the metric's key, in evaluation/metrics.py too
    better: Better  # lower: the limit is the greatest value allowed; higher: the least
    allowed: Mapping[str, float]  # values of the limit itself, as arguments of pydantic's Field: ge, gt, le, lt
    description: str  # of the limit, with its unit
    example: float
    needs: Measurement
    floor: float | None = None  # the limit where the manifest sets none: past it a variant is broken, not small

    def holds(self, value: float | None, limit: float) -> bool:
        """Whether a measured value keeps the limit. NaN and a value that was not measured do not."""
        if value is None:
            return False
        return value <= limit if self.better == "lower" else value >= limit


GATE_KEYS = {
    row.key: row
    for row in (
        GateKey(
            "perplexity_ratio",
            "lower",
            {"ge": 1},
            "The highest ratio of the variant's perplexity to the base's.",
            1.1,
            PERPLEXITY,
        ),
        GateKey(
            "mean_kl",
            "lower",
            {"gt": 0},
            "The highest mean KL divergence from the base, in nats per token.",
            0.05,
            KL,
            floor=1.0,
        ),
        GateKey(
            "top1_agreement",
            "higher",
            {"ge": 0, "le": 1},
            "The least share of positions at which base and variant rank the same token first.",
            0.9,
            KL,
            floor=0.5,
        ),
        GateKey(
            "mean_kl_stderr",
            "lower",
            {"gt": 0},
            "The highest standard error of the mean KL divergence over windows, in nats per token.",
            0.005,
            KL,
        ),
        GateKey(
            "p99_kl",
            "lower",
            {"gt": 0},
            "The highest 99th percentile of the KL divergence from the base, in nats.",
            0.5,
            KL,
        ),
        GateKey(
            "flips",
            "lower",
            {"ge": 0, "le": 1},
            "The highest share of positions at which either the base or the variant, not both, ranks the token first "
            "that follows.",
            0.05,
            KL,
        ),
        GateKey(
            "acceptance_rate",
            "higher",
            {"ge": 0, "le": 1},
            "The least expected acceptance rate of the variant's tokens in speculative decoding with the base.",
            0.85,
            KL,
        ),
        GateKey(
            "tokens_per_second",
            "higher",
            {"gt": 0},
            "The least ratio of the variant's output tokens per second to the base's, at the highest concurrency.",
            1.2,
            SPEED,
        ),
    )
}


class Limits(Settings):
    """The base class of `Thresholds`, whose other fields are the rows of GATE_KEYS."""

    tasks: dict[str, Annotated[Real, Field(gt=0, le=2)]] = Field(
        default_factory=dict,
        description="The least recovery of single tasks, by their names in evaluate.tasks: the ratio of the variant's "
        "score to the base's.",
        examples=[{"arc_easy": 0.97}],
    )

    def limits(self) -> dict[str, float]:
        """The limits that are set, by key."""
        return {key: limit for key in GATE_KEYS if (limit := getattr(self, key)) is not None}


if TYPE_CHECKING:

    class Thresholds(Limits):
        """The thresholds of quality that a variant must meet to be published."""
else:
    _fields: dict[str, Any] = {
        row.key: (Real | None, Field(default=None, description=row.description, examples=[row.example], **row.allowed))
        for row in GATE_KEYS.values()
    }
    Thresholds = create_model(
        "Thresholds",
        __base__=Limits,
        __module__=__name__,
        __doc__="The thresholds of quality that a variant must meet to be published.",
        **_fields,
    )
