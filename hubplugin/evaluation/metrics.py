"""QUALITY and SIZES: one row for every number that says how good or how small a variant is.

A row says where the number stands in a report, its unit, which direction is better, and how cards and tables show it.
The gate, the card (its tables and model-index) and bench/table.py go through the rows. Knows reports and no torch: what
must be computed from logits has a function under the row's key in token_statistics.py, and what a manifest may limit
has a row of the same key in manifest/metrics.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hubplugin.evaluation.cards import numbers
from hubplugin.manifest.metrics import Better
from hubplugin.report import Quality, Sizes
from hubplugin.speed_record import Served, UnderLoad

Record = TypeVar("Record", Quality, Sizes, Served, UnderLoad)
Text = Callable[[float], str]


@dataclass(frozen=True)
class CardRow:
    """A row of a table of the card."""

    label: str
    text: Text


@dataclass(frozen=True)
class Column:
    """A column of bench/table.py."""

    head: str
    text: Text
    base: str | None = None  # the cell of the base, where the metric compares with the base


@dataclass(frozen=True)
class ModelIndex:
    """An entry of a card's model-index."""

    type: str  # the Hub's word
    name: str


@dataclass(frozen=True)
class Metric(Generic[Record]):
    """One row. Its numbers come from the record of the variant and that of the base."""

    key: str
    label: str  # as the gate names it
    unit: str  # empty for a ratio
    better: Better
    value: Callable[[Record, Record], float | None]  # (variant, base) -> number; None: not measured
    stderr: Callable[[Record], float | None] | None = None  # standard error of the number; None: not measured
    relative: bool = False  # compares with the base, which has no such number
    card: CardRow | None = None
    column: Column | None = None
    model_index: ModelIndex | None = None


def recorded(key: str) -> Callable[[Any, Any], float | None]:
    """The number that a record holds under a key; None where it holds none, as records of older releases may."""
    return lambda variant, base: getattr(variant, key, None)


def _four_decimals(value: float) -> str:
    return f"{value:.4f}"


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"


QUALITY: tuple[Metric[Quality], ...] = (
    Metric(
        "perplexity",
        label="perplexity",
        unit="",
        better="lower",
        value=recorded("perplexity"),
        stderr=lambda quality: quality.perplexity_stderr,
        card=CardRow("perplexity (lower is better)", numbers.figures),
        column=Column("perplexity", "{:.3f}".format),
        model_index=ModelIndex("perplexity", "perplexity"),
    ),
    Metric(
        "perplexity_ratio",
        label="perplexity ratio",
        unit="",
        better="lower",
        value=lambda variant, base: variant.perplexity / base.perplexity,
        relative=True,
        card=CardRow("perplexity, this / base", _four_decimals),
        column=Column("vs. base", _four_decimals, base="1.0000"),
    ),
    Metric(
        "mean_kl",
        label="mean KL",
        unit="nats per token",
        better="lower",
        value=recorded("mean_kl"),
        stderr=lambda quality: quality.mean_kl_stderr,
        relative=True,
        card=CardRow("KL(base ‖ this), mean, nats per token", numbers.figures),
        column=Column("mean KL", _four_decimals, base="0"),
        model_index=ModelIndex("kl_divergence", "mean KL(base || variant), nats per token"),
    ),
    Metric(
        "mean_kl_stderr",
        label="standard error of mean KL",
        unit="nats per token",
        better="lower",
        value=recorded("mean_kl_stderr"),
        relative=True,
    ),
    Metric(
        "p99_kl",
        label="p99 KL",
        unit="nats per token",
        better="lower",
        value=recorded("p99_kl"),
        relative=True,
        card=CardRow("KL(base ‖ this), 99th percentile", numbers.figures),
        column=Column("p99 KL", _four_decimals, base="0"),
    ),
    Metric(
        "top1_agreement",
        label="top-1 agreement",
        unit="",
        better="higher",
        value=recorded("top1_agreement"),
        relative=True,
        card=CardRow("same most likely token", numbers.percent),
        column=Column("top-1 same", "{:.1%}".format, base="100.0%"),
        model_index=ModelIndex("top1_agreement", "top-1 agreement with the base"),
    ),
    Metric(
        "flips",
        label="flips",
        unit="",
        better="lower",
        value=recorded("flips"),
        relative=True,
        card=CardRow("flips: next token ranked first by one of both alone", numbers.percent),
    ),
    Metric(
        "acceptance_rate",
        label="acceptance rate",
        unit="",
        better="higher",
        value=recorded("acceptance_rate"),
        relative=True,
        card=CardRow("expected acceptance rate as a drafter of the base", numbers.percent),
    ),
)

SIZES: tuple[Metric[Sizes], ...] = (
    Metric(
        "safetensors_bytes",
        label="weights on disk",
        unit="bytes",
        better="lower",
        value=recorded("safetensors_bytes"),
        card=CardRow("weights on disk", numbers.in_bytes),
        column=Column("MB", lambda value: f"{value / 1e6:.1f}"),
    ),
    Metric(
        "adapter_bytes",
        label="of these, the adapter",
        unit="bytes",
        better="lower",
        value=recorded("adapter_bytes"),
        relative=True,
        card=CardRow("of these, the adapter", numbers.in_bytes),
    ),
    Metric(
        "disk_ratio",
        label="disk ratio",
        unit="",
        better="higher",
        value=lambda variant, base: base.safetensors_bytes / variant.safetensors_bytes,
        relative=True,
        column=Column("smaller", "{:.2f}x".format, base="1.00x"),
    ),
    Metric(
        "parameters",
        label="parameters",
        unit="",
        better="lower",
        value=recorded("parameters"),
        card=CardRow("parameters", numbers.count),
    ),
    Metric(
        "linear_parameters",
        label="parameters of the blocks' linears",
        unit="",
        better="lower",
        value=recorded("linear_parameters"),
        card=CardRow("parameters of the blocks' linears", numbers.count),
    ),
    Metric(
        "linear_bits_per_weight",
        label="bits per weight, linears",
        unit="bits",
        better="lower",
        value=recorded("linear_bits_per_weight"),
        card=CardRow("bits per weight, linears", _two_decimals),
        column=Column("bits/weight, linears", _two_decimals),
    ),
    Metric(
        "model_bits_per_weight",
        label="bits per weight, whole model",
        unit="bits",
        better="lower",
        value=recorded("model_bits_per_weight"),
        card=CardRow("bits per weight, whole model", _two_decimals),
        column=Column("bits/weight, model", _two_decimals),
    ),
    Metric(
        "sparsity",
        label="sparsity",
        unit="",
        better="higher",
        value=recorded("sparsity"),
        relative=True,
        card=CardRow("zeros among the linears' weights", numbers.percent),
    ),
    Metric(
        "flops_per_token",
        label="FLOPs per generated token",
        unit="",
        better="lower",
        value=recorded("flops_per_token"),
        card=CardRow("FLOPs per generated token, linears and output head", numbers.flops),
    ),
    Metric(
        "flops_per_context_token",
        label="FLOPs per token of context",
        unit="",
        better="lower",
        value=recorded("flops_per_context_token"),
        card=CardRow("FLOPs that attention adds for each token before it", numbers.flops),
    ),
)
