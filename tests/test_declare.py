"""What config.json says, against the very functions by which vLLM and compressed-tensors read it."""

import re
from typing import Any

import pico
import pytest
from plan_helpers import config_json, document, headers

from hubplugin.compress.quantization_config import quantization_config
from hubplugin.plan import planner
from hubplugin.plan.variant_plan import VariantPlan

WIDE = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "tie_word_embeddings": False}
W4 = {"method": "gptq", "group_size": 32}
W8A8 = {"bits": 8, "group_size": -1, "activation_bits": 8}
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def variant(step: dict[str, Any], config: Any = None) -> VariantPlan:
    config = config or pico.config(**WIDE)
    return planner.make(document([step]), config_json(config), headers(config)).variants[0]


def declared(step: dict[str, Any], config: Any = None) -> dict[str, Any]:
    found = quantization_config(variant(step, config))
    assert found is not None
    return found


def test_a_variant_without_quantization_declares_nothing() -> None:
    assert quantization_config(variant({"method": "prune", "ffn": 0.5})) is None


def test_one_grid_for_all_in_autogptqs_words() -> None:
    found = declared(W4)
    expected = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "lm_head": False}
    assert found.items() >= {**expected, "checkpoint_format": "gptq", "pack_dtype": "int32"}.items()
    assert "dynamic" not in found


def test_one_grid_for_all_in_compressed_tensors_words() -> None:
    found = declared({**W4, "symmetric": False})
    assert (found["quant_method"], found["format"], found["ignore"]) == (
        "compressed-tensors",
        "pack-quantized",
        ["lm_head"],
    )
    (group,) = found["config_groups"].values()
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    assert group["weights"] == {**weights, "dynamic": False, "actorder": None}


def test_a_whole_row_is_a_channel_and_activations_are_dynamic() -> None:
    found = declared({"method": "gptq", **W8A8})
    (group,) = found["config_groups"].values()
    assert found["format"] == group["format"] == "int-quantized"
    assert (group["weights"]["strategy"], group["weights"]["group_size"]) == ("channel", None)
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)


def test_a_tied_head_is_ignored_too() -> None:
    config = pico.config(**WIDE | {"tie_word_embeddings": True})
    assert declared({**W4, "symmetric": False}, config)["ignore"] == ["lm_head"]


MIXED = {
    **W4,
    "ignore": ["layers.0.mlp.down_proj"],
    "overrides": {"self_attn.?_proj": {"group_size": 64}, "layers.1.mlp.*": {"bits": 8}},
}


def test_rules_match_exactly_their_linears_by_the_names_of_the_files_and_by_vllms() -> None:
    made = variant({**MIXED, "format": "gptq"}, pico.config(**WIDE, num_hidden_layers=12))
    found = quantization_config(made)
    assert found is not None
    stacked = {unit: name for name, units in FUSED.items() for unit in units}
    for linear in made.linears:
        parent, short = linear.name.rsplit(".", 1)
        for name in (linear.name, f"{parent}.{stacked.get(short, short)}"):
            rule = next((rule for rule in found["dynamic"] if re.match(rule[2:], name)), None)
            if linear.scheme is None:
                assert rule is not None and rule.startswith("-:"), name
            else:
                own = {key: found[key] for key in ("bits", "group_size", "sym")} | found["dynamic"].get(rule, {})
                assert own == {"bits": linear.scheme.bits, "group_size": linear.scheme.group_size, "sym": True}, name
    assert not any(re.match(rule[2:], "lm_head") for rule in found["dynamic"])


def test_the_names_of_linears_that_are_stacked_in_the_files_are_vllms() -> None:
    config = pico.config("phi3", intermediate_size=256)
    found = declared({**W4, "format": "gptq", "overrides": {"qkv_proj": {"bits": 8}}}, config)
    rules = {r"+:model\.layers\.(?:0|1)\.self_attn\.qkv_proj$": {"bits": 8, "group_size": 32, "sym": True}}
    assert found["dynamic"] == rules


def test_a_quantized_head_is_named() -> None:
    config = pico.config(**WIDE, vocab_size=320)
    head = {**W4, "lm_head": True, "overrides": {"lm_head": {"group_size": 64}}}
    found = declared({**head, "format": "gptq"}, config)
    assert found["lm_head"] is True
    assert found["dynamic"] == {"+:lm_head$": {"bits": 4, "group_size": 64, "sym": True}}
    found = declared({**head, "format": "compressed-tensors"}, config)
    assert found["ignore"] == [] and found["config_groups"]["group_1"]["targets"] == ["lm_head"]
    found = declared({**W4, "lm_head": True, "format": "compressed-tensors"}, config)
    assert found["config_groups"]["group_0"]["targets"] == ["Linear", "lm_head"]


BOTH = {**MIXED, "overrides": {**MIXED["overrides"], "layers.1.mlp.*": {**W8A8}}}  # type: ignore[dict-item]


def test_compressed_tensors_own_schema_takes_what_we_write() -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    for step in (W4 | {"symmetric": False}, {"method": "gptq", **W8A8}, BOTH, {**W4, "bits": 3}):
        made = declared(step)
        read = quantization.QuantizationConfig.model_validate(made)
        assert read.format == made["format"] and read.quantization_status == "compressed"
    assert made["config_groups"]["group_0"]["weights"]["num_bits"] == 3
    assert declared(BOTH)["format"] == "mixed-precision"


def test_vllms_matching_finds_every_linears_own_group() -> None:
    """Stacked names and all: the functions by which vLLM 0.32 looks a layer up in config_groups and ignore."""
    utils = pytest.importorskip("vllm.model_executor.layers.quantization.compressed_tensors.utils")
    import torch

    made = variant(BOTH)
    found = quantization_config(made)
    assert found is not None
    groups = {target: group for group in found["config_groups"].values() for target in group["targets"]}
    stacked = {unit: name for name, units in FUSED.items() for unit in units}
    layer = type("ColumnParallelLinear", (torch.nn.Module,), {})()
    for linear in made.linears:
        parent, short = linear.name.rsplit(".", 1)
        name = f"{parent}.{stacked.get(short, short)}"
        ignored = utils.should_ignore_layer(name, found["ignore"], FUSED)
        assert ignored == (linear.scheme is None), name
        if linear.scheme:
            group = groups[utils.find_matched_target(name, layer, groups.keys(), FUSED)]
            assert group["weights"]["num_bits"] == linear.scheme.bits
            assert (group["weights"]["group_size"] or -1) == linear.scheme.group_size
            assert (group["input_activations"] is None) == linear.scheme.weight_only
            assert group["format"] == linear.scheme.layout
    assert utils.should_ignore_layer("lm_head", found["ignore"], FUSED)
