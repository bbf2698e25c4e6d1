"""Blocks that share weights: what leaves a model as it is, and a solution by hand."""

import sys
from pathlib import Path

import pico
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import tied_layers


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tied_layers.Base:
    with torch.inference_mode():
        folder = pico.write(tmp_path_factory.mktemp("base"))
        return tied_layers.Base(folder, pico.tokens(seed=1).long(), pico.tokens(seed=2).long())


@torch.inference_mode()
def test_a_model_whose_weights_are_its_own_is_the_base(base: tied_layers.Base) -> None:
    assert torch.allclose(base.logits, base.model(base.held_out).logits, atol=1e-5)
    assert base.measured({0: base.own[0], 1: base.own[1]}) == pytest.approx((1, 0), abs=1e-6)
    assert base.measured({0: base.own[1], 1: base.own[1]})[1] > 1e-3
    assert base.measured({0: base.own[0]}) == pytest.approx((1, 0), abs=1e-6)  # nothing is left behind
    assert base.measured({}, [1])[1] > 1e-3


@torch.inference_mode()
def test_channels_in_another_order_are_the_same_block_and_are_found(base: tied_layers.Base) -> None:
    order = torch.randperm(len(base.own[0]["mlp.gate_proj"]))
    other = tied_layers.permuted(base.own[0], order)
    assert base.measured({0: other}) == pytest.approx((1, 0), abs=1e-5)
    back = tied_layers.permuted(other, tied_layers.aligned(base.own[0], other))
    assert all(torch.equal(back[name], base.own[0][name]) for name in back)


def test_the_fit_of_two_weights_is_their_mean_by_second_moments() -> None:
    """With one input: (3 * 8 + 1 * 24) / 32 = 1.5, drawn towards their mean of 2 by a hundredth of the moment."""
    one, other = {"w": torch.tensor([[3.0]])}, {"w": torch.tensor([[1.0]])}
    found = tied_layers.fitted(one, other, {"w": torch.tensor([[8.0]])}, {"w": torch.tensor([[24.0]])})
    assert float(found["w"]) == pytest.approx(2 + (8 - 24) / (32 * 1.01))
    assert torch.equal(tied_layers.mean(one, other)["w"], torch.tensor([[2.0]]))
