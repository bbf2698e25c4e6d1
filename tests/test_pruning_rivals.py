"""The references that pruning is measured against: what each must do on pico models, and how much each keeps."""

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pico
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from pruning_rivals import RIVALS, choose, depth, flap, llm_pruner, magnitude, parts, slicegpt, wanda_sp
from pruning_rivals.calibration import Calibration, next_token_loss
from pruning_rivals.parts import Shape

IDS = pico.tokens(4, 24)
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48,
}  # fmt: skip


def llama(**changes: Any) -> Any:
    """Four layers, two KV groups of two query heads each, 48 FFN channels."""
    return pico.model("llama", dtype=torch.float32, **{**SHAPE, **changes}).requires_grad_(False)


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids.long(), use_cache=False).logits


def without(model: Any, layer: int, channel: int | None = None, group: int | None = None) -> Any:
    """The model with the output weights of one unit set to zero: what cutting it out must amount to."""
    made = copy.deepcopy(model)
    if channel is not None:
        made.model.layers[layer].mlp.down_proj.weight[:, channel] = 0
    if group is not None:
        made.model.layers[layer].self_attn.o_proj.weight[:, 32 * group : 32 * (group + 1)] = 0
    return made


def test_cutting_units_out_is_the_same_as_their_giving_nothing() -> None:
    model = llama()
    cut = copy.deepcopy(model)
    parts.cut_ffn(cut.model.layers[1], torch.tensor([each for each in range(48) if each != 7]))
    parts.cut_attention(cut.model.layers[2], torch.tensor([1]))
    expected = logits(without(without(model, 1, channel=7), 2, group=0))
    assert torch.allclose(logits(cut), expected, atol=1e-5)
    assert not torch.allclose(logits(cut), logits(model), atol=1e-3)


def test_counts_are_those_of_the_modules() -> None:
    model = llama()
    shape = Shape.of(model)
    assert parts.linear_parameters(model) == shape.all == 4 * (3 * 64 * 48 + 64 * (64 + 32 + 32 + 64))
    parts.cut_attention(model.model.layers[0], torch.tensor([0]), bias=torch.ones(64))
    parts.cut_ffn(model.model.layers[1], torch.arange(40))
    assert parts.linear_parameters(model) == shape.all - shape.group - 8 * shape.channel
    assert parts.added_parameters(model) == 64
    assert not parts.same_shapes(model) and parts.same_shapes(llama())
    fewer = llama()
    depth.drop(fewer, [(0, "self_attn"), (0, "mlp")])
    assert parts.same_shapes(fewer)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", list(RIVALS))
def test_no_rival_keeps_less_than_it_is_asked_to(name: str, ratio: float) -> None:
    base = llama()
    keep = math.ceil(Shape.of(base).all * (1 - ratio))
    for setting in RIVALS[name].settings:
        model = copy.deepcopy(base)
        RIVALS[name].prune(model, Calibration(base, IDS), keep, **setting)
        kept, added = parts.linear_parameters(model), parts.added_parameters(model)
        counted = added if setting.get("count_rotations") else 0
        assert kept + counted >= keep, setting
        # and wastes no more than a layer
        assert kept + counted - keep < Shape.of(base).layer or kept == Shape.of(base).all, setting
        assert torch.isfinite(logits(model)).all(), setting


def test_blockpruner_ends_where_the_block_that_is_missed_least_no_longer_fits() -> None:
    base = llama()
    shape, calibration = Shape.of(base), Calibration(base, IDS)
    tried = {}
    for layer in range(4):
        for part in ("self_attn", "mlp"):
            without_it = copy.deepcopy(base)
            depth.drop(without_it, [(layer, part)])
            with torch.autocast("cpu", torch.bfloat16):
                tried[layer, part] = calibration.perplexity(without_it, 4)
    (layer, part) = min(tried, key=tried.__getitem__)
    cost = shape.ffn * shape.channel if part == "mlp" else shape.groups * shape.group
    for budget, gone in ((cost, cost), (cost - 1, 0)):
        model = copy.deepcopy(base)
        depth.blockpruner(model, calibration, shape.all - budget)
        assert shape.all - parts.linear_parameters(model) == gone
        assert isinstance(model.model.layers[layer].get_submodule(part), parts.Constant) == bool(gone)


def test_rivals_leave_the_model_that_calibration_holds_as_it_was() -> None:
    base = llama()
    before, calibration = logits(base), Calibration(base, IDS)
    for name, rival in RIVALS.items():
        rival.prune(copy.deepcopy(base), calibration, Shape.of(base).all // 2, **rival.settings[0])
        assert torch.equal(logits(base), before), name


def test_magnitude_drops_the_smallest_channel_and_group() -> None:
    base = llama()
    shape = Shape.of(base)
    for layer, channel in enumerate((5, 11, 0, 47)):
        mlp = base.model.layers[layer].mlp
        for weight in (mlp.gate_proj.weight[channel], mlp.up_proj.weight[channel], mlp.down_proj.weight[:, channel]):
            weight *= 0.5
    model = copy.deepcopy(base)
    magnitude.prune(model, Calibration(base, IDS), shape.all - 4 * shape.channel, heads=False)
    kept = base
    for layer, channel in enumerate((5, 11, 0, 47)):
        kept = without(kept, layer, channel=channel)
    assert torch.allclose(logits(model), logits(kept), atol=1e-5)


def by_hand(values: dict[str, torch.Tensor], channel: int, group: int) -> torch.Tensor:
    """Sums over one channel and over one KV group of two query heads of 16."""
    q, k, v, o = (values[f"self_attn.{name}_proj"] for name in "qkvo")
    gate, up, down = (values[f"mlp.{name}_proj"] for name in ("gate", "up", "down"))
    queries, keys = slice(32 * group, 32 * (group + 1)), slice(16 * group, 16 * (group + 1))
    whole = q[queries].sum() + k[keys].sum() + v[keys].sum() + o[:, queries].sum()
    return torch.stack([gate[channel].sum() + up[channel].sum() + down[:, channel].sum(), whole])


def test_the_norm_of_a_unit_is_that_of_all_its_weights() -> None:
    base = llama()
    channels, groups = magnitude.scores(base)
    squares = {name: weight.square() for name, weight in magnitude.weights(base.model.layers[1])}
    expected = by_hand(squares, channel=17, group=0).sqrt()
    assert torch.allclose(torch.stack([channels[1, 17], groups[1, 0]]), expected)


def test_a_ranking_over_all_layers_goes_where_the_scores_are_lowest() -> None:
    shape = Shape(hidden=64, ffn=3, layers=2, groups=1, queries=1, head=16)
    channels = torch.tensor([[1.0, 2.0, 9.0], [3.0, 8.0, 7.0]])
    kept = choose.everywhere(shape, channels, torch.tensor([[4.0], [6.0]]), 3 * shape.channel + shape.group)
    assert [each.tolist() for each in kept.channels] == [[2], [1, 2]]
    assert [each.tolist() for each in kept.groups] == [[], [0]]
    # the group no longer fits: nothing behind it goes either
    kept = choose.everywhere(shape, channels, torch.tensor([[1.5], [6.0]]), shape.channel + shape.group - 1)
    assert [each.tolist() for each in kept.channels] == [[1, 2], [0, 1, 2]] and len(kept.groups[0]) == 1


def test_the_same_share_everywhere_leaves_the_ends_whole_where_asked() -> None:
    shape = Shape.of(llama())
    scores = torch.arange(48.0).flip(0).expand(4, 48), torch.tensor([[2.0, 1.0]]).expand(4, 2)
    kept = choose.uniform(shape, *scores, shape.all // 4, spare_ends=True)
    assert [len(each) for each in kept.channels][::3] == [48, 48] and len(kept.channels[1]) == len(kept.channels[2])
    assert kept.groups[0].tolist() == [0, 1] and kept.groups[1].tolist() == [0]
    assert kept.channels[1].tolist() == list(range(len(kept.channels[1])))  # the last ones have the lowest scores


def test_wanda_weighs_a_column_by_the_norm_of_its_input() -> None:
    base = llama()
    seen = []
    down = base.model.layers[1].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    logits(base)
    hook.remove()
    channels, groups = wanda_sp.scores(base, Calibration(base, IDS))
    expected = down.weight.abs().sum(0) * seen[0].square().mean(0).sqrt()
    assert torch.allclose(channels[1].float(), expected, rtol=1e-4) and groups.shape == (4, 2)


def test_flaps_bias_is_what_the_removed_columns_gave_on_average() -> None:
    base = llama()
    calibration = Calibration(base, IDS)
    seen = []
    down = base.model.layers[0].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda module, given: seen.append(given[0].flatten(0, 1)))
    logits(base)
    hook.remove()
    gone = torch.tensor([3, 30])
    bias = flap.compensation(down.weight, gone, calibration.inputs()["down"].mean[0])
    assert bias is not None and torch.allclose(bias, down.weight[:, gone] @ seen[0].mean(0)[gone], atol=1e-5)
    scores, _ = flap.fluctuation(base, calibration)
    expected = seen[0].var(0, unbiased=False) * down.weight.square().sum(0)
    assert torch.allclose(scores[0].float(), expected, rtol=1e-3)
    # the mean of a block's output does not move: that is what the bias is for
    model = copy.deepcopy(base)
    flap.prune(model, calibration, Shape.of(base).all // 2)
    outputs = [each.model.layers[0].self_attn(**first_inputs(base))[0].mean((0, 1)) for each in (base, model)]
    assert not torch.equal(*outputs) and torch.allclose(*outputs, atol=1e-5)


def first_inputs(model: Any) -> dict[str, Any]:
    """What the first attention is called with."""
    found: dict[str, Any] = {}
    attention = model.model.layers[0].self_attn
    hook = attention.register_forward_pre_hook(lambda module, given, named: found.update(named), with_kwargs=True)
    logits(model)
    hook.remove()
    return found


def test_the_taylor_score_is_weight_times_gradient() -> None:
    base = llama()
    channels, groups = llm_pruner.scores(base, Calibration(base, IDS))
    gradients = Calibration(base, IDS).gradients()
    values = {
        name: (each * gradients[f"model.layers.2.{name}.weight"]).abs()
        for name, each in magnitude.weights(base.model.layers[2])
    }
    assert torch.allclose(torch.stack([channels[2, 9], groups[2, 1]]), by_hand(values, channel=9, group=1))
    weight = base.model.layers[2].mlp.up_proj.weight
    scaled = copy.deepcopy(base)
    # one element: the change of the loss for a small relative step is its part of the score
    gradient = Calibration(base, IDS).gradients()["model.layers.2.mlp.up_proj.weight"]
    row, column = divmod(int((weight * gradient).abs().argmax()), 64)
    losses = []
    for step in (0.98, 1.02):
        scaled.model.layers[2].mlp.up_proj.weight[row, column] = step * weight[row, column]
        with torch.inference_mode():
            losses.append(float(next_token_loss(scaled, IDS.long()).double().sum()) / IDS.numel())
    expected = (losses[1] - losses[0]) / 0.04
    assert expected == pytest.approx(float((weight * gradient)[row, column]), rel=0.05)
    assert float(channels[2, row]) >= abs(expected) * 0.95
    assert not base.model.layers[2].mlp.up_proj.weight.requires_grad


@pytest.mark.parametrize("signal", slicegpt.SIGNALS)
@pytest.mark.parametrize("tied", [True, False])
def test_slicegpt_with_nothing_sliced_is_the_identity(signal: str, tied: bool) -> None:
    base = llama(tie_word_embeddings=tied)
    model = copy.deepcopy(base)
    slicegpt.prune(model, Calibration(base, IDS), Shape.of(base).all, signal)
    assert torch.allclose(logits(model), logits(base), atol=1e-4)
    assert not torch.allclose(
        model.model.layers[0].self_attn.q_proj.weight, base.model.layers[0].self_attn.q_proj.weight
    )


def test_slicegpt_loses_nothing_where_the_stream_fills_only_part_of_its_width() -> None:
    base = llama()
    for name, weight in base.named_parameters():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            (weight if "embed" in name else weight.T)[:, 40:] = 0
    shape = Shape.of(base)
    model = copy.deepcopy(base)
    keep = shape.all * 40 // 64 + shape.ffn * (64 - 40)  # at width 40; the last down writes full width
    slicegpt.prune(model, Calibration(base, IDS), keep)
    assert model.model.embed_tokens.weight.shape[1] == 40 and parts.linear_parameters(model) == keep
    assert torch.allclose(logits(model), logits(base), atol=1e-3)


def test_the_influence_of_a_layer_that_does_nothing_is_lowest() -> None:
    base = llama()
    depth.drop(base, [(2, "self_attn"), (2, "mlp")])
    influence = Calibration(base, IDS).influence()
    assert min(influence) == influence[2] == pytest.approx(0, abs=1e-5) and sorted(influence)[1] > 1e-3


def test_shortgpt_drops_the_layer_that_does_nothing() -> None:
    base = llama()
    for part in ("self_attn.o_proj", "mlp.down_proj"):
        base.model.layers[1].get_submodule(part).weight.zero_()
    model = copy.deepcopy(base)
    shape = Shape.of(base)
    depth.shortgpt(model, Calibration(base, IDS), shape.all - shape.layer)
    assert isinstance(model.model.layers[1].mlp, parts.Constant)
    assert parts.linear_parameters(model) == shape.all - shape.layer
    assert torch.allclose(logits(model), logits(base), atol=1e-5)


@pytest.mark.parametrize("block", [(0, "self_attn"), (2, "mlp"), (3, "mlp")])
def test_a_try_that_begins_above_what_stays_is_that_of_the_whole_model(block: depth.Block) -> None:
    base = llama()
    calibration = Calibration(base, IDS)
    found = depth._Tries(calibration, frozenset({(1, "mlp")})).perplexity((block,))
    whole = copy.deepcopy(base)
    depth.drop(whole, [(1, "mlp"), block])
    with torch.autocast("cpu", torch.bfloat16):
        assert found == pytest.approx(calibration.perplexity(whole, 4), rel=1e-6)
    assert found != pytest.approx(calibration.perplexity(base, 4), rel=1e-4)


def test_greedy_removal_leaves_the_lowest_perplexity_of_all_layers_it_could_drop() -> None:
    base, model = llama(), llama()
    calibration = Calibration(base, IDS)
    depth.greedy_layers(model, calibration, Shape.of(base).all - Shape.of(base).layer)
    left = []
    for layer in range(4):
        tried = llama()
        depth.drop(tried, [(layer, "self_attn"), (layer, "mlp")])
        left.append(calibration.perplexity(tried, 4))
    assert calibration.perplexity(model, 4) == pytest.approx(min(left)) and min(left) < sorted(left)[1]


def test_what_is_known_already_still_counts_as_time() -> None:
    calibration = Calibration(llama(), IDS)
    calibration.once("slow", lambda: torch.ones(400, 400) @ torch.ones(400, 400))
    assert calibration.saved == 0
    calibration.once("slow", lambda: pytest.fail("asked twice"))
    assert calibration.saved > 0
