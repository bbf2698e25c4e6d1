"""What tokens count in the statistics of output projections: the less, the larger their residual stream is."""

from dataclasses import replace
from pathlib import Path

import pico
import pytest
import torch

from hubplugin.evaluation.quality_metrics import open_model
from hubplugin.methods import qep
from hubplugin.model import token_scales
from hubplugin.model.activations import Batch, BlockActivations, copied
from hubplugin.model.architectures import families
from hubplugin.model.architectures.families import InputGroup
from hubplugin.model.block_runner import Model
from hubplugin.model.layer_inputs import BlockStatistics, second_moments
from hubplugin.model.token_scales import TokenScales

LARGE = 1000.0  # how much larger the stream of each sequence's first token is


@pytest.fixture
def model(pico_folder: Path) -> Model:
    made = open_model(pico_folder, families.FAMILIES["llama"])
    made.block(0)
    return made


@pytest.fixture
@torch.inference_mode()
def batches(model: Model) -> list[Batch]:
    """Sequences that begin with a token as large as those that attention sinks make."""
    made = model.embed(pico.tokens(16, 32))
    for batch in made:
        hidden = batch.hidden.clone()
        hidden[:, 0] *= LARGE / hidden[:, 0].square().mean().sqrt()
        batch.put("hidden", hidden)
    return made


def group(model: Model, linear: str) -> InputGroup:
    return model.family.input_group_of(linear)


def inputs_and_output(model: Model, batches: list[Batch], linear: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into a linear of block 0, and the stream behind it, by transformers' own modules."""
    block, seen = model.loaded(0), {}
    hooks = [
        block.get_submodule("self_attn.o_proj").register_forward_hook(lambda _, x, y: seen.update(attention=(x[0], y))),
        block.get_submodule("mlp.down_proj").register_forward_hook(lambda _, x, y: seen.update(mlp=(x[0], y))),
    ]
    (batch,) = batches
    hidden = batch.hidden
    block(hidden, **batch.keywords[0])
    for hook in hooks:
        hook.remove()
    middle = hidden + seen["attention"][1]
    x, behind = (seen["attention"][0], middle) if "o_proj" in linear else (seen["mlp"][0], middle + seen["mlp"][1])
    return x.detach(), behind.detach()


@pytest.mark.parametrize("linear", ["self_attn.o_proj", "mlp.down_proj"])
def test_a_token_counts_as_the_inverse_of_the_stream_behind_the_projection(model, batches, linear) -> None:
    x, behind = inputs_and_output(model, batches, linear)
    (inputs,) = model.capture_inputs(0, batches, group(model, linear))
    scale = TokenScales(model.family, model.loaded(0), group(model, linear)).of(batches[0], inputs)
    exact = 1 / behind.square().mean(dim=-1, keepdim=True).sqrt()
    assert scale is not None and scale.shape == (*x.shape[:2], 1)
    assert torch.equal(scale.log2(), scale.log2().round()), "powers of two: no input is rounded"
    assert float((scale / exact).log2().abs().max()) <= 0.5 + 1e-4
    assert float(scale[:, 0].max()) < 2 / LARGE < float(scale[:, 1:].min())
    rows = (x * scale).reshape(-1, x.shape[-1])
    moments = second_moments(model, 0, batches, group(model, linear))
    assert torch.allclose(moments, rows.T @ rows, rtol=1e-3, atol=1e-4 * float(moments.max()))


@pytest.mark.parametrize("linear", ["self_attn.o_proj", "mlp.down_proj"])
def test_random_sums_tell_the_size_of_a_wide_stream(model, batches, linear, monkeypatch) -> None:
    (inputs,) = model.capture_inputs(0, batches, group(model, linear))
    projection = model.loaded(0).get_submodule(linear)
    projection.bias = torch.nn.Parameter(torch.linspace(-1, 1, len(projection.weight)), requires_grad=False)
    found = []
    for wide in (2 * len(projection.weight), 1):  # of the whole projection, and of sums
        monkeypatch.setattr(token_scales, "WIDE", wide)
        found.append(TokenScales(model.family, model.loaded(0), group(model, linear)).of(batches[0], inputs))
    doublings = (found[1] / found[0]).log2()
    assert float(doublings.abs().max()) <= 1 and float((doublings != 0).double().mean()) < 0.2
    assert float(doublings.mean().abs()) < 0.1, "none of both is larger"
    assert torch.equal(found[1].log2(), found[1].log2().round())


def test_random_sums_of_one_dimension_are_its_size() -> None:
    stream = torch.zeros(2, 3, 300)
    stream[..., 7] = 40.0
    sums = stream @ token_scales._signs(300).T
    assert torch.equal(token_scales.inverse_size(sums * 300**-0.5), token_scales.inverse_size(stream))
    assert torch.equal(token_scales._signs(300).abs(), torch.ones(token_scales.SIGNS, 300))
    assert abs(float(token_scales._signs(300).mean())) < 0.05


def test_the_inputs_of_other_linears_count_as_they_are(model, batches) -> None:
    for linear in ("self_attn.q_proj", "mlp.gate_proj"):
        (inputs,) = model.capture_inputs(0, batches, group(model, linear))
        assert TokenScales(model.family, model.loaded(0), group(model, linear)).of(batches[0], inputs) is None


def test_where_a_norm_stands_between_projection_and_stream_tokens_count_alike(model, batches) -> None:
    normed, down = replace(model.family, residual=False), group(model, "mlp.down_proj")
    (inputs,) = model.capture_inputs(0, batches, down)
    assert TokenScales(normed, model.loaded(0), down).of(batches[0], inputs) is None


def test_a_large_token_does_not_decide_what_a_projection_makes_up_for(model, batches) -> None:
    """The stream of the first tokens lost much, that of the others something else: the others' loss is what counts."""
    down, weight = group(model, "mlp.down_proj"), model.loaded(0).get_submodule("mlp.down_proj").weight.detach()
    base, generator = copied(batches), torch.Generator().manual_seed(0)
    lost = torch.randn(batches[0].hidden.shape, generator=generator)
    lost[:, 0] *= LARGE
    with torch.inference_mode():
        base[0].put("hidden", base[0].hidden + lost)
    found = BlockStatistics(model, 0, BlockActivations(batches, base), model.copy_block(0), "mlp.down_proj")
    fit, check = found.with_corrections(down, weight).corrections
    (x,), (other,) = (list(model.capture_inputs(0, lane, down)) for lane in (batches, base))
    (scale,) = (TokenScales(model.family, model.loaded(0), down).of(base[0], other),)
    stream = [
        lane[0].hidden + torch.as_tensor(lane[0].get(model.family.sublayers[0].output_key)) for lane in (batches, base)
    ]
    missing = ((other - x) @ weight.T + stream[1] - stream[0]) * scale
    expected = missing.flatten(0, 1).T @ (x * scale).flatten(0, 1)
    owed = fit.cross_term(fit.sum()) + check.cross_term(check.sum())
    assert torch.allclose(owed, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))
    first = missing[:, 0].T @ (x * scale)[:, 0]
    assert float(first.norm()) < 0.5 * float(expected.norm()), "one token in 32"


def test_means_are_of_tokens_as_much_as_they_count() -> None:
    generator = torch.Generator().manual_seed(3)
    x, base, lost = (torch.randn(6, size, generator=generator).double() for size in (3, 3, 2))
    scale = torch.tensor([[0.5], [2.0], [1.0], [1.0], [4.0], [0.25]]).double()
    weight = torch.randn(2, 3, generator=generator).double()
    correction = qep.TargetCorrection(weight, True, means=True)
    correction.add(x * scale, base * scale, lost * scale, scale)
    mean = correction.on_average(weight, None) / correction.mass
    assert torch.allclose(mean, (((base - x) @ weight.T + lost) * scale).sum(0) / scale.sum())
