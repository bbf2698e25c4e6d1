"""Every kind of pruning in every family: the folder is a plain model that computes what the masked base does."""

import json
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from gate_helpers import candidate
from prune_helpers import (
    FAMILIES,
    PER_LAYER,
    base,
    decided,
    idle,
    loaded,
    logits,
    make,
    masked,
    our_logits,
    planned,
    step,
    watched,
)

from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import PlanError
from hubplugin.evaluation import gate
from hubplugin.plan.variant_plan import VariantPlan

IDS = pico.tokens(3, 64, seed=7)  # longer than the pico sliding window
KINDS: dict[str, dict[str, Any]] = {
    "ffn": {"ffn": 0.25},
    "kv_heads": {"kv_heads": 0.5},
    "heads": {"heads": 0.5},
    "layers": {"layers": 1},
    "all of them": {"ffn": 0.5, "kv_heads": 0.5, "heads": 0.5, "layers": 1},
    "ratio": {"ratio": 0.4},
}
SIZES = {
    "ffn": ("intermediate_size", 96),
    "kv_heads": ("num_key_value_heads", 1),
    "heads": ("num_attention_heads", 2),
    "layers": ("num_hidden_layers", 3),
    "all of them": ("num_attention_heads", 1),
}


def pruned(
    model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], **changes: Any
) -> tuple[VariantPlan, Any]:
    """A folder `folder`/v, its plan, and the masked base that it should compute the same as."""
    source = base(folder / "m", model_type, **changes)
    variant = decided(source, step(refit=False, **keys))
    with watched(monkeypatch) as done:
        blocks = make(source, folder / "v", variant)
    samples = {name: rows for block in blocks for name, rows in block.samples.items()}
    for line in (
        gate.as_planned(candidate(folder / "v", variant)),
        gate.as_compressed(candidate(folder / "v", samples=samples)),
    ):
        assert line.passed, line.detail
    return variant, masked(source, variant, done)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def same(folder: Path, expected: Any) -> None:
    """The folder, loaded by the class that its config.json names, and by us, computes what was expected."""
    own = loaded(folder)
    assert [type(own).__name__] == config_of(folder)["architectures"]
    wanted = logits(expected, IDS)
    assert float(wanted.std()) > 0.1, "a model that says something"
    assert torch.allclose(logits(own, IDS), wanted, atol=1e-3)
    assert torch.allclose(our_logits(folder, IDS), wanted, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_pruned_folder_computes_what_the_masked_base_does(
    model_type: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"num_hidden_layers": 4} if "layers" in KINDS[kind] else {}
    variant, expected = pruned(model_type, tmp_path, monkeypatch, KINDS[kind], **changes)
    if kind in SIZES:
        key, size = SIZES[kind]
        assert config_of(tmp_path / "v")[key] == size
    else:
        assert variant.linear_parameters < 0.7 * sum(
            header.count for name, header in Reader(tmp_path / "m").headers.items() if "_proj.weight" in name
        )
    same(tmp_path / "v", expected)


def test_heads_of_a_qwen2_leave_as_a_llama_with_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected = pruned("qwen2", tmp_path, monkeypatch, {"heads": 0.5})
    config = config_of(tmp_path / "v")
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["attention_bias"], config["mlp_bias"]) == (True, False)
    biases = {name: Reader(tmp_path / "v").get(name) for name in Reader(tmp_path / "v").headers if "bias" in name}
    assert len(biases) == 8 and all(bool(value.any()) != ("o_proj" in name) for name, value in biases.items())
    same(tmp_path / "v", expected)


def test_heads_of_a_llama_that_do_not_divide_its_width_leave_as_a_mistral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, expected = pruned("llama", tmp_path, monkeypatch, {"kv_heads": 0.25}, num_key_value_heads=4)
    assert (variant.dims.heads, variant.dims.kv_heads) == (3, 3)
    config = config_of(tmp_path / "v")
    assert (config["model_type"], config["sliding_window"], config["head_dim"]) == ("mistral", None, 32)
    same(tmp_path / "v", expected)


@pytest.mark.parametrize("model_type", ["mistral", "qwen3", "phi3"])
def test_other_families_take_any_number_of_heads(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, expected = pruned(model_type, tmp_path, monkeypatch, {"kv_heads": 0.25}, num_key_value_heads=4)
    assert variant.dims.heads == 3 and config_of(tmp_path / "v")["model_type"] == model_type
    same(tmp_path / "v", expected)


@pytest.mark.parametrize(
    ("model_type", "changes"), [("gemma2", {}), ("llama", {"attention_bias": True}), ("qwen2", {})]
)
def test_heads_that_no_class_takes_are_refused(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    source = base(tmp_path / "m", model_type, num_key_value_heads=4, **changes)
    with pytest.raises(PlanError) as caught:
        planned(source, step(kv_heads=0.25))
    assert caught.value.where == "m.yaml: variants.V[0]"
    asks = "gemma2" if model_type == "gemma2" else "llama"
    assert caught.value.what == (
        f"3 heads do not divide a hidden_size of 128, which transformers asks of {asks}, "
        "and no class without that rule has the rest of it"
    )
    assert caught.value.fix == "keep 1, 2 heads, or prune ffn or layers"


@pytest.mark.parametrize(
    ("model_type", "changes"), [("gemma2", {}), ("llama", {"attention_bias": True}), ("qwen2", {})]
)
def test_a_target_never_chooses_heads_that_no_class_takes(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    source = base(tmp_path / "m", model_type, num_key_value_heads=4, **changes)
    space = planned(source, step(ratio=0.3))[1].drafts[0].space
    assert space is not None and space.heads == ((1, 1), (2, 2), (4, 4))


def test_windows_of_a_qwen2_are_not_lost_with_its_heads(tmp_path: Path) -> None:
    windows = {"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 0}
    source = base(tmp_path / "m", "qwen2", **windows)
    with pytest.raises(PlanError) as caught:
        planned(source, step(heads=0.5))
    assert caught.value.where == "m.yaml: variants.V[0]" and "window" in caught.value.what
    assert "ffn" in caught.value.fix
    space = planned(source, step(ratio=0.3))[1].drafts[0].space
    assert space is not None and space.heads == ((4, 2),)


def test_layers_of_a_gemma2_keep_their_own_windows(tmp_path: Path) -> None:
    source = base(tmp_path / "m", "gemma2", num_hidden_layers=5)
    idle(source, "1.self_attn.o_proj", "1.mlp.down_proj")
    variant = decided(source, step(layers=1))
    assert variant.sources == (0, 2, 3, 4)
    make(source, tmp_path / "v", variant)
    types = [f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding")]
    assert config_of(tmp_path / "v")["layer_types"] == types
    same(tmp_path / "v", loaded(source))


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "keys",
    [
        {"attention": 1, "mlp": 2},
        {"attention": 1, "mlp": 2, "layers": 1, "kv_heads": 0.5, "ffn": 0.25},
        {"ratio": 0.35},
        {"params": 300000},
    ],
    ids=lambda keys: " ".join(keys),
)
def test_blocks_that_differ_compute_what_the_masked_base_does(
    model_type: str, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 5, "sliding_window": None}
    variant, expected = pruned(model_type, tmp_path, monkeypatch, {**keys, **PER_LAYER}, **changes)
    config = config_of(tmp_path / "v")
    heads = {block.heads for block in variant.dims.shapes() if block.heads}
    name = "DeciLMForCausalLM" if len(heads) == 1 else "UnevenHeadsForCausalLM"
    assert (config["model_type"], config["architectures"]) == ("nemotron-nas", [name])
    assert len(config["block_configs"]) == variant.dims.layers == config["num_hidden_layers"]
    assert torch.allclose(our_logits(tmp_path / "v", IDS), logits(expected, IDS), atol=1e-3)
    if "params" in keys:
        assert 270000 < variant.parameters <= 300000


def test_blocks_that_differ_with_biases_and_any_number_of_heads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"kv_heads": 0.25, "mlp": 1, **PER_LAYER}
    variant, expected = pruned("qwen2", tmp_path, monkeypatch, keys, num_key_value_heads=4, num_hidden_layers=3)
    assert variant.dims.heads == 3 and variant.config["attention_bias"]
    assert torch.allclose(our_logits(tmp_path / "v", IDS), logits(expected, IDS), atol=1e-3)
