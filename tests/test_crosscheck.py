"""What the settings of single linears may not ask for. Widths, sources and names: test_plan.py."""

from typing import Any

import pico
import pytest
from plan_helpers import config_json, document, headers

from hubplugin.errors import PlanError
from hubplugin.plan import planner
from hubplugin.plan.variant_plan import VariantPlan

W8A8 = {"bits": 8, "group_size": -1, "activation_bits": 8}
UNTIED = {"intermediate_size": 256, "tie_word_embeddings": False}


def variant(*before: dict[str, Any], config: Any = None, **step: Any) -> VariantPlan:
    config = config or pico.config(**UNTIED)
    steps = [*before, {"method": "gptq", "group_size": 32, **step}]
    return planner.make(document(steps), config_json(config), headers(config)).variants[0]


def refused(*before: dict[str, Any], config: Any = None, **step: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        variant(*before, config=config, **step)
    return caught.value


@pytest.mark.parametrize("place", ["ignore", "overrides"])
def test_a_pattern_that_names_nothing_is_refused_with_some_that_do(place: str) -> None:
    error = refused(**{place: ["up_prj"] if place == "ignore" else {"up_prj": {"bits": 8}}})
    assert error.where == f"m.yaml: variants.V[0].{place}"
    assert error.what == "'up_prj' names no linear that this step sees"
    assert error.fix.endswith("such as q_proj, k_proj, v_proj, model.layers.0.self_attn.q_proj")


def test_the_head_is_named_only_where_it_is_quantized() -> None:
    assert refused(overrides={"lm_head": {"bits": 8}}).where.endswith("overrides")
    head = variant(lm_head=True, overrides={"lm_head": {"bits": 8}}).head
    assert head is not None and head.scheme is not None
    assert (head.scheme.bits, head.after) == (8, (288, 64))
    assert variant().head is None


def test_an_override_that_never_counts_is_refused() -> None:
    error = refused(overrides={"mlp.*": {"bits": 8}, "down_proj": {"bits": 3}})
    assert error.what == "'down_proj' names only linears that are ignored or that an earlier pattern names"
    assert refused(ignore=["down_proj"], overrides={"down_proj": {"bits": 3}}).where.endswith(".overrides")


def test_a_step_that_ignores_all_is_refused() -> None:
    assert refused(ignore=["*"]).what == "no linear is left to quantize"


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"ignore": ["k_proj"]}, "q_proj int4 g32, k_proj dense, v_proj int4 g32"),
        ({"overrides": {"layers.1.mlp.up_proj": {"bits": 8}}}, "gate_proj int4 g32, up_proj int8 g32"),
        ({"overrides": {"v_proj": {"symmetric": False}}}, "q_proj int4 g32, k_proj int4 g32, v_proj int4 g32 zeros"),
        ({"overrides": {"q_proj": W8A8}}, "q_proj int8 row A8, k_proj int4 g32, v_proj int4 g32"),
    ],
)
def test_linears_that_vllm_stacks_must_agree(step: dict[str, Any], told: str) -> None:
    error = refused(**step)
    assert error.where == "m.yaml: variants.V[0]"
    assert error.what.endswith(f"into one, and they differ: {told}")
    assert "or none" in error.fix


def test_linears_that_are_one_in_the_files_have_nothing_to_agree_on() -> None:
    config = pico.config("phi3", intermediate_size=256)
    made = variant(config=config, ignore=["qkv_proj"], overrides={"gate_up_proj": {"bits": 8}})
    assert [
        str(made.linear(f"model.layers.1.{name}").scheme) for name in ("self_attn.qkv_proj", "mlp.gate_up_proj")
    ] == [
        "None",
        "int8 g32",
    ]


def test_a_tied_head_is_not_quantized() -> None:
    error = refused(config=pico.config(intermediate_size=256, tie_word_embeddings=True), lm_head=True)
    assert error.where == "m.yaml: variants.V[0].lm_head"
    assert "this model's head is its embedding" in error.what


@pytest.mark.parametrize(
    ("step", "where"),
    [
        ({"activation_bits": 8}, "m.yaml: variants.V[0].activation_bits"),
        ({**W8A8, "symmetric": False}, "m.yaml: variants.V[0].activation_bits"),
        ({**W8A8, "group_size": 64}, "m.yaml: variants.V[0].activation_bits"),
        (
            {"overrides": {"down_proj": {"activation_bits": 8}}},
            "m.yaml: variants.V[0].overrides.down_proj.activation_bits",
        ),
        (
            {**W8A8, "overrides": {"down_proj": {"bits": 4}}},
            "m.yaml: variants.V[0].overrides.down_proj.activation_bits",
        ),
    ],
)
def test_8_bit_activations_need_int8_weights_by_rows(step: dict[str, Any], where: str) -> None:
    error = refused(**step)
    assert (error.where, error.fix) == (where, "add bits: 8, group_size: -1, and symmetric: true")


def test_autogptqs_format_knows_no_activations() -> None:
    assert refused(**W8A8, format="gptq").where == "m.yaml: variants.V[0].format"


@pytest.mark.parametrize("step", [{"bits": 3}, {"symmetric": False}, {"overrides": {"down_proj": {"bits": 2}}}])
def test_what_vllm_reads_nowhere_in_autogptqs_format_is_refused_with_the_other_one(step: dict[str, Any]) -> None:
    error = refused(**step, format="gptq")
    assert "it reads 4 and 8 bits and symmetric grids alone" in error.what
    assert error.fix == "use format: compressed-tensors, or leave it out, or other bits"


def test_a_head_that_autogptqs_format_cannot_pad_takes_the_other_one() -> None:
    assert variant(lm_head=True).steps[0].format == "compressed-tensors"  # type: ignore[union-attr]
    even = pico.config(**UNTIED, vocab_size=320)
    assert variant(lm_head=True, config=even, format="gptq").steps[0].format == "gptq"  # type: ignore[union-attr]
    error = refused(lm_head=True, format="gptq")
    assert "a head of whole 64s alone, this one has 288 rows" in error.what


@pytest.mark.parametrize(
    ("bits", "width", "fits"),
    [(4, 104, True), (4, 100, False), (2, 144, True), (2, 152, False), (3, 160, True), (3, 144, False)],
)
def test_codes_fill_whole_words(bits: int, width: int, fits: bool) -> None:
    config = pico.config(intermediate_size=width)
    if fits:
        assert variant(config=config, bits=bits, group_size=-1)
    else:
        error = refused(config=config, bits=bits, group_size=-1)
        assert error.where.endswith(".bits") and "do not fill whole 32-bit words" in error.what


def test_int8_weights_are_not_packed() -> None:
    assert variant(config=pico.config(intermediate_size=131), **W8A8)


def test_pruned_widths_keep_whole_groups_of_every_override() -> None:
    prune, config = {"method": "prune", "ffn": 0.3}, pico.config(intermediate_size=96)
    assert variant(prune, config=config).widths["intermediate_size"][1] == 64
    error = refused(prune, config=config, overrides={"down_proj": {"group_size": 128}})
    assert error.where == "m.yaml: variants.V[0].ffn" and "multiple of 128" in error.what


def test_the_settings_of_each_linear_are_the_steps_with_its_own_grid() -> None:
    made = variant(
        clip_search=False, overrides={"layers.1.mlp.down_proj": {"bits": 3, "symmetric": False}}, ignore=["o_proj"]
    )
    plain, own, none = (
        made.settings(f"model.layers.1.{name}") for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
    )
    assert none is None and plain is not None and own is not None
    assert (plain.bits, plain.group_size, plain.symmetric, plain.clip_search) == (4, 32, True, False)
    assert (own.bits, own.group_size, own.symmetric, own.clip_search) == (3, 32, False, False)
    with pytest.raises(KeyError):
        made.settings("lm_head")
