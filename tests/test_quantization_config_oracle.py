"""config.json, read back by compressed-tensors' own classes: every linear gets the scheme that was planned for it.

The library's models read the dictionary, its own matching gives each module of a model without weights a scheme, and
that scheme is held against the plan. A dictionary that is changed in any of those places is found out below.
"""

import copy
import json
from collections.abc import Callable
from typing import Any

import pico
import pytest
import torch
from plan_helpers import config_json, document, headers
from transformers import AutoModelForCausalLM

from hubplugin.compress.quantization_config import quantization_config
from hubplugin.plan import planner
from hubplugin.plan.variant_plan import VariantPlan

quantization = pytest.importorskip("compressed_tensors.quantization")

WIDE = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256, "tie_word_embeddings": False}
W4 = {"method": "gptq", "group_size": 32, "format": "compressed-tensors"}
W8A8 = {"method": "gptq", "bits": 8, "group_size": -1, "activation_bits": 8}
OWN = {"bits": 8, "group_size": -1, "activation_bits": 8}
MIXED = {
    **W4,
    "ignore": ["layers.0.mlp.down_proj"],
    "overrides": {"self_attn.?_proj": {"group_size": 64}, "layers.1.mlp.*": {"bits": 8}},
}
HEAD = {"tie_word_embeddings": False, "vocab_size": 320}
PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the step, and what is unusual about the model
    "4 bits": (W4, {}),
    "4 bits, zero points": ({**W4, "symmetric": False}, {}),
    "2 bits, whole rows": ({**W4, "bits": 2, "group_size": -1}, {}),
    "3 bits": ({**W4, "bits": 3}, {}),
    "8 bits": ({**W4, "bits": 8, "group_size": 64}, {}),
    "int8 inputs": (W8A8, {}),
    "a tied head": (W4, {"tie_word_embeddings": True}),
    "several grids": (MIXED, {}),
    "two formats": ({**MIXED, "overrides": {**MIXED["overrides"], "layers.1.mlp.*": OWN}}, {}),
    "zero points in places": (
        {**W4, "overrides": {"up_proj": {"symmetric": False}, "gate_proj": {"symmetric": False}}},
        {},
    ),
    "the head too": ({**W4, "lm_head": True}, HEAD),
    "the head otherwise": ({**W4, "lm_head": True, "overrides": {"lm_head": {"group_size": 64}}}, HEAD),
    "stacked in the files": ({**W4, "overrides": {"qkv_proj": {"bits": 8}}}, {"model_type": "phi3"}),
    "twelve layers": (
        {**W4, "ignore": ["layers.1.*"], "overrides": {"layers.11.*": {"bits": 8}}},
        {"num_hidden_layers": 12},
    ),
}
GIVEN = ("num_bits", "group_size", "symmetric", "strategy", "type", "dynamic", "actorder")


def made(name: str) -> tuple[VariantPlan, dict[str, Any], Any]:
    """A variant's plan, the dictionary for its config.json, and its model without weights."""
    step, changes = PLANS[name]
    config = pico.config(**{**WIDE, **changes})
    variant = planner.make(document([step]), config_json(config), headers(config)).variants[0]
    declared = quantization_config(variant)
    assert declared is not None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return variant, json.loads(json.dumps(declared)), model  # as it is read from a file


def faults(variant: VariantPlan, declared: dict[str, Any], model: Any) -> list[str]:
    """Everything in which the library understands the dictionary otherwise than it was planned and written."""
    read = quantization.QuantizationConfig.model_validate(declared)
    again = read.model_dump(mode="json")
    found = [
        f"{key}: {again.get(key)!r}" for key in declared if key != "config_groups" and again.get(key) != declared[key]
    ]
    if quantization.QuantizationConfig.model_validate(again) != read:
        found.append("what it writes it reads otherwise")
    for group, own in declared["config_groups"].items():
        for key in ("targets", "format"):
            if again["config_groups"][group][key] != own[key]:
                found.append(f"{group} {key}: {again['config_groups'][group][key]!r}")
        for part in ("weights", "input_activations", "output_activations"):
            given, got = own[part], again["config_groups"][group][part]
            if (given is None) != (got is None):
                found.append(f"{group} {part}: {got!r}")
            found += [f"{group} {part} {key}: {got.get(key)!r}" for key in given or () if got.get(key) != given[key]]
    return found + _misplaced(variant, read, model)


def _misplaced(variant: VariantPlan, read: Any, model: Any) -> list[str]:
    """Linears that the library gives another scheme than the plan's."""
    quantization.apply_quantization_config(model, read)
    planned = {one.name: one.scheme for one in (*variant.linears, *([variant.head] if variant.head else []))}
    modules = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    found = [f"{name} is planned and no linear of the model" for name in planned.keys() - modules.keys()]
    for name, module in modules.items():
        scheme, got = planned.get(name), getattr(module, "quantization_scheme", None)
        if scheme is None or got is None:
            found += [f"{name}: {got} for {scheme}"] if (scheme is None) != (got is None) else []
            continue
        whole = scheme.group_size == -1
        wanted = (
            scheme.bits,
            None if whole else scheme.group_size,
            scheme.symmetric,
            "channel" if whole else "group",
            "int",
        )
        given = tuple(getattr(got.weights, key) for key in GIVEN)
        if given != (*wanted, False, None) or got.format != scheme.layout or got.output_activations is not None:
            found.append(f"{name}: {given} {got.format} for {scheme} {scheme.layout}")
        inputs = got.input_activations
        told = inputs and (inputs.num_bits, inputs.type, inputs.symmetric, inputs.strategy, inputs.dynamic)
        if told != (None if scheme.weight_only else (scheme.activation_bits, "int", True, "token", True)):
            found.append(f"{name}: inputs {told} for {scheme}")
    return found


@pytest.mark.parametrize("name", PLANS)
def test_compressed_tensors_gives_every_linear_its_own_scheme(name: str) -> None:
    variant, declared, model = made(name)
    assert len(variant.quantized) > 4
    assert faults(variant, declared, model) == []


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one entry; the path's parts are separated by slashes."""

    def change(declared: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            declared = declared[key]
        declared[last] = value

    return change


WEIGHTS = "config_groups/group_0/weights"
WRONG: dict[str, Callable[[dict[str, Any]], None]] = {
    "bits": put(f"{WEIGHTS}/num_bits", 8),
    "a group size": put(f"{WEIGHTS}/group_size", 128),
    "symmetry": put(f"{WEIGHTS}/symmetric", False),
    "a type": put(f"{WEIGHTS}/type", "float"),
    "an order": put(f"{WEIGHTS}/actorder", "group"),
    "a strategy": put(f"{WEIGHTS}/strategy", "channel"),
    "a key of weights": put(f"{WEIGHTS}/bits", 4),
    "a key of a group": put("config_groups/group_0/layout", "x"),
    "a key at the top": put("groups", {}),
    "a group's format": put("config_groups/group_0/format", "int-quantized"),
    "an unknown format": put("config_groups/group_0/format", "packed"),
    "a status": put("quantization_status", "done"),
    "nothing ignored": put("ignore", []),
    "an ignored linear": put("ignore", ["lm_head", "model.layers.0.mlp.up_proj"]),
    "targets": put("config_groups/group_0/targets", ["re:.*self_attn.*"]),
    "static inputs": put(
        "config_groups/group_0/input_activations", {"num_bits": 8, "strategy": "token", "dynamic": False}
    ),
    "any inputs": put("config_groups/group_0/input_activations", {"num_bits": 8, "strategy": "token", "dynamic": True}),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_dictionary_is_found_out(wrong: str) -> None:
    variant, declared, model = made("4 bits")
    changed = copy.deepcopy(declared)
    WRONG[wrong](changed)
    assert changed != declared
    try:
        found = faults(variant, changed, model)
    except ValueError:  # pydantic's own among them
        return
    assert found


def test_groups_that_change_places_are_found_out() -> None:
    variant, declared, model = made("several grids")
    groups = declared["config_groups"]
    groups["group_0"]["weights"], groups["group_1"]["weights"] = (
        groups["group_1"]["weights"],
        groups["group_0"]["weights"],
    )
    assert faults(variant, declared, model)
