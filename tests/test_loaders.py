"""What loads a quantized checkpoint besides vLLM, as plans say it."""

from typing import Any

import pico
import pytest
from plan_helpers import config_json, document, headers

from hubplugin.plan import loaders, planner, schemes, table
from hubplugin.plan.draft import Plan

WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512}
GPTQ = {"format": "gptq"}
ALONE = loaders.GPTQMODEL_ALONE.format("linears differ")
ZEROS = {"symmetric": False}


def planned(**variants: dict[str, Any]) -> Plan:
    config = pico.config(**WIDE)
    steps = {name: [{"method": "gptq", "group_size": 32, **step}] for name, step in variants.items()}
    return planner.make(document(steps), config_json(config), headers(config))


@pytest.mark.parametrize(
    ("step", "note", "requirements"),
    [
        ({}, None, ("transformers", "gptqmodel", "optimum")),
        ({"bits": 8}, None, ("transformers", "gptqmodel", "optimum")),
        ({**GPTQ, "ignore": ["o_proj"]}, ALONE, ("gptqmodel",)),
        ({**GPTQ, "ignore": ["layers.1.mlp.down_proj"]}, ALONE, ("gptqmodel",)),
        ({**GPTQ, "overrides": {"down_proj": {"bits": 8}}}, ALONE, ("gptqmodel",)),
        ({**GPTQ, "overrides": {"down_proj": {"bits": 4}}}, None, ("transformers", "gptqmodel", "optimum")),
        ({"ignore": ["o_proj"]}, None, ("transformers", "compressed-tensors")),
        ({"overrides": {"down_proj": {"group_size": 64}}}, None, ("transformers", "compressed-tensors")),
        (ZEROS, loaders.ZEROS, ("transformers<5.23", "compressed-tensors")),
        ({"overrides": {"o_proj": ZEROS}}, loaders.ZEROS, ("transformers<5.23", "compressed-tensors")),
        ({**ZEROS, "bits": 8}, loaders.ZEROS, ("transformers<5.23", "compressed-tensors")),
        ({"bits": 3}, loaders.THREE_BITS, ("transformers", "compressed-tensors>=0.18")),
        ({"overrides": {"o_proj": {"bits": 3}}}, loaders.THREE_BITS, ("transformers", "compressed-tensors>=0.18")),
        ({"bits": 2}, None, ("transformers", "compressed-tensors")),
        ({"bits": 8, "group_size": -1, "activation_bits": 8}, None, ("transformers", "compressed-tensors")),
    ],
)
def test_each_checkpoint_names_what_loads_it(
    step: dict[str, Any], note: str | None, requirements: tuple[str, ...]
) -> None:
    plan = planned(V=step)
    (variant,) = plan.variants
    assert variant.notes == ((note,) if note else ())
    assert loaders.loader(schemes.stored(variant.linears, variant.head)).requirements == requirements
    shown = table.render(plan)
    assert f"  in Python: the packages {', '.join(requirements)}" in shown and (note is None or f"V: {note}" in shown)


def test_both_notes_stand_where_both_hold() -> None:
    (variant,) = planned(V={**ZEROS, "bits": 3}).variants
    assert variant.notes == (loaders.ZEROS, loaders.THREE_BITS)
    needed = loaders.loader(schemes.stored(variant.linears, variant.head))
    assert needed == loaders.Loader("transformers", ("transformers<5.23", "compressed-tensors>=0.18"))


def test_a_plan_says_which_format_it_chose_and_why() -> None:
    shown = table.render(
        planned(A={}, B={"bits": 8}, C={"ignore": ["o_proj"]}, D=ZEROS, E={**GPTQ, "ignore": ["o_proj"]})
    )
    lines = shown.split("checkpoint formats, as no format is named\n")[1].split("\n\n")[0].splitlines()
    assert lines == [
        "  A, B: gptq",
        "  C: compressed-tensors (linears differ: transformers reads no such checkpoint in AutoGPTQ's)",
        "  D: compressed-tensors (vLLM does not read all of it in AutoGPTQ's)",
    ]
    assert f"E: {ALONE}" in shown
    assert "as no format is named" not in table.render(planned(E={**GPTQ, "ignore": ["o_proj"]}))


def test_a_budget_is_spent_in_compressed_tensors_format_unless_another_is_named() -> None:
    config = pico.config(**WIDE)
    own = {"method": "gptq", "budget": {"bits_per_weight": 5.0}}
    plan = planner.make(
        document({"Left-open": [own], "Named": [{**own, **GPTQ}]}), config_json(config), headers(config)
    )
    left, named = plan.variants
    assert [variant.steps[0].model_dump()["format"] for variant in plan.variants] == ["compressed-tensors", "gptq"]
    assert left.notes == () and named.notes == (ALONE,)


def test_of_blocks_that_differ_no_other_loader_is_named() -> None:
    config = pico.config(**WIDE, num_hidden_layers=3)
    steps = [{"method": "prune", "ratio": 0.2, "layout": "per-layer"}, {"method": "gptq", "group_size": 32, **ZEROS}]
    plan = planner.make(document(steps), config_json(config), headers(config))
    assert not set(plan.variants[0].notes) & {loaders.ZEROS, ALONE}
    assert "in Python" not in table.render(plan)


@pytest.mark.parametrize(
    ("config", "step", "why"),
    [
        (pico.config(**WIDE, vocab_size=320, tie_word_embeddings=False), {"lm_head": True}, "the head is quantized"),
        (pico.config("qwen3_moe"), {}, "experts are quantized"),
        (pico.config("mixtral"), {"bits": 8}, "experts are quantized"),
    ],
)
def test_heads_and_experts_in_autogptqs_format_are_gptqmodels_alone(
    config: Any, step: dict[str, Any], why: str
) -> None:
    """transformers loads them without an error, and predicts noise: it leaves their weights out."""
    own = {"method": "gptq", "group_size": 32, **step}
    plan = planner.make(document({"Open": [own], "Named": [{**own, **GPTQ}]}), config_json(config), headers(config))
    left, named = plan.variants
    assert left.notes == () and left.steps[0].model_dump()["format"] == "compressed-tensors"
    assert named.notes == (loaders.GPTQMODEL_ALONE.format(why),)
    shown = table.render(plan)
    assert f"  Open: compressed-tensors ({why}: transformers reads no such checkpoint in AutoGPTQ's)" in shown
