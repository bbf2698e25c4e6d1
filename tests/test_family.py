"""The table of families against transformers' own classes."""

from pathlib import Path

import pico
import pytest
import torch
from gate_helpers import candidate
from pico import config as pico_config
from test_pipeline_parts import make, planned
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from hubplugin.errors import FamilyError
from hubplugin.evaluation import gate
from hubplugin.evaluation.generation import generate_dequantized
from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.model.architectures import families


@pytest.fixture(params=sorted(pico.BY_TYPE))
def model(request):
    """A pico model of each family, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(pico_config(request.param))


def test_the_row_names_every_linear_of_a_block_and_nothing_else(model):
    row = families.FAMILIES[model.config.model_type]
    block = model.get_submodule(row.block.format(i=1))
    found = {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    assert found == set(row.linears())
    assert len(row.linears()) == len(found)


def test_the_row_names_embedding_norm_and_head(model):
    row = families.FAMILIES[model.config.model_type]
    assert model.get_submodule(row.embed) is model.get_input_embeddings()
    assert model.get_submodule(row.head) is model.get_output_embeddings()
    assert model.get_submodule(row.norm).weight.shape == (model.config.hidden_size,)


def test_linears_of_one_tap_read_the_same_tensor_and_taps_stand_in_running_order(model):
    row = families.FAMILIES[model.config.model_type]
    model = type(model)(model.config).eval()
    block = model.get_submodule(row.block.format(i=0))
    seen: list[tuple[str, int]] = []
    for name in row.linears():
        block.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: seen.append((name, id(inputs[0])))
        )
    held = []  # keeps inputs alive: the id of a freed tensor may be used again
    block.register_forward_pre_hook(lambda module, inputs: held.append(inputs))
    for name in row.linears():
        block.get_submodule(name).register_forward_pre_hook(lambda module, inputs: held.append(inputs))
    with torch.no_grad():
        model(torch.arange(8)[None])
    inputs = dict(seen)
    order = list(dict.fromkeys(row.input_group_of(name).name for name, _ in seen))
    assert order == [input_group.name for input_group in row.input_groups]
    for input_group in row.input_groups:
        assert len({inputs[name] for name in input_group.linears}) == 1
    assert len(set(inputs.values())) == len(row.input_groups)


def test_dropping_a_channel_from_consumer_and_producers_is_dropping_it_from_the_model(model):
    """Zeroing a channel of the consumer, and cutting it out of all coupled linears, give the same block output."""
    row = families.FAMILIES[model.config.model_type]
    if row.experts:
        pytest.skip("experts have no width that all tokens pass")
    width = row.width("ffn")
    torch.manual_seed(0)
    model = type(model)(model.config).eval()
    block = model.get_submodule(row.block.format(i=0))
    consumer = block.get_submodule(width.consumer)
    channels = consumer.in_features
    assert channels == model.config.intermediate_size
    keep = torch.arange(channels) != 5
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        consumer.weight[:, 5] = 0
        zeroed = model(tokens).logits
        consumer.weight = nn.Parameter(consumer.weight[:, keep])
        for one in width.producers:
            producer, parts = block.get_submodule(one.name), len(one.rows)
            assert producer.out_features == parts * channels
            producer.weight = nn.Parameter(producer.weight[keep.repeat(parts)])
            if producer.bias is not None:
                producer.bias = nn.Parameter(producer.bias[keep.repeat(parts)])
        cut = model(tokens).logits
    torch.testing.assert_close(cut, zeroed)


def test_an_unknown_architecture_is_refused_with_those_we_know():
    with pytest.raises(FamilyError) as caught:
        families.match({"model_type": "mamba"}, "o/m/config.json")
    assert caught.value.where == "o/m/config.json: model_type"
    assert "'mamba'" in caught.value.what and "llama" in caught.value.fix


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["llama"]}, {"model_type": 3}])
def test_a_config_without_a_usable_model_type_is_refused(config):
    with pytest.raises(FamilyError):
        families.match(config, "config.json")


GPTQ = {"method": "gptq", "bits": 4, "group_size": 32}
LAYERED_WINDOW = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
# what config.json may ask of a family beyond its usual form, and what the same weights are without it
ASKED = [
    ("phi3", {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0}),
    ("phi3", {"sliding_window": 24}, {"sliding_window": None}),
    ("mistral", {"sliding_window": 24}, {"sliding_window": None}),
    ("mixtral", {"sliding_window": 24}, {"sliding_window": None}),
    ("qwen2", LAYERED_WINDOW, {}),
    ("qwen3", LAYERED_WINDOW, {}),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 24}, {}),
    ("gemma2", {"sliding_window": 24}, {"sliding_window": 64}),
    ("llama", {"attention_bias": True, "mlp_bias": True}, None),
    ("qwen3", {"attention_bias": True}, None),
    ("qwen3_moe", {"attention_bias": True, "norm_topk_prob": False}, None),
]
TIES = [(name, {"tie_word_embeddings": tied}, None) for name in sorted(pico.BY_TYPE) for tied in (True, False)]


def logits_of(folder: Path, ids: torch.Tensor, config=None) -> torch.Tensor:
    """What transformers' own class makes of a folder, with another config where one is given."""
    config = config or AutoConfig.from_pretrained(folder)
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    whole = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation=attention
    )
    with torch.no_grad():
        return whole(ids.long()).logits


@pytest.mark.parametrize(("model_type", "asked", "without"), [*ASKED, *TIES])
def test_what_a_config_asks_for_is_computed_quantized_and_read_back(model_type, asked, without, tmp_path: Path):
    base, ids = pico.write(tmp_path / "m", model_type, **asked), pico.tokens(2, 64)
    expected = logits_of(base, ids)
    variant, row, _ = planned(base, GPTQ)
    model = open_model(base, row)
    torch.testing.assert_close(model.logits(model.hidden_states(ids)), expected, atol=1e-4, rtol=1e-4)
    if without is not None:  # the same weights without it give something else: the test would notice
        other = logits_of(base, ids, pico.config(model_type, **without))
        assert float((other - expected).abs().max()) > 1e-2
    blocks = make(base, tmp_path / "v", GPTQ, tokens=pico.tokens(4, 64))
    samples = {name: rows for block in blocks for name, rows in block.samples.items()}
    for line in (
        gate.as_planned(candidate(tmp_path / "v", variant)),
        gate.as_compressed(candidate(tmp_path / "v", samples=samples)),
        gate.ties(candidate(tmp_path / "v", variant)),
        gate.generation(
            candidate(
                tmp_path / "v", variant, generate=lambda *a: generate_dequantized(*a[:3]), prompts=[ids[0].tolist()]
            )
        ),
    ):
        assert line.passed, line.detail
