"""What a manifest may say of structured pruning. Part of the schema in `manifest`, and like it without torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, model_validator

from hubplugin.manifest.base import Real, StepSettings, Whole, fault

Share = Annotated[Real, Field(gt=0, lt=1)]
Count = Annotated[Whole, Field(ge=1)]


class Prune(StepSettings):
    """Structured pruning: what goes is chosen by OBS and by KL, what stays is refitted to the base's outputs."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2302.04089"
    kinds: ClassVar[tuple[str, ...]] = ("ffn", "heads", "kv_heads", "layers", "attention", "mlp")
    targets: ClassVar[tuple[str, ...]] = ("ratio", "params", "latency")

    method: Literal["prune"]
    # how much of each kind: any of these ...
    ffn: Share | None = None  # share of FFN channels to remove, the same count in every layer
    heads: Share | None = None  # share of query heads, equally many of every KV group; the KV cache stays
    kv_heads: Share | None = None  # share of KV groups: key, value and the query heads that read them
    layers: Count | None = None  # whole layers
    attention: Count | None = None  # attention sub-blocks, with layout: per-layer
    mlp: Count | None = None  # FFN sub-blocks, with layout: per-layer
    # ... or one target, split over the kinds by what each was measured to cost
    ratio: Share | None = None  # share of the weights of the blocks' linears to remove
    params: Count | None = None  # parameters that the whole model may keep
    latency: Share | None = None  # time per generated token, as a share of the base's
    layout: Literal["uniform", "per-layer"] = "uniform"  # per-layer: widths differ, vLLM needs hubplugin beside it
    refit: StrictBool = True  # fit what stays to the base's outputs on the inputs it will really see
    bias: StrictBool = False  # let biases make up for what is gone on average, where the class has them
    damp: Real = Field(default=0.01, gt=0, le=1)

    @model_validator(mode="after")
    def _one_way(self) -> "Prune":
        named = [key for key in self.kinds if getattr(self, key) is not None]
        aims = [key for key in self.targets if getattr(self, key) is not None]
        if not named and not aims:
            raise fault("names nothing to remove", "write one of ffn: 0.25, kv_heads: 0.25, layers: 2, or ratio: 0.3")
        if len(aims) > 1 or (aims and named):
            raise fault(
                f"{aims[0]} and {(aims[1:] + named)[0]} both say how much",
                "keep one target, or kinds without a target",
                aims[0],
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
    def measures(self) -> bool:
        """Whether what goes is decided by measurements on the model, before anything is removed."""
        return any(getattr(self, key) is not None for key in ("layers", "attention", "mlp", *self.targets))
