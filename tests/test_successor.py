"""config.json of pruned models, key by key; and that transformers itself refuses what is refused."""

from dataclasses import replace
from typing import Any

import pico
import pytest

from hubplugin.errors import PlanError
from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures import configs, pruned_config
from hubplugin.model.architectures.architecture import BlockShape, Dimensions, dimensions
from hubplugin.model.architectures.families import FAMILIES

SIZES: dict[str, Any] = {
    "hidden_size": 66, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 3, "vocab_size": 288, "head_dim": 16,
}  # fmt: skip


def base(kind: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": kind, "architectures": [FAMILIES[kind].native], **SIZES, **changes}


def made(source: dict[str, Any], sources: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> dict[str, Any]:
    row = FAMILIES[source["model_type"]]
    before = dimensions(source, row, "x")
    after = replace(before, **{"layers": len(sources), **changes})
    return pruned_config.config(source, row, before, after, sources, "V[0]")


def refused(source: dict[str, Any], sources: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        made(source, sources, **changes)
    return caught.value


def differ(**changes: Any) -> dict[str, Any]:
    """Four blocks, of which the second lacks its FFN and the last one is narrower."""
    whole = BlockShape(changes.get("heads", 6), changes.get("kv_heads", 3), 256)
    return {"blocks": (whole, replace(whole, ffn=0), whole, replace(whole, ffn=128)), **changes}


def changed(source: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Keys that are new or have other values; None stands for those that are gone."""
    gone = {key: "gone" for key in source.keys() - found.keys()}
    return {**{key: value for key, value in found.items() if source.get(key, "none") != value}, **gone}


def test_nothing_changes_where_no_size_does_but_for_code_of_the_repo() -> None:
    source = base("llama", auto_map={"AutoConfig": "x.Y"}, pretraining_tp=1)
    assert changed(source, made(source)) == {"auto_map": "gone"}


@pytest.mark.parametrize("kind", sorted(name for name, row in FAMILIES.items() if row.widths))
def test_narrower_ffns_change_one_key_in_every_family(kind: str) -> None:
    source = base(kind)
    assert changed(source, made(source, ffn=192)) == {"intermediate_size": 192}


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "phi3", "gemma2"])
def test_fewer_heads_name_their_size_where_the_class_takes_them(kind: str) -> None:
    source = base(kind)
    source.pop("head_dim")
    row = FAMILIES[kind]
    before = replace(dimensions({**source, "head_dim": 16}, row, "x"), head_dim=16)
    found = pruned_config.config(source, row, before, replace(before, heads=2, kv_heads=1), (0, 1, 2, 3), "V[0]")
    assert changed(source, found) == {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}


def test_heads_that_do_not_divide_make_a_mistral_of_a_llama() -> None:
    source = base("llama", attention_bias=False, mlp_bias=False, pretraining_tp=1)
    assert changed(source, made(source, heads=4, kv_heads=2)) == {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": None,
        **{key: "gone" for key in ("attention_bias", "mlp_bias", "pretraining_tp")},
    }


@pytest.mark.parametrize(
    "source", [base("llama", mlp_bias=True), base("llama", attention_bias=True), base("gemma2"), base("qwen2")]
)
def test_heads_that_do_not_divide_are_refused_where_no_class_has_the_rest(source: dict[str, Any]) -> None:
    error = refused(source, heads=4, kv_heads=2)
    assert error.where == "V[0]" and error.what.startswith("4 heads do not divide a hidden_size of 66")
    assert error.fix == "keep 1, 2, 3 heads, or prune ffn or layers"


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_transformers_itself_refuses_heads_that_do_not_divide(kind: str) -> None:
    assert FAMILIES[kind].whole_heads
    with pytest.raises(Exception, match="not a multiple of the number of attention heads"):
        pico.config(kind, hidden_size=64, num_attention_heads=3, num_key_value_heads=1)


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "phi3"])
def test_transformers_takes_any_number_of_heads_elsewhere(kind: str) -> None:
    assert not FAMILIES[kind].whole_heads
    assert pico.config(kind, hidden_size=64, num_attention_heads=3, num_key_value_heads=1).num_attention_heads == 3


def test_heads_of_a_qwen2_make_a_llama_of_it() -> None:
    source = base("qwen2", use_sliding_window=False, sliding_window=None, max_window_layers=4, layer_types=["f"] * 4)
    assert changed(source, made(source, heads=3, kv_heads=3)) == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_attention_heads": 3,
        "attention_bias": True,
        "mlp_bias": False,
        **{key: "gone" for key in ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")},
    }
    error = refused({**source, "use_sliding_window": True, "sliding_window": 64}, heads=3, kv_heads=3)
    assert error.where == "V[0]" and "windows" in error.what and error.fix == "prune ffn or layers"


def test_fewer_layers_keep_their_own_types_and_windows() -> None:
    types = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    source = base("qwen3", layer_types=types, max_window_layers=2)
    found = made(source, (0, 2, 3))
    assert found["layer_types"] == [types[0], types[2], types[3]]
    assert changed(source, found).keys() == {"num_hidden_layers", "layer_types", "max_window_layers"}
    assert (found["num_hidden_layers"], found["max_window_layers"]) == (3, 1)
    assert changed(base("llama"), made(base("llama"), (1, 2))) == {"num_hidden_layers": 2}


def test_a_gemma2_that_names_no_types_alternates_from_the_first_layer_on() -> None:
    source = base("gemma2")
    windows = ["sliding_attention", "full_attention"] * 2
    assert pico.config("gemma2", num_hidden_layers=4).layer_types == windows
    assert made(source, (0, 2, 3))["layer_types"] == [windows[0], windows[2], windows[3]]
    assert "layer_types" not in made(source, ffn=128), "all layers are there"


@pytest.mark.parametrize(
    ("source", "biases"),
    [
        (base("llama"), {}),
        (base("llama", attention_bias=True), {}),
        (base("mistral", sliding_window=None), {}),
        (base("qwen2", use_sliding_window=False, sliding_window=64), {"attention_bias": True}),
    ],
)
def test_blocks_that_differ_make_a_decilm(source: dict[str, Any], biases: dict[str, Any]) -> None:
    source = configs.with_defaults(source)  # as a plan reads it
    sizes = differ(heads=4, kv_heads=2)
    found = made(source, **sizes)
    expected = {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "block_configs": [
            {
                "attention": {"no_op": False, "n_heads_in_group": 2},
                "ffn": {"no_op": width == 0, "intermediate_size": width or None},
            }
            for width in (256, 0, 256, 128)
        ],
        **({"sliding_window": None} if source.get("sliding_window", "none") is not None else {}),
        **biases,
    }
    assert changed(source, found) == expected
    again = dimensions(found, FAMILIES["nemotron-nas"], "x")
    assert again == replace(dimensions(source, FAMILIES[source["model_type"]], "x"), **sizes)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        (base("gemma2"), "this is gemma2"),
        (base("qwen3"), "this is qwen3"),
        (base("phi3"), "this is phi3"),
        (base("mistral", sliding_window=4096), "without windows"),
        (base("qwen2", use_sliding_window=True, sliding_window=4096), "without windows"),
        (base("llama", hidden_act="gelu"), "silu alone"),
    ],
)
def test_blocks_that_differ_are_refused_where_decilm_does_not_compute_them(source: dict[str, Any], what: str) -> None:
    error = refused(source, **differ())
    assert error.where == "V[0].layout" and what in error.what and "leave layout out" in error.fix
    target = Prune.model_validate({"method": "prune", "ratio": 0.3, "layout": "per-layer"})
    row = FAMILIES[source["model_type"]]
    with pytest.raises(PlanError) as caught:  # before anything is measured
        pruned_config.supported_heads(target, source, row, dimensions(source, row, "x"), [(6, 3)], "V[0]")
    assert caught.value.where == "V[0].layout"


def test_a_first_block_without_attention_is_refused() -> None:
    blocks = (BlockShape(0, 0, 256), *(BlockShape(6, 3, 256),) * 3)
    error = refused(base("llama"), blocks=blocks)
    assert "first layer's attention" in error.what


@pytest.mark.parametrize(
    ("source", "bias", "expected"),
    [
        (base("mistral"), False, ((2, 1), (4, 2), (3, 3), (6, 3))),
        (base("llama"), False, ((2, 1), (4, 2), (3, 3), (6, 3))),  # 4 as a mistral
        (base("llama"), True, ((2, 1), (3, 3), (6, 3))),  # which has no biases
        (base("gemma2"), False, ((2, 1), (3, 3), (6, 3))),
        (base("qwen2", use_sliding_window=True, sliding_window=8), False, ((6, 3),)),
    ],
)
def test_targets_choose_among_heads_that_some_class_takes(
    source: dict[str, Any], bias: bool, expected: tuple[tuple[int, int], ...]
) -> None:
    target = Prune.model_validate({"method": "prune", "ratio": 0.3, "bias": bias})
    row = FAMILIES[source["model_type"]]
    sizes: Dimensions = dimensions(source, row, "x")
    heads = [(2, 1), (4, 2), (3, 3), (6, 3)]
    assert pruned_config.supported_heads(target, source, row, sizes, heads, "V[0]") == expected
