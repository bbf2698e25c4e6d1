"""Plans against transformers' own classes, hand-made arithmetic, and everything a plan must refuse."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from plan_helpers import GPTQ, PRUNE, RECOVER, config_json, document, headers, published
from transformers import AutoConfig

from hubplugin.checkpoint.headers import Header
from hubplugin.errors import FamilyError, PlanError
from hubplugin.manifest.reading import loading
from hubplugin.model.architectures import architecture
from hubplugin.model.architectures.families import FAMILIES
from hubplugin.model.devices import computing_dtype
from hubplugin.plan import draft, planner, sizes, table, vllm_support
from hubplugin.plan.costs import estimates
from hubplugin.plan.draft import Plan
from hubplugin.plan.schemes import Scheme
from hubplugin.plan.variant_plan import VariantPlan
from serve import cpu_features

MANIFESTS = Path(__file__).parent.parent / "manifests"
REAL = ("smollm2-135m-instruct", "qwen3-0.6b", "llama-3.1-8b-instruct")


def planned(steps: Any, config: Any = None, dtype: str = "BF16", **changes: Any) -> Plan:
    """A plan for a pico model (of 256 FFN channels where none is given)."""
    config = config or pico.config(intermediate_size=256)
    return planner.make(document(steps, **changes), config_json(config), headers(config, dtype))


def only(steps: Any, config: Any = None, dtype: str = "BF16") -> VariantPlan:
    (variant,) = planned(steps, config, dtype).variants
    return variant


def refused(steps: Any, config: Any = None, **changes: Any) -> PlanError:
    with pytest.raises(PlanError) as caught:
        planned(steps, config, **changes)
    return caught.value


# tensors, against transformers


@pytest.mark.parametrize("model_type", sorted(name for name in pico.BY_TYPE if FAMILIES[name].widths))
@pytest.mark.parametrize("tied", [True, False])
def test_a_pruned_variants_tensors_are_those_of_transformers_own_class(model_type, tied):
    config = pico.config(model_type, intermediate_size=256, tie_word_embeddings=tied)
    variant = only([PRUNE], config)
    assert variant.config["intermediate_size"] == 192
    built = AutoConfig.for_model(**variant.config)
    assert variant.tensors == headers(built)
    assert ("lm_head.weight" in variant.tensors) is not tied


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen3", {"attention_bias": True}),
        ("gemma2", {"attention_bias": True}),
    ],
)
def test_biases_that_config_json_names_are_kept_and_shrink_with_their_producer(model_type, keys):
    config = pico.config(model_type, intermediate_size=256, **keys)
    variant = only([PRUNE, GPTQ], config)
    dense = headers(AutoConfig.for_model(**variant.config))
    biases = {name: header for name, header in dense.items() if name.endswith(".bias")}
    assert biases and biases == {name: variant.tensors[name] for name in biases}


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_all_other_tensors_of_a_quantized_variant_stay_as_in_the_base(model_type):
    config = pico.config(model_type)
    base, variant = headers(config), only([GPTQ], config)
    replaced = {f"{linear.name}.weight" for linear in variant.linears}
    assert replaced <= set(base)
    assert {name: header for name, header in base.items() if name not in replaced} == {
        name: header for name, header in variant.tensors.items() if name.rsplit(".", 1)[1] not in sizes.PACKED_PARTS
    }


@pytest.mark.parametrize(("bits", "group", "groups"), [(4, 32, 8), (4, 64, 4), (8, 128, 2), (8, -1, 1)])
def test_a_quantized_linear_has_the_four_tensors_of_autogptq(bits, group, groups):
    step = {"method": "gptq", "bits": bits, "group_size": group}
    config = pico.config(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256)
    tensors = only([step], config).tensors
    name, pack = "model.layers.1.mlp.down_proj", 32 // bits
    assert f"{name}.weight" not in tensors
    assert tensors[f"{name}.qweight"] == Header("I32", (256 // pack, 128))
    assert tensors[f"{name}.qzeros"] == Header("I32", (groups, 128 // pack))
    assert tensors[f"{name}.scales"] == Header("F16", (groups, 128))
    assert tensors[f"{name}.g_idx"] == Header("I32", (256,))


def test_dtypes_of_dense_tensors_are_those_of_the_base():
    config = pico.config()
    stored = headers(config)
    stored["model.norm.weight"] = Header("F32", (64,))
    made = planner.make(document([GPTQ]), config_json(config), stored)
    assert made.variants[0].tensors["model.norm.weight"].dtype == "F32"
    assert made.variants[0].tensors["model.embed_tokens.weight"].dtype == "BF16"


def test_a_tied_head_that_is_stored_counts_in_the_base_and_is_not_planned():
    config = pico.config(tie_word_embeddings=True)
    stored = headers(config)
    without = planner.make(document([GPTQ]), config_json(config), stored)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    made = planner.make(document([GPTQ]), config_json(config), stored)
    assert made.bytes == without.bytes + 2 * 288 * 64
    assert made.parameters == without.parameters
    assert made.variants == tuple(replace(one, memory=made.variants[0].memory) for one in without.variants)


def test_gemma_2_is_tied_where_its_config_json_does_not_say():
    config = pico.config("gemma2")
    raw = config_json(config)
    raw.pop("tie_word_embeddings", None)
    made = planner.make(document([GPTQ]), raw, headers(config))
    assert "lm_head.weight" not in made.variants[0].tensors


@pytest.mark.parametrize(("model_type", "head_dim"), [("qwen3", 128), ("gemma2", 256), ("mistral", 32)])
def test_a_head_dim_that_config_json_does_not_name_is_the_familys(model_type, head_dim):
    raw = {key: value for key, value in config_json(pico.config(model_type)).items() if key != "head_dim"}
    config = AutoConfig.for_model(**raw)
    assert architecture.dimensions(raw, FAMILIES[model_type], "").head_dim == head_dim
    planner.make(document([GPTQ]), raw, headers(config))


def test_old_checkpoints_may_hold_rotary_tables_which_no_variant_holds():
    config = pico.config()
    stored = headers(config)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    stored[name] = Header("F32", (16,))
    assert name not in planner.make(document([GPTQ]), config_json(config), stored).variants[0].tensors


def test_a_variants_config_names_no_remote_code():
    config = pico.config()
    raw = config_json(config) | {"auto_map": {"AutoConfig": "configuration_x.X"}}
    made = planner.make(document([GPTQ]), raw, headers(config))
    assert "auto_map" not in made.variants[0].config
    assert made.variants[0].config == config_json(config)


# sizes


def test_bits_per_weight_of_int4_with_groups_of_128_by_hand():
    config = pico.config(hidden_size=256, intermediate_size=512, num_attention_heads=8, num_key_value_heads=8)
    variant = only([{"method": "gptq", "bits": 4, "group_size": 128}], config)
    # q, k, v, o: 256 x 256; gate, up: 512 x 256; down: 256 x 512; g_idx: 32 bits per input
    weights = 4 * 256 * 256 + 3 * 512 * 256
    g_idx = 32 * (4 * 256 + 2 * 256 + 512) / weights
    assert variant.linear_bits_per_weight == pytest.approx(4 + 16 / 128 + 4 / 128 + g_idx, rel=1e-12)
    assert variant.linear_parameters == 2 * weights


def test_bits_per_weight_of_one_square_linear_by_hand():
    def bits(width: int, group: int, layout: str, symmetric: bool = True) -> float:
        scheme = Scheme(width, group, symmetric, 8 if layout == "int-quantized" else None, layout)
        packed = sizes.packed_tensors(4096, 4096, scheme, "BF16")
        return 8 * sum(header.bytes for header in packed.values()) / 4096**2

    shape = 128 / 4096**2
    assert bits(4, 128, "gptq") == pytest.approx(4 + 16 / 128 + 4 / 128 + 32 / 4096, rel=1e-12)
    assert bits(3, 64, "gptq") == pytest.approx(3 + 16 / 64 + 3 / 64 + 32 / 4096, rel=1e-12)
    assert bits(4, 128, "pack-quantized") == pytest.approx(4 + 16 / 128 + shape, rel=1e-12)
    assert bits(3, 32, "pack-quantized", False) == pytest.approx(3 + 16 / 32 + 3 / 32 + shape, rel=1e-12)
    assert bits(8, -1, "pack-quantized") == pytest.approx(8 + 16 / 4096 + shape, rel=1e-12)
    assert bits(8, -1, "int-quantized") == pytest.approx(8 + 16 / 4096, rel=1e-12)


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 16), ("F16", 16), ("F32", 32)])
def test_dense_variants_have_the_bits_of_their_dtype(dtype, bits):
    made = planned([PRUNE], dtype=dtype)
    assert made.linear_bits_per_weight == bits
    assert made.variants[0].linear_bits_per_weight == bits
    assert made.variants[0].model_bits_per_weight == bits


def test_biases_are_no_linear_weights_but_are_parameters_and_bytes():
    plain, biased = (pico.config(attention_bias=bias) for bias in (False, True))
    without, with_bias = only([GPTQ], plain), only([GPTQ], biased)
    outputs = 2 * (64 + 32 + 32 + 64)  # q, k, v, o of two blocks
    assert with_bias.linear_parameters == without.linear_parameters
    assert with_bias.linear_bits_per_weight == without.linear_bits_per_weight
    assert with_bias.parameters == without.parameters + outputs
    assert with_bias.bytes == without.bytes + 2 * outputs


def test_the_base_counts_tied_embeddings_once_and_untied_ones_twice():
    tied, untied = (planned([GPTQ], pico.config(tie_word_embeddings=tie)) for tie in (True, False))
    assert untied.parameters == tied.parameters + 288 * 64
    assert tied.bytes == 2 * tied.parameters
    assert tied.parameters == sum(parameter.numel() for parameter in pico.model().parameters())


def test_pruning_removes_the_same_channels_count_from_every_layer_and_nothing_else():
    made = planned([{"method": "prune", "ffn": 0.5}], pico.config(intermediate_size=512))
    (variant,) = made.variants
    assert variant.widths == {"intermediate_size": (512, 256)}
    assert made.parameters - variant.parameters == 2 * 3 * 256 * 64
    for linear in variant.linears:
        if linear.short in ("gate_proj", "up_proj"):
            assert (linear.before, linear.after) == ((512, 64), (256, 64))
        elif linear.short == "down_proj":
            assert (linear.before, linear.after) == ((64, 512), (64, 256))
        else:
            assert linear.before == linear.after


@pytest.mark.parametrize(
    ("before", "ratio", "group", "kept"),
    [
        (14336, 0.25, 128, 10752),
        (4864, 0.25, 128, 3712),  # 28.5 tiles: the larger on a tie
        (1024, 0.25, -1, 768),
        (1000, 0.25, None, 768),
        (256, 0.25, 64, 192),  # 1.5 tiles of 128 would round to all of them
        (512, 0.1, None, 448),
        (96, 0.25, 32, 64),
        (96, 0.25, 64, 64),
        (96, 0.25, 128, None),
        (512, 0.01, None, None),
        (512, 0.99, None, None),
        (32, 0.5, None, None),
        (640, 0.3, None, 512),
        (3200, 0.34, None, 2176),  # 16.5 tiles, where 1 - 0.34 in floating point gives a hair less
    ],
)
def test_kept_widths_are_whole_tiles_and_whole_groups(before, ratio, group, kept):
    assert sizes.kept_width(before, ratio, group) == kept


# what is refused


NOTHING_PRUNED = "recover trains back what pruning took, and nothing is pruned before it"


@pytest.mark.parametrize(
    ("steps", "where", "what"),
    [
        ([GPTQ, PRUNE], "m.yaml: variants.V[1].method", "prune stands after gptq"),
        ([GPTQ, GPTQ], "m.yaml: variants.V[1].method", "gptq stands twice"),
        ([PRUNE, PRUNE], "m.yaml: variants.V[1].method", "prune stands twice"),
        ([PRUNE, GPTQ, PRUNE], "m.yaml: variants.V[2].method", "prune stands twice"),
        ([RECOVER, PRUNE], "m.yaml: variants.V[0].method", NOTHING_PRUNED),
        ([RECOVER, GPTQ], "m.yaml: variants.V[0].method", NOTHING_PRUNED),
        ([PRUNE, GPTQ, RECOVER], "m.yaml: variants.V[2].method", "recover stands after gptq"),
        ([PRUNE, RECOVER, RECOVER], "m.yaml: variants.V[2].method", "recover stands twice"),
    ],
)
def test_steps_in_an_order_that_cannot_be_are_refused(steps, where, what):
    error = refused(steps)
    assert (error.where, error.what) == (where, what)


def test_text_for_recovery_is_checked_as_calibration_is():
    own = {**RECOVER, "data": {"self": True, "tokens": 9999}}
    error = refused([PRUNE, own, GPTQ])
    assert error.where == "m.yaml: variants.V[1].data.tokens" and "context of 256" in error.what
    own = {**RECOVER, "data": {"self": True, "tokens": 64, "seed": 4}}
    measured = {"perplexity": {"self": True, "tokens": 64, "seed": 4}}
    with pytest.raises(PlanError) as caught:
        config = pico.config()
        planner.make(document([PRUNE, own, GPTQ], evaluate=measured), config_json(config), headers(config))
    assert caught.value.where.endswith("evaluate.perplexity.seed") and caught.value.fix.endswith("such as 5")


def test_a_group_size_that_divides_nothing_names_the_linear_the_number_and_those_that_would_do():
    error = refused([{"method": "gptq", "group_size": 128}], pico.config(hidden_size=192, num_attention_heads=6))
    assert error.where == "m.yaml: variants.V[0].group_size"
    assert error.what == "128 does not divide q_proj's 192 inputs"
    assert error.fix == "use 64, 32, -1"


def test_a_group_size_that_only_the_ffn_resists_is_answered_with_a_width():
    config = pico.config(hidden_size=128, intermediate_size=320, num_attention_heads=4)
    error = refused([{"method": "gptq", "group_size": 128}], config)
    assert error.what == "128 does not divide down_proj's 320 inputs"
    assert error.fix.startswith("use 64, 32, -1, or prune ffn to 256 first (ffn: 0.0")
    ratio = float(error.fix.split("ffn: ")[1].rstrip(")"))
    steps = [{"method": "prune", "ffn": ratio}, {"method": "gptq", "group_size": 128}]
    assert only(steps, config).widths == {"intermediate_size": (320, 256)}


def test_group_sizes_are_checked_after_pruning():
    config = pico.config(hidden_size=128, intermediate_size=320, num_attention_heads=4)
    assert only([PRUNE, {"method": "gptq", "group_size": 128}], config).widths["intermediate_size"][1] == 256


def test_the_second_step_of_a_variant_is_named_by_its_place():
    error = refused([{"method": "prune", "ffn": 0.5}, {"method": "gptq", "group_size": 128}])
    assert error.where == "m.yaml: variants.V[1].group_size"


def test_sizes_that_fill_no_whole_words_are_refused():
    error = refused([{"method": "gptq", "group_size": -1}], pico.config(intermediate_size=100))
    assert error.where == "m.yaml: variants.V[0].bits"
    assert "100 outputs do not fill whole 32-bit words of 8 codes" in error.what


@pytest.mark.parametrize(
    ("ratio", "width", "what", "fix"),
    [
        (0.01, 512, "0.01 of 512 FFN channels rounds to none of them", "a ratio from 0.04 to 0.96"),
        (0.99, 512, "0.99 of 512 FFN channels rounds to all of them", "a ratio from 0.04 to 0.96"),
        (0.5, 32, "no multiple of 32 below 32 FFN channels is left", "quantize alone"),
    ],
)
def test_a_ratio_that_leaves_no_allowed_width_is_refused(ratio, width, what, fix):
    error = refused([{"method": "prune", "ffn": ratio}], pico.config(intermediate_size=width))
    assert error.where == "m.yaml: variants.V[0].ffn"
    assert what in error.what and fix in error.fix


def test_an_unknown_family_is_refused():
    config = pico.config()
    raw = config_json(config) | {"model_type": "rwkv"}
    with pytest.raises(FamilyError, match="rwkv"):
        planner.make(document([GPTQ]), raw, headers(config))


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("quantization_config", {"quant_method": "gptq"}, "already quantized"),
        ("architectures", ["LlamaForSequenceClassification"], "does not generate text"),
        ("hidden_size", None, "None is not a size"),
        ("hidden_size", "64", "'64' is not a size"),
        ("intermediate_size", True, "True is not a size"),
        ("num_hidden_layers", 0, "0 is not a size"),
        ("num_hidden_layers", 10**12, "1000000000000 is not a size"),
        ("vocab_size", -1, "-1 is not a size"),
        ("head_dim", 2.5, "2.5 is not a size"),
        ("num_key_value_heads", 3, "do not share 3 key/value heads"),
    ],
)
def test_a_config_json_no_model_can_have_is_refused_by_key(key, value, what):
    config = pico.config()
    with pytest.raises(PlanError) as caught:
        planner.make(document([GPTQ]), config_json(config) | {key: value}, headers(config))
    assert caught.value.where == f"o/base/config.json: {key}"
    assert what in caught.value.what


def test_a_hidden_size_its_heads_do_not_divide_is_refused_where_transformers_refuses_it():
    raw = config_json(pico.config()) | {"num_attention_heads": 3, "num_key_value_heads": 3}
    with pytest.raises(Exception, match="not a multiple"):
        AutoConfig.for_model(**raw)
    with pytest.raises(PlanError, match="transformers refuses a hidden_size of 64 with 3 heads"):
        planner.make(document([GPTQ]), raw, headers(pico.config()))


def test_the_same_hidden_size_is_planned_where_transformers_accepts_it():
    config = pico.config("mistral", num_attention_heads=3, num_key_value_heads=1)
    assert only([GPTQ], config).linears[0].after == (96, 64)


@pytest.mark.parametrize(
    ("name", "header", "what"),
    [
        ("model.layers.1.mlp.up_proj.weight", None, "do not hold it"),
        ("model.norm.weight", None, "do not hold it"),
        ("model.layers.0.mlp.up_proj.weight", Header("BF16", (64, 128)), "[64, 128] is stored"),
        ("model.layers.0.input_layernorm.weight", Header("BF16", (63,)), "[63] is stored"),
        ("model.embed_tokens.weight", Header("BF16", (288,)), "[288] is stored"),
        ("lm_head.weight", Header("BF16", (289, 64)), "[289, 64] is stored"),
        ("model.layers.0.mlp.up_proj.weight", Header("F8_E4M3", (128, 64)), "stored as F8_E4M3"),
        ("model.layers.0.mlp.up_proj.weight", Header("I32", (128, 64)), "stored as I32"),
        ("model.layers.0.mlp.up_proj.bias", Header("BF16", (128,)), "config.json does not imply it"),
        ("model.layers.2.mlp.up_proj.weight", Header("BF16", (128, 64)), "config.json does not imply it"),
        ("score.weight", Header("BF16", (2, 64)), "config.json does not imply it"),
        ("model.layers.0.mlp.up_proj.qweight", Header("I32", (8, 128)), "config.json does not imply it"),
    ],
)
def test_headers_that_are_not_what_config_json_implies_are_refused_by_name(name, header, what):
    config = pico.config(tie_word_embeddings=True)
    stored = headers(config)
    if header is None:
        del stored[name]
    else:
        stored[name] = header
    with pytest.raises(PlanError) as caught:
        planner.make(document([GPTQ]), config_json(config), stored)
    assert caught.value.where == f"o/base: {name}"
    assert what in caught.value.what


def test_a_model_without_its_head_is_refused():
    config = pico.config(tie_word_embeddings=False)
    stored = headers(config)
    del stored["lm_head.weight"]
    with pytest.raises(PlanError, match=r"lm_head\.weight"):
        planner.make(document([GPTQ]), config_json(config), stored)


def test_an_empty_checkpoint_is_refused_and_says_how_much_is_missing():
    config = pico.config()
    with pytest.raises(PlanError, match=r"and 19 more"):
        planner.make(document([GPTQ]), config_json(config), {})


def test_sequences_longer_than_the_models_context_are_refused():
    error = refused([GPTQ], calibrate={"self": True, "tokens": 512})
    assert error.where == "m.yaml: calibrate.tokens"
    assert error.fix == "use tokens: 256 or fewer"
    evaluate = {"perplexity": {"dataset": "a/b", "tokens": 257}}
    assert refused([GPTQ], evaluate=evaluate).where == "m.yaml: evaluate.perplexity.tokens"


def test_own_samples_do_not_measure_what_they_calibrated():
    same, other = ({"perplexity": {"self": True, "tokens": 64, "seed": seed}} for seed in (0, 1))
    error = refused([GPTQ], evaluate=same)
    assert error.where == "m.yaml: evaluate.perplexity.seed"
    assert error.fix == "use another seed, such as 1"
    assert planned([GPTQ], evaluate=other).variants


@pytest.mark.parametrize(
    ("variants", "publish", "model", "what"),
    [
        (("a", "A"), "me/x-{variant}", "o/base", "A and a would both be me/x-A"),
        (("base",), "o/{variant}", "o/base", "base and the base model would both be o/base"),
        (("v" * 60,), "me/{model}-{variant}", "o/" + "m" * 36, "has 97 characters, the Hub allows 96"),
        (("a--b",), "me/{variant}", "o/base", "no repo name"),
        (("a-",), "me/{variant}", "o/base", "no repo name"),
        (("a.git",), "me/{variant}", "o/base", "no repo name"),
        (("a",), "me/{model}-{variant}", "models/my model", "no repo name"),
        (("a",), "me/{model}-{variant}", "..", "no repo name"),
    ],
)
def test_names_the_hub_would_not_take_are_refused(variants, publish, model, what):
    error = refused({name: [GPTQ] for name in variants}, publish={"repo": publish}, model=model)
    assert error.where == "m.yaml: publish.repo"
    assert what in error.what


def test_a_name_of_96_characters_is_taken():
    made = planned({"v" * 60: [GPTQ]}, publish={"repo": "me/{model}-{variant}"}, model="o/" + "m" * 35)
    assert made.variants


# vLLM


def verdict(variant: VariantPlan) -> dict[str, str]:
    """Why not, by target; empty where it loads."""
    assert [one.target for one in variant.verdicts] == ["cpu", "cuda tp=1", "cuda tp=2", "cuda tp=4"]
    assert all(one.loads == (one.why == "") for one in variant.verdicts)
    return {one.target: one.why for one in variant.verdicts}


WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 512}


@pytest.mark.parametrize("group", [32, 64, -1])
def test_int4_that_divides_everywhere_loads_everywhere(group):
    variant = only([{"method": "gptq", "group_size": group}], pico.config(**WIDE))
    assert set(verdict(variant).values()) == {""}
    assert [one.note for one in variant.verdicts][:2] == [
        f"an x86 CPU with AVX-512; on others {vllm_support.DENSE}",
        "compute capability 7.5 or newer",
    ]


def test_int8_has_no_cpu_kernel():
    why = verdict(only([{"method": "gptq", "bits": 8, "group_size": 64}], pico.config(**WIDE)))
    assert why["cpu"] == f"no CPU kernel for 8-bit weights; {vllm_support.DENSE}"
    assert not why["cuda tp=1"]


def test_dense_variants_have_no_kernel_rules():
    config = pico.config(**WIDE | {"intermediate_size": 712})
    variant = only([{"method": "prune", "ffn": 0.3}], config)
    assert set(verdict(variant).values()) == {""}
    assert not any(one.note for one in variant.verdicts)


def test_a_group_that_straddles_two_gpus_is_named():
    step = {"method": "gptq", "group_size": 128}
    why = verdict(only([step], pico.config(**WIDE)))
    assert not why["cuda tp=1"] and not why["cuda tp=2"]
    assert why["cuda tp=4"] == "o_proj: group_size 128 does not divide 64 inputs per GPU"
    why = verdict(only([step], pico.config(**WIDE | {"hidden_size": 1024, "intermediate_size": 384})))
    assert why["cuda tp=2"] == "down_proj: group_size 128 does not divide 192 inputs per GPU"


def test_heads_and_channels_that_do_not_split_are_named():
    why = verdict(only([GPTQ], pico.config(hidden_size=192, num_attention_heads=6, num_key_value_heads=3)))
    assert why["cuda tp=2"] == "3 key/value heads neither split over nor repeat on 2 GPUs"
    assert why["cuda tp=4"] == "6 attention heads do not split over 4 GPUs"
    narrow = pico.config(**WIDE | {"intermediate_size": 514})
    one = planned({"V": [{"method": "gptq", "group_size": -1, "bits": 8}]}, pico.config(**WIDE)).variants[0]
    assert not verdict(one)["cuda tp=4"]
    assert refused([{"method": "gptq", "group_size": -1, "bits": 8}], narrow).where.endswith(".bits")


def test_key_value_heads_may_repeat_on_more_gpus_than_there_are():
    assert not verdict(only([GPTQ], pico.config(**WIDE | {"num_key_value_heads": 1})))["cuda tp=4"]


@pytest.mark.parametrize(("head_dim", "cpu", "cuda"), [(48, True, True), (40, False, True), (72, False, True)])
def test_head_dims_without_a_kernel_are_named(head_dim, cpu, cuda):
    config = pico.config(hidden_size=64, head_dim=head_dim, num_attention_heads=4, num_key_value_heads=4)
    why = verdict(only([GPTQ], config))
    assert (why["cpu"] == "") is cpu and (why["cuda tp=1"] == "") is cuda
    if not cpu:
        assert why["cpu"] == f"no CPU attention kernel for head_dim {head_dim}"


def test_the_cpu_kernels_tiles_are_counted_over_fused_linears():
    config = pico.config("mistral", head_dim=40, num_attention_heads=4, num_key_value_heads=1)
    block = only([GPTQ], config).linears[:7]
    dims = architecture.dimensions(config_json(config), FAMILIES["mistral"], "")
    why = vllm_support.verdicts("mistral", replace(dims, head_dim=64), block)[0].why
    assert why == "the CPU kernel needs multiples of 32: q_proj+k_proj+v_proj has 240 outputs"
    even = tuple(replace(one, after=(56, 64)) if one.short in ("k_proj", "v_proj") else one for one in block)
    even = tuple(replace(one, after=(144, 64)) if one.short == "q_proj" else one for one in even)
    assert vllm_support.verdicts("mistral", replace(dims, head_dim=64), even)[0].loads  # 144 + 56 + 56 = 256


def test_a_variant_that_loads_nowhere_is_refused():
    config = pico.config("qwen2")
    config.head_dim = 64
    error = refused([GPTQ], config)
    assert error.where == "m.yaml: variants.V"
    assert "head_dim to be hidden_size / num_attention_heads = 32, this model has 64" in error.what


def test_a_variant_that_loads_on_gpus_alone_is_not_refused():
    assert only([{"method": "gptq", "bits": 8, "group_size": 32}])


# memory and time


def test_memory_and_time_grow_with_the_tokens_and_are_never_nothing():
    small, large = (
        planned([GPTQ], calibrate={"self": True, "tokens": 64, "samples": samples}).variants[0] for samples in (1, 4096)
    )
    assert large.peak_memory - small.peak_memory >= 4095 * 64 * 64 * 2  # what enters blocks alone
    assert large.seconds > small.seconds > 0
    assert small.peak_memory > estimates.RUNTIME_BYTES


@pytest.mark.parametrize(
    ("dtype", "flags", "number", "device_number"),
    [
        ("BF16", {cpu_features.FAST_BFLOAT16, cpu_features.AVX512}, 2, 2),
        ("BF16", {cpu_features.AVX512}, 4, 2),  # computed in float32: devices.computing_dtype
        ("F16", {cpu_features.FAST_BFLOAT16, cpu_features.AVX512}, 4, 4),
        ("F32", set(), 4, 4),
    ],
)
def test_memory_and_time_are_those_of_the_numbers_that_this_cpu_computes_with(
    monkeypatch, dtype, flags, number, device_number
):
    monkeypatch.setattr(cpu_features, "has", flags.__contains__)
    variant = planned([GPTQ], dtype=dtype, calibrate={"self": True, "tokens": 64, "samples": 4096}).variants[0]
    stored = getattr(torch, {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype])
    assert computing_dtype(stored).itemsize == number
    monkeypatch.setattr(cpu_features, "has", lambda feature: True)
    fastest = planned([GPTQ], dtype="BF16", calibrate={"self": True, "tokens": 64, "samples": 4096}).variants[0]
    assert variant.memory.disk * 2 == fastest.memory.disk * number
    assert (variant.memory.device > fastest.memory.device) == (device_number == 4)
    assert (variant.seconds > fastest.seconds) == (cpu_features.AMX not in flags)


def test_fast_bfloat16_shortens_what_is_computed_in_it_alone(monkeypatch):
    seconds = {}
    for dtype in ("BF16", "F32"):
        for flags in ({cpu_features.AVX512}, {cpu_features.AVX512, cpu_features.FAST_BFLOAT16}):
            monkeypatch.setattr(cpu_features, "has", flags.__contains__)
            seconds[dtype, len(flags)] = planned([GPTQ], dtype=dtype).variants[0].seconds
    assert seconds["BF16", 2] < seconds["BF16", 1] == seconds["F32", 1] == seconds["F32", 2]


def test_a_training_is_planned_to_end_within_its_minutes():
    def seconds(**settings):
        steps = [{"method": "prune", "ffn": 0.25}, {"method": "recover", "distill": 100, **settings}]
        data = {"self": True, "sequence_length": 64, "samples": 4096}
        return planned(steps, calibrate=data).variants[0].seconds

    short, twice = seconds(minutes=0.1), seconds(minutes=0.2)
    assert twice - short == pytest.approx(6)
    assert short < seconds(minutes=10**6) == seconds()


def test_the_table_says_where_activations_go_to_disk_and_where_even_that_is_too_much():
    made = planned([GPTQ], calibrate={"files": ["a.txt"], "samples": 4096, "tokens": 64})
    need = made.variants[0].memory
    assert "memory is short" not in table.render(made) + table.render(made, need.peak)
    assert "activations go to disk: " in table.render(made, need.peak - 1)
    assert "too much" not in table.render(made, need.peak - 1)
    assert "still too much" in table.render(made, need.spilled - 1)
    assert "(not measured)" in table.render(made)


def test_time_of_quantizing_is_the_sum_of_its_parts_by_hand():
    config = pico.config(hidden_size=64, intermediate_size=256, num_hidden_layers=1)
    dims = architecture.dimensions(config_json(config), FAMILIES["llama"], "")
    shapes = architecture.linear_shapes(FAMILIES["llama"], dims)
    work = estimates.Work(samples=2, tokens=32, quantizes=None, prunes=None)
    weights = sum(outputs * inputs for outputs, inputs in shapes.values())
    flops = 2 * 64 * weights + 4 * 64 * 16 * 64  # one forward pass: linears, then causal attention
    assert estimates.seconds(FAMILIES["llama"], dims, shapes, work) == pytest.approx(flops / work.cpu.flops)


# the manifests that come with the project


def real(name: str) -> Plan:
    raw, config = published(name)
    stored = headers(config)
    if name == "qwen3-0.6b":  # published with its tied head
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"]
    return planner.make(loading.load(MANIFESTS / f"{name}.yaml"), raw, stored, revision="a" * 40)


@pytest.mark.parametrize(
    ("name", "parameters", "stored"),
    [
        ("smollm2-135m-instruct", 134_515_008, 269_030_016),
        ("qwen3-0.6b", 596_049_920, 1_503_264_768),  # its tied head is stored as well
        ("llama-3.1-8b-instruct", 8_030_261_248, 16_060_522_496),
    ],
)
def test_real_manifests_are_planned_from_published_configs_alone(name, parameters, stored):
    made = real(name)
    assert made.parameters == parameters
    assert made.bytes == stored
    for variant in made.variants:
        assert variant.bytes < made.bytes
        assert variant.verdicts[1].loads
        built = AutoConfig.for_model(**variant.config)
        assert variant.parameters == sum(header.count for header in headers(built).values())


def test_the_demo_is_planned_from_the_model_that_comes_along():
    folder = Path(planner.__file__).parents[1] / "demo" / "docs-llama-12m"
    raw = json.loads((folder / "config.json").read_text())
    stored = {name: Header(dtype, tuple(shape)) for name, (dtype, shape) in pico.headers(folder).items()}
    made = planner.make(loading.load(MANIFESTS / "demo.yaml"), raw, stored)
    assert made.parameters == 12_096_384 and made.bytes == 2 * made.parameters
    assert {variant.name: [one.loads for one in variant.verdicts][:2] for variant in made.variants} == {
        "GPTQ-Int4-g64": [True, True],
        "GPTQ-Int4-g128": [True, True],
        "GPTQ-Int8": [False, True],
        "Pruned-25": [True, True],
        "Pruned-25-GPTQ-Int4": [True, True],
    }
    assert made.variants[3].widths == {"intermediate_size": (1024, 768)}


def test_the_real_int4_sizes_are_those_of_published_checkpoints():
    (int4,) = (variant for variant in real("llama-3.1-8b-instruct").variants if variant.name == "GPTQ-Int4")
    assert 5.6e9 < int4.bytes < 5.8e9  # GPTQ-Int4 folders of this model on the Hub are 5.7 GB
    assert int4.linear_bits_per_weight == pytest.approx(4.16, abs=0.01)
    assert [one.loads for one in int4.verdicts] == [True] * 4


def test_every_manifest_says_why_it_exists_and_loads():
    for path in sorted(MANIFESTS.glob("*.yaml")):
        assert path.read_text().startswith("# "), path
        assert loading.load(path).manifest.publish is not None
    assert {path.stem for path in MANIFESTS.glob("*.yaml")} >= {"demo", *REAL}


# what the terminal and --json show


def test_the_table_shows_each_variant_with_its_numbers_and_the_reasons_against_it():
    made = planned({"Int4": [GPTQ], "Int8": [{"method": "gptq", "bits": 8, "group_size": -1}], "Small": [PRUNE, GPTQ]})
    text = table.render(made)
    rows = {line.split()[0]: line for line in text.splitlines() if line and not line.startswith(" ")}
    for variant in made.variants:
        assert f"{variant.linear_bits_per_weight:.2f}" in rows[variant.name]
        assert f"{made.bytes / variant.bytes:.2f}" in rows[variant.name]
    assert "int4 g32" in rows["Int4"] and "int8 row" in rows["Int8"]
    assert "ffn 256>192, int4 g32" in rows["Small"]
    of_base = made.variants[2].linear_bits_per_weight * made.variants[2].linear_parameters
    assert f"{of_base / made.linear_parameters:.2f}" in rows["Small"]
    assert "on cpu, Int8: no CPU kernel for 8-bit weights" in text
    assert "on cuda: compute capability 7.5 or newer" in text
    assert "on cuda tp=4, any variant: 2 attention heads do not split over 4 GPUs" in text
    (down,) = (line for line in text.splitlines() if line.startswith("  down_proj"))
    assert "64 x 256" in down and "> 64 x 192 in Small" in down
    header = next(line for line in text.splitlines() if line.startswith("variant"))
    assert len(header) == max(len(line) for line in (header, *rows.values()) if "yes" in line or line == header)


def test_the_table_of_a_real_plan_fits_a_wide_terminal():
    text = table.render(real("llama-3.1-8b-instruct"))
    assert "8.03 B parameters" in text and "@ aaaaaaaaaaaa" in text
    assert max(map(len, text.splitlines())) <= 150


def test_the_table_says_what_the_base_stores_in_vain():
    assert "(base: 311.2 MB are stored that no variant needs" in table.render(real("qwen3-0.6b"))
    assert "no variant needs" not in table.render(real("smollm2-135m-instruct"))


def test_the_json_holds_everything_and_survives_a_round_trip():
    made = planned({"Int4": [GPTQ], "Small": [PRUNE]})
    read = json.loads(json.dumps(draft.as_json(made)))
    assert read["parameters"] == made.parameters
    int4, small = read["variants"]
    assert int4["steps"][0].items() >= (GPTQ | {"act_order": True, "damp": 0.01, "format": "gptq"}).items()
    assert int4["linears"][0]["scheme"]["group_size"] == 32 and small["linears"][0]["scheme"] is None
    assert int4["compression_ratio"] == made.bytes / made.variants[0].bytes
    assert small["widths"] == {"intermediate_size": [256, 192]}
    assert small["tensors"]["model.norm.weight"] == {"dtype": "BF16", "shape": [64]}
    assert [one["target"] for one in int4["verdicts"]] == ["cpu", "cuda tp=1", "cuda tp=2", "cuda tp=4"]
