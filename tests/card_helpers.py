"""Reports to render: every number of one differs from every number of the other."""

from typing import Any

from hubplugin.report import (
    Base,
    Component,
    Evaluation,
    GateLine,
    LinearResult,
    Quality,
    Report,
    Sibling,
    Sizes,
    Tokens,
)

MANIFEST = """model: ns/base
variants:
  Int4: [{method: gptq, bits: 4}]
"""


def report(**changes: Any) -> Report:
    """A pruned and quantized variant with everything measured."""
    tokens = Tokens(
        source="dataset ns/words, split train", sequences=64, tokens_per_sequence=512, seed=3, sha256="5" * 64,
        dataset="ns/words", revision="d" * 40,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "hubplugin": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "variant": "Pruned-25-Int4",
        "model_name": "base-Pruned-25-Int4",
        "repo": "ns/base-Pruned-25-Int4",
        "base": Base(
            repo="ns/base", revision="a" * 40, on_hub=True, architecture="LlamaForCausalLM", model_type="llama",
            licence="apache-2.0", languages=("en",),
        ),
        "manifest_text": MANIFEST,
        "manifest_sha256": "e" * 64,
        "steps": ({"method": "prune", "ffn": 0.25, "damp": 0.01}, {"method": "gptq", "bits": 4, "group_size": 64}),
        "widths": {"intermediate_size": (1024, 768)},
        "calibration": tokens,
        "linears": tuple(
            LinearResult(name=f"model.layers.{i}.mlp.down_proj", method="gptq", loss=0.011 * i, damp=0.02 + 0.01 * i)
            for i in range(7)
        ),
        "sizes_base": Sizes(
            safetensors_bytes=24_190_000, parameters=12_090_000, linear_parameters=9_700_000,
            linear_bits_per_weight=16.0, model_bits_per_weight=16.01,
        ),
        "sizes": Sizes(
            safetensors_bytes=9_310_000, parameters=10_320_000, linear_parameters=7_930_000,
            linear_bits_per_weight=4.51, model_bits_per_weight=7.22,
        ),
        "seconds": {"pull": 1.25, "evaluation": 183.0},
        "peak_memory_bytes": 812_000_000,
        "versions": {"torch": "2.13.0", "transformers": "5.19.0"},
        "evaluation": Evaluation(
            tokens=tokens.model_copy(update={"source": "files heldout.txt", "dataset": None, "revision": None}),
            protocol="windows of 512 tokens, no overlap, float32",
            predicted_tokens=32704,
            base=Quality(perplexity=20.46, perplexity_stderr=0.31),
            variant=Quality(
                perplexity=23.87, perplexity_stderr=0.37, mean_kl=0.1523, p99_kl=1.87, top1_agreement=0.8412
            ),
        ),
        "gate": (GateLine(name="finite", passed=True, detail="no NaN, no Inf"),),
        "files": {"model.safetensors": "0" * 64, "chat_template.jinja": "1" * 64},
    }  # fmt: skip
    return Report(**{**fields, **changes})


def components(width: float) -> tuple[Component, ...]:
    """The parts of a model whose weights take so many bytes each."""
    counts = {"embeddings": 3_000_000, "attention": 2_500_000, "FFN": 6_000_000, "norms": 5_000}
    return tuple(
        Component(name=name, parameters=count, bytes=round(count * width), flops_per_token=2 * count)
        for name, count in counts.items()
    )


def siblings() -> tuple[Sibling, ...]:
    """Two other variants of the same manifest, one of which was not measured."""
    return (
        Sibling(
            variant="Int8", repo="ns/base-Int8", safetensors_bytes=14_810_000, perplexity_ratio=1.0013, mean_kl=0.00017
        ),
        Sibling(variant="Int2", repo=None, safetensors_bytes=6_020_000, perplexity_ratio=None, mean_kl=None),
    )
