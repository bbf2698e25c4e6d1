"""What a pruning step and a model cannot do together, and what a plan says of shapes that are decided later."""

from typing import Any

import pico
import pytest
from plan_helpers import config_json, document, headers

from hubplugin.errors import PlanError
from hubplugin.model.architectures.architecture import BlockShape, block_configs
from hubplugin.plan import planner
from hubplugin.plan.choices.pruning_space import Measured, Shape
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.plan.vllm_support import PLUGIN

WIDE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
LINEARS = 4 * (2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 128)  # of the llama


def step(**keys: Any) -> dict[str, Any]:
    return {"method": "prune", **keys}


def planned(*steps: dict[str, Any], kind: str = "llama", **changes: Any) -> Plan:
    config = pico.config(kind, **{**WIDE, **changes})
    return planner.make(document(list(steps)), config_json(config), headers(config))


def variant(*steps: dict[str, Any], kind: str = "llama", **changes: Any) -> VariantPlan:
    return planned(*steps, kind=kind, **changes).variants[0]


def drafted(*steps: dict[str, Any], kind: str = "llama", **changes: Any) -> DraftPlan:
    return planned(*steps, kind=kind, **changes).drafts[0]


OUTSIDE = planned(step(ffn=0.25)).parameters - LINEARS


@pytest.mark.parametrize(
    ("steps", "changes", "where", "what", "fix"),
    [
        ([step(layers=4)], {}, "[0].layers", "4 of 4 cannot go", "use 3 or fewer"),
        ([step(mlp=4, layout="per-layer")], {}, "[0].mlp", "4 of 4 cannot go", "use 3 or fewer"),
        (
            [step(layers=2, attention=2, layout="per-layer")],
            {},
            "[0].attention",
            "2 of 4 cannot go",
            "use 1 or fewer",
        ),
        (
            [step(layers=1, attention=1, mlp=2, layout="per-layer")],
            {},
            "[0].mlp",
            "2 of 4 cannot go",
            "use 1 or fewer",
        ),
        (
            [step(kv_heads=0.5)],
            {"num_key_value_heads": 1},
            "[0].kv_heads",
            "there are 1 KV groups, and none can go",
            "prune ffn or layers, or another group_size",
        ),
        (
            [step(heads=0.5)],
            {"num_key_value_heads": 4},
            "[0].heads",
            "there are 1 query heads of a KV group, and none can go",
            "prune ffn or layers, or another group_size",
        ),
        (
            [step(kv_heads=0.5), {**GPTQ, "group_size": 128}],
            {},
            "[0].kv_heads",
            "there are 2 KV groups, and none can go",
            "prune ffn or layers, or another group_size",
        ),
        (
            [step(params=OUTSIDE)],
            {},
            "[0].params",
            f"the model has {OUTSIDE + LINEARS} parameters, {OUTSIDE} of them outside the blocks' linears",
            f"use a number between, such as {OUTSIDE + LINEARS * 7 // 10}",
        ),
        (
            [step(params=OUTSIDE + LINEARS)],
            {},
            "[0].params",
            f"the model has {OUTSIDE + LINEARS} parameters, {OUTSIDE} of them outside the blocks' linears",
            f"use a number between, such as {OUTSIDE + LINEARS * 7 // 10}",
        ),
        (
            [step(ffn=0.25, bias=True)],
            {"kind": "mistral"},
            "[0].bias",
            "linears of mistral have no biases to fit",
            "remove it",
        ),
        (
            [step(kv_heads=0.25, bias=True)],
            {"num_key_value_heads": 4},
            "[0].bias",
            "linears of mistral have no biases to fit",
            "remove it",
        ),
        (
            [step(ratio=0.3, layout="per-layer")],
            {"kind": "gemma2"},
            "[0].layout",
            "vLLM's class for blocks that differ is a llama without windows, and this is gemma2",
            "leave layout out: all layers then lose alike",
        ),
        (
            [step(mlp=1, layout="per-layer")],
            {"kind": "mistral"},
            "[0].layout",
            "vLLM's class for blocks that differ is a llama without windows, and this is mistral",
            "leave layout out: all layers then lose alike",
        ),
        (
            [step(ratio=0.01)],
            {},
            "[0].ratio",
            "0.01 of the weights rounds to none of them",
            "use a ratio of 0.07 or more",  # half of 32 channels are 0.0625 of a layer
        ),
        ([step(ffn=0.25), step(layers=1)], {}, "[1].method", "prune stands twice", "keep one; each acts on all blocks"),
        ([GPTQ, step(layers=1)], {}, "[1].method", "prune stands after gptq", "codes cannot be refitted"),
        ([step(layers=1), {"method": "gptq", "budget": {"bits_per_weight": 4.5}}], {}, "[1].budget", "", ""),
    ],
)
def test_what_the_plan_refuses(
    steps: list[dict[str, Any]], changes: dict[str, Any], where: str, what: str, fix: str
) -> None:
    with pytest.raises(PlanError) as caught:
        variant(*steps, **changes)
    assert caught.value.where == f"m.yaml: variants.V{where}"
    assert what in caught.value.what and fix in caught.value.fix, (caught.value.what, caught.value.fix)


def test_blocks_that_differ_already_are_not_pruned_again() -> None:
    found = planned(step(mlp=1, layout="per-layer")).variants[0]
    for config in (found.config, {**found.config, "block_configs": block_configs(found.dims)}):
        with pytest.raises(PlanError) as caught:
            planner.make(document([step(ffn=0.25)]), config, found.tensors)
        assert caught.value.where == "m.yaml: variants.V[0]"
        assert caught.value.what == "blocks of nemotron-nas already differ from one another"
        assert caught.value.fix == "prune the model it was made from, by as much as you want in all"
    assert (
        planner.make(document([GPTQ]), found.config, found.tensors).variants[0].config["model_type"] == "nemotron-nas"
    )


def test_experts_are_not_pruned() -> None:
    with pytest.raises(PlanError, match="has experts"):
        variant(step(layers=1), kind="mixtral")


def test_counts_decide_sizes_and_measurements_only_which_layers() -> None:
    draft = drafted(step(layers=1, kv_heads=0.5, ffn=0.25))
    found = draft.estimate
    assert found.widths == {
        "num_hidden_layers": (4, 3),
        "num_attention_heads": (4, 2),
        "num_key_value_heads": (2, 1),
        "intermediate_size": (128, 96),
    }
    assert draft.space is not None and found.sources == (0, 1, 2), "a guess"
    assert drafted(step(kv_heads=0.5)).space is None


def test_a_decided_shape_replaces_the_guess() -> None:
    asked = document([step(layers=1), GPTQ])
    config = pico.config("llama", **WIDE)
    made = planner.make(asked, config_json(config), headers(config))
    shape = Shape((0, 2, 3), (BlockShape(4, 2, 128),) * 3)
    found = made.drafts[0].settle(shape=shape)
    assert made.drafts[0].space is not None and not hasattr(found, "space")
    assert found.sources == (0, 2, 3) and found.tensors == made.variants[0].tensors


def test_sizes_are_those_of_the_tensors_that_will_be_there() -> None:
    found = variant(step(attention=1, mlp=2, layout="per-layer"))
    assert found.linear_parameters == LINEARS - (2 * 128 * 128 + 2 * 64 * 128) - 2 * 3 * 128 * 128
    assert found.parameters == sum(header.count for header in found.tensors.values())
    assert found.notes == (PLUGIN,)
    assert variant(step(ffn=0.25)).notes == ()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_widths_that_differ_from_layer_to_layer_keep_whole_groups(kind: str) -> None:
    changes = {"sliding_window": None} if kind == "mistral" else {}
    found = drafted(step(ratio=0.3, layout="per-layer"), {**GPTQ, "group_size": 64}, kind=kind, **changes)
    assert found.space is not None and found.space.widths == (64, 128)
    assert drafted(step(ratio=0.3), GPTQ).space.widths == (32, 64, 96, 128)  # type: ignore[union-attr]


def test_biases_are_promised_where_they_are_asked_for() -> None:
    found = variant(step(ffn=0.25, bias=True))
    assert found.config["attention_bias"] and found.config["mlp_bias"]
    assert sum(name.endswith("_proj.bias") for name in found.tensors) == 7 * 4
    assert found.tensors["model.layers.0.mlp.down_proj.bias"].shape == (128,)
    assert found.linear_parameters == variant(step(ffn=0.25)).linear_parameters


@pytest.mark.parametrize(
    ("kind", "keys"), [("llama", {}), ("llama", {"bias": True}), ("qwen2", {}), ("qwen2", {"layout": "per-layer"})]
)
def test_a_number_of_parameters_counts_the_biases_that_are_new(kind: str, keys: dict[str, Any]) -> None:
    whole = planned(step(ffn=0.25), kind=kind)
    for params in range(whole.parameters - whole.linear_parameters // 2, whole.parameters, 7777):
        asked = document([step(params=params, **keys)])
        made = planner.make(asked, whole.config, whole.tensors)
        space = made.drafts[0].space
        assert space is not None
        limit = space.limit(made.parameters - made.linear_parameters)
        cheap = {option: float(-option[0]) for option in space.weights.attention}
        measured = Measured([cheap] * 4, [{one: float(-one) for one in space.weights.ffn}] * 4, [])
        chosen = space.choose(measured, space.weights, limit)
        assert chosen is not None
        for shape in (chosen[0], space.before_measuring(made.parameters - made.linear_parameters)):
            assert made.drafts[0].settle(shape=shape).parameters <= params
