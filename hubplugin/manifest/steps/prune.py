"""The settings of `method: prune`, structured pruning. Part of the manifest schema; knows no model and no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, model_validator

from hubplugin.manifest.base import Damp, Real, StepSettings, Whole, fault

Ratio = Annotated[Real, Field(gt=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]


class Prune(StepSettings):
    """Structured pruning by OBS saliency and measured KL; the remaining weights are refitted to the base's outputs."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2302.04089"
    kinds: ClassVar[tuple[str, ...]] = ("ffn", "heads", "kv_heads", "layers", "attention", "mlp")
    targets: ClassVar[tuple[str, ...]] = ("ratio", "params", "latency")

    method: Literal["prune"] = Field(description="The method of this step.", examples=["prune"])
    # a prune ratio or a count per kind: any of these ...
    ffn: Ratio | None = Field(
        default=None,
        description="The ratio of FFN channels to remove, the same count in all layers.",
        examples=[0.25],
    )
    heads: Ratio | None = Field(
        default=None,
        description="The ratio of query heads to remove, the same count in all KV groups. The KV cache keeps its size.",
        examples=[0.25],
    )
    kv_heads: Ratio | None = Field(
        default=None,
        description="The ratio of KV heads to remove, with the query heads of their groups.",
        examples=[0.25],
    )
    layers: Count | None = Field(default=None, description="How many layers to remove.", examples=[2])
    attention: Count | None = Field(
        default=None, description="How many attention sublayers to remove, with layout: per-layer.", examples=[2]
    )
    mlp: Count | None = Field(
        default=None, description="How many FFN sublayers to remove, with layout: per-layer.", examples=[2]
    )
    # ... or one target, split over the kinds by their measured costs
    ratio: Ratio | None = Field(
        default=None,
        description="The ratio of the weights of the blocks' linears to remove: a target, split over channels, heads "
        "and layers by measured costs.",
        examples=[0.3],
    )
    params: Count | None = Field(
        default=None,
        description="How many parameters the model may keep: a target, split like ratio.",
        examples=[100000000],
    )
    latency: Ratio | None = Field(
        default=None,
        description="The time per generated token as a ratio of the base's: a target, split like ratio.",
        examples=[0.8],
    )
    layout: Literal["uniform", "per-layer"] = Field(
        default="uniform",
        description="The layout of widths: uniform over layers, or per-layer, which loses less and is served with "
        "hubplugin installed beside vLLM.",
        examples=["per-layer"],
    )
    refit: StrictBool = Field(
        default=True,
        description="Fit the remaining weights to the base's outputs, on the pruned model's inputs.",
        examples=[False],
    )
    bias: StrictBool = Field(
        default=False,
        description="Fit biases to the mean of the removed outputs, where the model class has biases.",
        examples=[True],
    )
    damp: Damp = 0.01

    @model_validator(mode="after")
    def _one_way(self) -> "Prune":
        kinds = [key for key in self.kinds if getattr(self, key) is not None]
        targets = [key for key in self.targets if getattr(self, key) is not None]
        if not kinds and not targets:
            raise fault("names nothing to remove", "write one of ffn: 0.25, kv_heads: 0.25, layers: 2, or ratio: 0.3")
        if len(targets) > 1 or (targets and kinds):
            raise fault(
                f"{targets[0]} and {(targets[1:] + kinds)[0]} both say how much",
                "keep one target, or kinds without a target",
                targets[0],
            )
        for key in ("attention", "mlp"):
            if self.layout == "uniform" and getattr(self, key) is not None:
                raise fault(
                    "a block without it exists in per-layer layout alone", "add layout: per-layer, or use layers:", key
                )
        if self.bias and not self.refit:
            raise fault("biases are fitted when the rest is", "remove it, or remove refit: false", "bias")
        return self

    @property
    def counts(self) -> dict[str, int]:
        """How many layers and sublayers to remove, by the kinds that are named."""
        named = {"layers": self.layers, "attention": self.attention, "mlp": self.mlp}
        return {kind: count for kind, count in named.items() if count is not None}

    @property
    def measures(self) -> bool:
        """Whether measurements on the model decide what to remove."""
        return bool(self.counts) or any(getattr(self, key) is not None for key in self.targets)
