"""Keys of config.json that only concern loading, or that it leaves out: what is built, and what variants say."""

import copy
import io
import json
import logging
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from plan_helpers import GPTQ, config_json, document, headers
from safetensors.torch import load_file, save_file
from test_pipeline_parts import planned
from transformers import AutoConfig, AutoModelForCausalLM

from hubplugin.compress.calibration.self_sampling import sample_self
from hubplugin.errors import CalibrationError, PlanError
from hubplugin.evaluation.gate import templates
from hubplugin.evaluation.generation import generate_dequantized, served_dtype
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model.architectures import configs, families
from hubplugin.model.construction import heterogeneous
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.plan import planner

WEIGHTS = "model.safetensors"
V = pico.VOCABULARY
# none of these says anything of the model, and transformers stumbles over each of them somewhere
LOADING: list[dict[str, Any]] = [
    {"pad_token_id": V},
    {"pad_token_id": V + 40},
    {"pad_token_id": -V - 1},
    {"pad_token_id": -1, "bos_token_id": -1, "eos_token_id": -1},
    {"bos_token_id": V + 1},
    {"attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "flash_attention_3", "_attn_implementation_autoset": True},
    {"attn_implementation": "wonder", "output_attentions": True},
    {"experts_implementation": "wonder"},
    {"return_dict": False},
    {"use_return_dict": False},
    {"output_hidden_states": True, "output_attentions": True, "torchscript": True, "use_cache": False},
    {"torch_dtype": "bf16", "dtype": None},
    {"dtype": "torch.bfloat16"},
    {"is_encoder_decoder": True, "decoder_start_token_id": None},
    {"quantization_config": None, "pre_quantization_dtype": "bfloat16"},
    {"sliding_window": 8, "final_logit_softcapping": 1.0},  # of other classes
]


def edited(folder: Path, changes: dict[str, Any], left_out: tuple[str, ...] = ()) -> Path:
    """A pico Llama whose config.json was changed by hand."""
    pico.write(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in left_out}))
    return folder


def test_a_folder_whose_layers_differ_has_its_tokenizer_without_a_warning(pico_folder: Path, tmp_path: Path) -> None:
    folder, said = edited(tmp_path / "m", {"model_type": families.PER_LAYER}), io.StringIO()
    listener = logging.StreamHandler(said)
    logging.getLogger("transformers").addHandler(listener)
    try:
        assert read_tokenizer(folder).get_vocab() == read_tokenizer(pico_folder).get_vocab()
    finally:
        logging.getLogger("transformers").removeHandler(listener)
    assert not said.getvalue()


@pytest.mark.parametrize("changes", LOADING, ids=lambda changes: ",".join(changes))
def test_keys_that_only_concern_loading_change_nothing(changes, pico_folder: Path, tmp_path: Path) -> None:
    folder, ids, row = edited(tmp_path / "m", changes), pico.tokens(2, 40), families.FAMILIES["llama"]
    logits = [
        model.logits(model.hidden_states(ids)) for model in (open_model(folder, row), open_model(pico_folder, row))
    ]
    assert torch.equal(*logits)
    assert torch.equal(sample_self(folder, 2, 20, 0), sample_self(pico_folder, 2, 20, 0))
    assert generate_dequantized(folder, [[1, 2, 3]], 4) == generate_dequantized(pico_folder, [[1, 2, 3]], 4)
    assert read_tokenizer(folder).get_vocab() == read_tokenizer(pico_folder).get_vocab()
    assert templates.rendered(folder) == templates.rendered(pico_folder)


@pytest.mark.parametrize("changes", LOADING, ids=lambda changes: ",".join(changes))
def test_a_variants_config_is_one_that_transformers_loads(changes, tmp_path: Path) -> None:
    folder = edited(tmp_path / "m", changes)
    variant, _, _ = planned(folder, GPTQ)
    (folder / "config.json").write_text(json.dumps(variant.config))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert loaded(pico.tokens(1, 12).long()).logits.shape == (1, 12, V)
    assert loaded.dtype == torch.bfloat16


def test_a_variants_config_says_what_the_bases_says_but_for_what_keeps_loaders_from_loading(tmp_path: Path) -> None:
    said = {"use_cache": False, "_name_or_path": "x", "anything": {"a": [1]}, "pad_token_id": -1, "dtype": "half"}
    left = {"attn_implementation": "eager", "return_dict": False, "output_attentions": True}
    folder = edited(tmp_path / "m", said | left)
    variant, _, config = planned(folder, GPTQ)
    assert variant.config == {key: value for key, value in config.items() if key not in left}


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
@pytest.mark.parametrize("value", ["left out", None, []])
def test_a_config_without_architectures_gets_the_familys(model_type: str, value: Any) -> None:
    full = pico.config(model_type)
    config = config_json(full)
    native = config.pop("architectures")
    if value != "left out":
        config["architectures"] = value
    plan = planner.make(document([GPTQ]), config, headers(full))
    assert plan.config["architectures"] == native == plan.variants[0].config["architectures"]
    assert "architectures" not in config or config["architectures"] == value, "what was given is not changed"


@pytest.mark.parametrize("value", ["LlamaForCausalLM", 3, [3], {"a": 1}])
def test_architectures_that_are_no_list_of_names_are_refused(value: Any) -> None:
    full = pico.config()
    with pytest.raises(PlanError) as caught:
        planner.make(document([GPTQ]), config_json(full) | {"architectures": value}, headers(full))
    assert caught.value.where == "o/base/config.json: architectures" and repr(value) in caught.value.what


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "per_layer_config"])
def test_bases_that_are_quantized_or_differ_by_layer_are_refused_by_their_key(key: str) -> None:
    full = pico.config()
    with pytest.raises(PlanError) as caught:
        planner.make(document([GPTQ]), config_json(full) | {key: {"1": {"bits": 4}}}, headers(full))
    assert caught.value.where == f"o/base/config.json: {key}"


@pytest.mark.parametrize(("stored", "word"), [("BF16", "bfloat16"), ("F16", "float16"), ("F32", "float32")])
@pytest.mark.parametrize("said", [{"torch_dtype": "bf16"}, {"dtype": "auto"}, {"dtype": {"a": 1}}])
def test_a_dtype_that_is_none_becomes_that_of_the_weights(stored: str, word: str, said: dict[str, Any]) -> None:
    full = pico.config()
    config = {key: value for key, value in config_json(full).items() if key != "dtype"} | said
    plan = planner.make(document([GPTQ]), config, headers(full, stored))
    assert plan.config["torch_dtype"] == word and "dtype" not in plan.config


@pytest.mark.parametrize(
    ("stored", "served"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float16")]
)
def test_a_dtype_that_is_left_out_is_served_as_the_weights_are_stored(stored: str, served: str, tmp_path: Path) -> None:
    folder = edited(tmp_path / "m", {}, ("dtype", "torch_dtype"))
    tensors = {name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert served_dtype(folder) == (torch.bfloat16 if stored == "bfloat16" else torch.float16)
    variant, _, _ = planned(folder, GPTQ)
    assert not {"dtype", "torch_dtype"} & set(variant.config), "loaders find it in the weights, as of the base"


@pytest.mark.parametrize("model_type", sorted(pico.BY_TYPE))
def test_sizes_that_are_left_out_are_those_of_transformers_class(model_type: str) -> None:
    usual = AutoConfig.for_model(model_type)
    own = type(usual)
    said = {name: getattr(own, name) for name in ("max_position_embeddings", "num_key_value_heads", "pad_token_id")}
    needed = {name: value for name, value in said.items() if value and (name != "pad_token_id" or value >= V)}
    assert configs.DEFAULTS[model_type] == needed


@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "qwen3_moe"])
def test_key_value_heads_that_are_left_out_are_counted_as_transformers_counts_them(model_type: str) -> None:
    heads = configs.DEFAULTS[model_type]["num_key_value_heads"]
    full = pico.config(model_type, num_attention_heads=2 * heads, num_key_value_heads=heads, hidden_size=64 * heads)
    config = {key: value for key, value in config_json(full).items() if key != "num_key_value_heads"}
    plan = planner.make(document([GPTQ]), config, headers(full))
    assert plan.config["num_key_value_heads"] == heads


def test_a_context_that_is_left_out_is_held_against_samples_in_the_plan() -> None:
    full = pico.config(max_position_embeddings=2048)
    config = {key: value for key, value in config_json(full).items() if key != "max_position_embeddings"}
    with pytest.raises(PlanError, match="context of 2048"):
        planner.make(document([GPTQ], calibrate={"self": True, "tokens": 2049}), config, headers(full))


def test_nested_keys_stay_as_they_were_given() -> None:
    config = config_json(pico.config())
    config.pop("rope_parameters")
    config |= {"rope_theta": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    before = copy.deepcopy(config)
    assert heterogeneous.transformers_config(config).rope_parameters["rope_theta"] == 5000.0
    assert config == before


def test_a_tokenizer_whose_bos_is_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "m", vocab_size=260)
    tokenizer = pico.tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(CalibrationError) as caught:
        sample_self(folder, 2, 8, 0)
    assert "260" in caught.value.what and "BOS" in caught.value.where


def test_rows_start_with_ordinary_tokens_that_the_embedding_has(tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "m", vocab_size=100, eos_token_id=None, pad_token_id=None)
    starts = sample_self(folder, 60, 2, 0)[:, 0]
    assert int(starts.max()) < 100 and len(set(starts.tolist())) > 20
