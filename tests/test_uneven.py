"""Which rows a producer keeps, blocks of different sizes in transformers' classes, and the configuration vLLM reads."""

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import pico
import pytest
import torch
from transformers import AutoConfig

from hubplugin.checkpoint.headers import Header
from hubplugin.errors import PlanError
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.architecture import BlockShape, Dimensions
from hubplugin.model.architectures.families import FAMILIES, FUSED, SEPARATE
from hubplugin.model.construction import heterogeneous
from hubplugin.plan import sizes
from serve import plugin
from serve.decilm import BlocksConfig

# 2 groups of 2 query heads of 3: queries are rows 0 to 11, keys and values 6 rows each
SMALL = Dimensions(layers=3, hidden=8, ffn=4, heads=4, kv_heads=2, head_dim=3, vocab=9, context=None, tied=True)
LLAMA, DECILM = FAMILIES["llama"], FAMILIES["nemotron-nas"]


def rows(family: Any, width: str, kept: list[int]) -> dict[str, list[int]]:
    found = heterogeneous.kept_rows(family.width(width), SMALL, torch.tensor(kept))
    return {name: wanted.tolist() for name, wanted in found.items()}


def test_rows_of_a_whole_group_that_stays() -> None:
    queries, keys = [6, 7, 8, 9, 10, 11], [3, 4, 5]
    assert rows(SEPARATE, "heads", queries) == {
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": keys,
    }
    assert rows(FUSED, "heads", queries) == {"self_attn.qkv_proj": [*queries, 15, 16, 17, 21, 22, 23]}


def test_rows_of_one_query_head_of_every_group() -> None:
    queries, keys = [3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5]
    assert rows(SEPARATE, "heads", queries) == {
        "self_attn.q_proj": queries,
        "self_attn.k_proj": keys,
        "self_attn.v_proj": keys,
    }
    assert rows(FUSED, "heads", queries) == {"self_attn.qkv_proj": [*queries, *range(12, 24)]}


def test_rows_of_channels() -> None:
    assert rows(SEPARATE, "ffn", [1, 3]) == {"mlp.gate_proj": [1, 3], "mlp.up_proj": [1, 3]}
    assert rows(FUSED, "ffn", [1, 3]) == {"mlp.gate_up_proj": [1, 3, 5, 7]}


# -- sizes


def test_a_tensor_of_a_variant_comes_from_the_block_that_stands_for_it() -> None:
    for name, old in (
        ("model.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight"),
        ("model.layers.1.self_attn.q_norm.weight", "model.layers.11.self_attn.q_norm.weight"),
        ("model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ):
        assert sizes.origin(LLAMA, name, (2, 11)) == old


def test_a_new_bias_is_stored_as_its_weight_is() -> None:
    base = {
        "model.layers.3.mlp.up_proj.weight": Header("F16", (4, 8)),
        "model.layers.3.self_attn.q_proj.bias": Header("F32", (12,)),
        "model.layers.3.self_attn.q_proj.weight": Header("BF16", (12, 8)),
    }
    names = ["mlp.up_proj.weight", "mlp.up_proj.bias", "self_attn.q_proj.bias"]
    found = sizes.stored({f"model.layers.0.{name}": (1,) for name in names}, base, LLAMA, (3,))
    assert [found[f"model.layers.0.{name}"].dtype for name in names] == ["F16", "F16", "F32"]


def test_widths_that_changed_by_the_keys_of_config_json() -> None:
    assert sizes.changed(SMALL, SMALL) == {}
    assert sizes.changed(SMALL, replace(SMALL, layers=2, heads=2, kv_heads=1, ffn=2)) == {
        "num_hidden_layers": (3, 2),
        "num_attention_heads": (4, 2),
        "num_key_value_heads": (2, 1),
        "intermediate_size": (4, 2),
    }


# -- blocks that differ


BLOCKS = (BlockShape(4, 2, 4), BlockShape(0, 0, 2), BlockShape(4, 2, 0))
UNEVEN = replace(SMALL, blocks=BLOCKS)


def config(**changes: Any) -> dict[str, Any]:
    return {
        "model_type": "nemotron-nas", "hidden_size": 8, "intermediate_size": 4, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 3, "vocab_size": 9,
        "tie_word_embeddings": True, "block_configs": architecture.block_configs(UNEVEN), **changes,
    }  # fmt: skip


def test_blocks_are_read_as_they_were_written() -> None:
    assert architecture.dimensions(config(), DECILM, "x") == UNEVEN
    assert [UNEVEN.at(index).ffn for index in range(3)] == [4, 2, 0]
    alike = architecture.block_configs(SMALL)
    assert architecture.dimensions(config(block_configs=alike), DECILM, "x").shapes() == SMALL.shapes()


def test_a_block_has_only_the_tensors_of_its_parts() -> None:
    found = architecture.expected(config(), DECILM, UNEVEN)
    inside = [[name for name in found if f".{index}." in name] for index in range(3)]
    assert [len(names) for names in inside] == [9, 4, 5]
    assert found["model.layers.1.mlp.up_proj.weight"] == (2, 8)
    assert not any("self_attn" in name or "input_layernorm" in name for name in inside[1])
    assert not any("mlp" in name or "post_attention_layernorm" in name for name in inside[2])


@pytest.mark.parametrize(
    ("blocks", "what"),
    [
        (architecture.block_configs(UNEVEN)[:2], "names 2 blocks of 3"),
        ([{"attention": {"n_heads_in_group": 2}}] * 3, "KeyError('ffn')"),
        ([{"attention": {"n_heads_in_group": 0}, "ffn": {"intermediate_size": 4}}] * 3, "ZeroDivisionError"),
        ([{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.5}}] * 3, "KeyError('intermediate_size')"),
        ([{"attention": {"n_heads_in_group": None}, "ffn": {"no_op": True}}] * 3, "TypeError"),
        ([7, 7, 7], "TypeError"),
        (7, "TypeError"),
        ([{"attention": [], "ffn": {}}] * 3, "AttributeError"),
    ],
)
def test_blocks_that_cannot_be_understood_are_refused(blocks: Any, what: str) -> None:
    with pytest.raises(PlanError) as caught:
        architecture.dimensions(config(block_configs=blocks), DECILM, "m/config.json")
    assert caught.value.where == "m/config.json: block_configs"
    assert what in caught.value.what and "hubplugin writes them" in caught.value.fix


def test_absent_parts_add_nothing_and_hand_on_what_came_in() -> None:
    attention, mlp = (heterogeneous.Absent(part) for part in LLAMA.sublayers)
    x = torch.randn(2, 3, 8)
    out, nothing = attention(hidden_states=x, position_ids=None)
    assert nothing is None and torch.equal(out, torch.zeros(2, 3, 8))
    assert torch.equal(mlp(x), torch.zeros(2, 3, 8))


@pytest.mark.parametrize("biased", [False, True])
def test_a_class_of_transformers_is_found_for_blocks_that_differ(biased: bool) -> None:
    asked = config(attention_bias=biased, num_attention_heads=3, num_key_value_heads=3)
    found = heterogeneous.transformers_config(asked)
    assert (found.model_type, found.head_dim, found.hidden_size) == ("llama" if biased else "mistral", 3, 8)


def test_a_config_that_transformers_knows_is_taken_as_it_is_but_for_what_it_would_load() -> None:
    found = heterogeneous.transformers_config(
        {"model_type": "qwen3", "hidden_size": 24, "quantization_config": {"bits": 4}}
    )
    assert (found.model_type, found.hidden_size) == ("qwen3", 24) and not hasattr(found, "quantization_config")


# -- the configuration class


def test_blocks_can_be_read_by_attribute_and_written_again() -> None:
    found = BlocksConfig(**{key: value for key, value in config().items() if key != "model_type"})
    assert found.model_type == "nemotron-nas"
    first, second, third = found.block_configs
    assert (first.attention.no_op, first.attention.n_heads_in_group, first.ffn.intermediate_size) == (False, 2, 4)
    assert second.attention.no_op and not hasattr(second.attention, "n_heads_in_group")
    assert third.ffn.no_op and not hasattr(third.ffn, "intermediate_size")
    assert not hasattr(first.ffn, "ffn_mult"), "DeciLM asks for it first"
    text = json.loads(found.to_json_string(use_diff=True))
    assert text["model_type"] == "nemotron-nas"
    assert text["block_configs"][1] == {"attention": {"no_op": True}, "ffn": {"no_op": False, "intermediate_size": 2}}
    again = BlocksConfig.from_dict(text)
    assert again.block_configs == found.block_configs and again.block_configs[0].attention.n_heads_in_group == 2
    assert (again.head_dim, again.num_attention_heads, again.sliding_window) == (3, 4, found.sliding_window)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_whole(copied: Any) -> None:
    found = copied(BlocksConfig(**{key: value for key, value in config().items() if key != "model_type"}))
    assert isinstance(found, BlocksConfig)
    assert found.block_configs[0].ffn.intermediate_size == 4 and not hasattr(found.block_configs[0], "nothing")


def test_vllms_plugin_makes_the_class_known_to_transformers(tmp_path: Any) -> None:
    plugin.know_blocks()
    plugin.know_blocks()  # in every process, maybe twice
    (tmp_path / "config.json").write_text(json.dumps(config()))
    found = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(found, BlocksConfig) and found.block_configs[1].ffn.intermediate_size == 2


def test_fitted_blocks_have_their_own_heads() -> None:
    with torch.device("meta"):
        block = type(pico.model("llama").model.layers[0])(pico.config("llama", num_attention_heads=4), 0)
    own = replace(SMALL, hidden=64, heads=4, kv_heads=4, head_dim=32, ffn=96)
    shared = block.self_attn.config
    heterogeneous.fit(block, LLAMA, own)
    assert tuple(block.mlp.down_proj.weight.shape) == (64, 96) and block.mlp.down_proj.weight.is_meta
    assert tuple(block.self_attn.k_proj.weight.shape) == (128, 64)
    assert block.self_attn.num_key_value_groups == 1
    heterogeneous.fit(block, LLAMA, replace(own, heads=2, kv_heads=1))
    assert block.self_attn.num_key_value_groups == 2 and block.self_attn.config is not shared
    assert shared.num_attention_heads == 4, "all blocks share one configuration"
