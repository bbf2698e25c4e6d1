"""What transformers refuses to build is one error with a place, known before any work."""

from typing import Any

import pico
import pytest
from plan_helpers import config_json, published

from hubplugin.errors import PlanError
from hubplugin.model.architectures import families
from hubplugin.model.construction import buildable

WHERE = "o/m/config.json"
MIXED = ["full_attention", "sliding_attention"]
FACTORS = {"short_factor": [1.0] * 16, "long_factor": [1.5] * 16}


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A config.json; what is changed to `...` is left out."""
    whole = {**config_json(pico.config(model_type)), **changes}
    return {key: value for key, value in whole.items() if value is not ...}


def scaled(**scaling: Any) -> dict[str, Any]:
    """Rotary settings as older releases spelt them."""
    return {"rope_parameters": ..., "rope_scaling": scaling}


def check(given: dict[str, Any]) -> None:
    buildable.check(given, families.match(given, WHERE), WHERE)


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_a_usual_config_passes_tied_or_not(model_type: str) -> None:
    for tied in (True, False):
        check(config(model_type, tie_word_embeddings=tied))


@pytest.mark.parametrize("name", ["llama-3.1-8b-instruct", "qwen3-0.6b", "smollm2-135m-instruct"])
def test_published_configs_pass(name: str) -> None:
    check(published(name)[0])


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", scaled(type="linear", factor=2.0)),
        ("llama", scaled(rope_type="dynamic", factor=2.0)),
        ("qwen2", scaled(type="yarn", factor=4.0, original_max_position_embeddings=64)),
        ("phi3", scaled(type="longrope", **FACTORS)),
        ("phi3", {**scaled(type="su", original_max_position_embeddings=64, **FACTORS)}),
        ("llama", {"rope_parameters": ..., "rope_theta": 20000}),
        ("phi3", {"rope_parameters": ..., "partial_rotary_factor": 0.5}),
        ("phi3", {"pad_token_id": ...}),  # the class has one beyond this vocabulary
        ("mixtral", {"num_experts": 4, "num_local_experts": ...}),
        ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
        ("llama", {"hidden_act": "gelu"}),
        ("mistral", {"layer_types": ["sliding_attention", "sliding_attention"]}),
        ("qwen3", {"layer_types": MIXED, "sliding_window": 8, "use_sliding_window": True}),
        ("llama", {"attn_implementation": "flash_attention_2", "return_dict": False, "pad_token_id": 288}),
    ],
)
def test_odd_but_legal_configs_pass(model_type: str, changes: dict[str, Any]) -> None:
    check(config(model_type, **changes))


@pytest.mark.parametrize(
    ("model_type", "changes", "what"),
    [
        ("phi3", scaled(type="su", **FACTORS), "original_max_position_embeddings"),
        ("phi3", scaled(type="su", short_factor=[1.0], long_factor=[1.0]), "rope_parameters"),
        ("phi3", scaled(type="linear", factor=2.0), "got linear"),
        ("llama", scaled(type="su", **FACTORS), "KeyError: su"),
        ("llama", scaled(type="wonder", factor=2.0), "wonder"),
        ("llama", scaled(type="linear"), "factor"),
        ("llama", {"rope_parameters": ..., "rope_scaling": "linear"}, "linear"),
        ("llama", {"hidden_act": "wonder"}, "KeyError: wonder"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ("llama", {"pad_token_id": "x"}, "pad_token_id"),
        ("llama", {"id2label": {"x": "y"}}, "invalid literal"),
        ("llama", {"is_heterogeneous": True}, "no setter"),
        ("llama", {"to_dict": 1}, "not callable"),
        ("llama", {"text_config": {"hidden_size": 3}}, "to_dict"),
        ("phi3", {"head_dim": None}, "NoneType"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": ["wonder", "wonder"]}, "layer_types"),
        ("qwen3", {"layer_types": MIXED, "sliding_window": 8}, "NoneType"),  # use_sliding_window is false
        ("mistral", {"sliding_window": "x"}, "sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "0"),
    ],
)
def test_what_transformers_refuses_is_one_error(model_type: str, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(PlanError) as caught:
        check(config(model_type, **changes))
    assert caught.value.where == WHERE
    assert caught.value.what.startswith("transformers refuses this model: ") and what in caught.value.what
    assert "\n" not in caught.value.what and caught.value.fix


@pytest.mark.parametrize(
    ("model_type", "changes", "place"),
    [
        ("llama", {"rope_parameters": ..., "rope_theta": 0}, "its rotary embedding"),
        ("llama", scaled(type="linear", factor=0.0), "its rotary embedding"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
        ("phi3", {"sliding_window": -4}, "sliding_window"),
        ("mistral", {"layer_types": MIXED}, "layer_types"),
        ("llama", {"layer_types": MIXED, "sliding_window": 8}, "layer_types"),
    ],
)
def test_what_transformers_builds_and_computes_wrongly_is_named(model_type, changes, place: str) -> None:
    with pytest.raises(PlanError) as caught:
        check(config(model_type, **changes))
    assert caught.value.where == f"{WHERE}: {place}"


@pytest.mark.parametrize(("model_type", "name"), [("mixtral", "block_sparse_moe"), ("qwen3_moe", "mlp")])
def test_tensors_that_the_row_does_not_know_are_named_as_checkpoints_name_them(model_type: str, name: str) -> None:
    given = config(model_type)
    fewer = families.match({**given, "num_experts": 3, "num_local_experts": 3}, WHERE)
    with pytest.raises(PlanError) as caught:
        buildable.check(given, fewer, WHERE)
    assert caught.value.where.startswith(f"{WHERE}: model.layers.0.{name}.experts.3.")
    assert "this family has none" in caught.value.what
