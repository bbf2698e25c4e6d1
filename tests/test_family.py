"""The table of families against transformers' own classes."""

import pytest
import torch
from pico import config as pico_config
from torch import nn
from transformers import AutoModelForCausalLM

from hubplugin import family
from hubplugin.errors import FamilyError


@pytest.fixture(params=sorted(family.FAMILIES))
def model(request):
    """A pico model of each family, on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(pico_config(request.param))


def test_the_row_names_every_linear_of_a_block_and_nothing_else(model):
    row = family.FAMILIES[model.config.model_type]
    block = model.get_submodule(row.block.format(i=1))
    found = {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    assert found == set(row.linears())
    assert len(row.linears()) == len(found)


def test_the_row_names_embedding_norm_and_head(model):
    row = family.FAMILIES[model.config.model_type]
    assert model.get_submodule(row.embed) is model.get_input_embeddings()
    assert model.get_submodule(row.head) is model.get_output_embeddings()
    assert model.get_submodule(row.norm).weight.shape == (model.config.hidden_size,)


def test_linears_of_one_tap_read_the_same_tensor_and_taps_stand_in_running_order(model):
    row = family.FAMILIES[model.config.model_type]
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
    order = list(dict.fromkeys(row.tap_of(name).name for name, _ in seen))
    assert order == [tap.name for tap in row.taps]
    for tap in row.taps:
        assert len({inputs[name] for name in tap.linears}) == 1
    assert len(set(inputs.values())) == len(row.taps)


def test_dropping_a_channel_from_consumer_and_producers_is_dropping_it_from_the_model(model):
    """Zeroing a channel of the consumer, and cutting it out of all coupled linears, give the same block output."""
    row = family.FAMILIES[model.config.model_type]
    width = row.width("ffn")
    torch.manual_seed(0)
    model = type(model)(model.config).eval()
    block = model.get_submodule(row.block.format(i=0))
    consumer = block.get_submodule(width.consumer)
    channels = consumer.in_features
    assert channels == getattr(model.config, width.config)
    keep = torch.arange(channels) != 5
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        consumer.weight[:, 5] = 0
        zeroed = model(tokens).logits
        consumer.weight = nn.Parameter(consumer.weight[:, keep])
        for name in width.producers:
            producer = block.get_submodule(name)
            assert producer.out_features == width.parts * channels
            producer.weight = nn.Parameter(producer.weight[keep.repeat(width.parts)])
            if producer.bias is not None:
                producer.bias = nn.Parameter(producer.bias[keep.repeat(width.parts)])
        cut = model(tokens).logits
    torch.testing.assert_close(cut, zeroed)


def test_an_unknown_architecture_is_refused_with_those_we_know():
    with pytest.raises(FamilyError) as caught:
        family.match({"model_type": "mamba"}, "o/m/config.json")
    assert caught.value.where == "o/m/config.json: model_type"
    assert "'mamba'" in caught.value.what and "llama" in caught.value.fix


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": ["llama"]}, {"model_type": 3}])
def test_a_config_without_a_usable_model_type_is_refused(config):
    with pytest.raises(FamilyError):
        family.match(config, "config.json")
