"""Which shapes there are, and that the one that is chosen is the cheapest within its limit: by brute force."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hubplugin.manifest.steps.prune import Prune
from hubplugin.model.architectures.architecture import BlockShape, Dimensions
from hubplugin.model.architectures.families import FAMILIES
from hubplugin.plan.choices import pruned_sizes, pruning_space
from hubplugin.plan.choices.pruning_space import Cost, Measured, Shape, Space

BASE = Dimensions(
    layers=4, hidden=64, ffn=256, heads=4, kv_heads=2, head_dim=32, vocab=100, context=None, tied=True
)  # 128 x 64 in q and o, 64 x 64 in k and v, 256 x 64 three times: 73728 in a layer
HEADS = ((2, 1), (2, 2), (4, 2))
WIDTHS = (64, 128, 192, 256)
ATTENTION, CHANNEL = {(2, 1): 12288, (2, 2): 16384, (4, 2): 24576}, 192
WHOLE = 4 * 73728


def space(layers: int = 4, widths: tuple[int, ...] = WIDTHS, **step: Any) -> Space:
    asked = Prune.model_validate({"method": "prune", **step})
    return Space(asked, FAMILIES["llama"], replace(BASE, layers=layers), widths, HEADS)


def asking(depth: int, **step: Any) -> Space:
    """The space of a step that may name a count of layers."""
    return replace(space(depth, ratio=0.1), step=Prune.model_validate({"method": "prune", **step}))


def costs(seed: int, layers: int = 4, widths: tuple[int, ...] = WIDTHS) -> Measured:
    """KL that grows with what is gone, each in its own way."""
    chance = random.Random(seed)

    def falling(options: tuple[Any, ...]) -> dict[Any, float]:
        steps = [chance.random() for _ in options[:-1]]
        return dict(zip(options, [*(sum(steps[at:]) for at in range(len(steps))), 0.0], strict=True))

    order = chance.sample(range(layers), layers - 1)
    gone = itertools.accumulate(chance.random() * 2 for _ in order)
    return Measured(
        [falling(((0, 0), *HEADS)) for _ in range(layers)],
        [falling((0, *widths)) for _ in range(layers)],
        list(zip(order, gone, strict=True)),
    )


def weight(shape: Shape) -> int:
    return sum((ATTENTION[one.heads, one.kv_heads] if one.heads else 0) + CHANNEL * one.ffn for one in shape.blocks)


def test_weights_of_every_choice() -> None:
    cost = space(ratio=0.1).weights
    assert cost.attention == {(0, 0): 0, **ATTENTION}
    assert cost.ffn == {width: CHANNEL * width for width in (0, *WIDTHS)}
    assert cost.rest == 0


def test_limits_of_each_target() -> None:
    assert space(ratio=0.25).limit(1000) == 0.75 * WHOLE
    assert space(params=200000).limit(1000) == 199000


def test_a_share_may_be_missed_by_half_a_step_and_a_number_never() -> None:
    step = CHANNEL * 64
    assert space(ratio=0.3).slack(space(ratio=0.3).weights) == 4 * step / 2
    assert space(ratio=0.3, layout="per-layer").slack(space(ratio=0.3).weights) == step / 2
    assert space(params=200000).slack(space(ratio=0.3).weights) == 0
    assert space(widths=(256,), ratio=0.3).slack(space(ratio=0.3).weights) == 0, "there is no step"


def even(measured: Measured, layers: int = 4) -> Iterator[tuple[Shape, float]]:
    """Every shape of equal blocks, and what it costs."""
    for fallen in range(len(measured.layers) + 1):
        gone = {index for index, _ in measured.layers[:fallen]}
        kept = [index for index in range(layers) if index not in gone]
        for heads, width in itertools.product(HEADS, WIDTHS):
            kl = measured.layers[fallen - 1][1] if fallen else 0.0
            kl += sum(measured.attention[index][heads] + measured.ffn[index][width] for index in kept)
            yield Shape(tuple(kept), (BlockShape(*heads, width),) * len(kept)), kl


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [60000, 120000, 150000, 221184, 290000])
def test_blocks_alike_are_the_best_of_all_within_the_limit(limit: int, seed: int) -> None:
    asked, measured = space(params=1), costs(seed)
    found = asked.choose(measured, asked.weights, limit)
    assert found is not None
    shape, kl = found
    fits = [(cost, one) for one, cost in even(measured) if weight(one) <= limit]
    assert weight(shape) <= limit and shape.uniform
    assert kl == pytest.approx(min(cost for cost, _ in fits))
    assert any(one == shape for cost, one in fits if cost == pytest.approx(kl))


def test_a_share_uses_its_slack() -> None:
    asked, measured = space(ratio=0.1), costs(0)  # 0.9 lies between 256 and 192 channels, nearer to 256
    found = asked.choose(measured, asked.weights, asked.limit(0))
    assert found is not None and weight(found[0]) <= 0.9 * WHOLE + CHANNEL * 64 * 2
    tight = asked.choose(measured, asked.weights, 12288 + CHANNEL * 64 - CHANNEL * 64 * 2 - 1)
    assert tight is None, "not even the smallest shape of one layer"


def uneven(asked: Space, measured: Measured, layers: int, widths: tuple[int, ...]) -> Iterator[tuple[int, float]]:
    """Weights and KL of every shape of blocks that may differ."""
    heads = [[*asked.heads] if index == 0 else [(0, 0), *asked.heads] for index in range(layers)]
    for one in itertools.product(*heads):
        for width in itertools.product((0, *widths), repeat=layers):
            size = sum((ATTENTION[each] if each[0] else 0) for each in one) + CHANNEL * sum(width)
            kl = sum(measured.attention[index][each] for index, each in enumerate(one))
            yield size, kl + sum(measured.ffn[index][each] for index, each in enumerate(width))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [30000, 90000, 130000, 200000])
def test_blocks_that_differ_come_within_one_step_of_the_best_of_all(limit: int, seed: int) -> None:
    widths = (128, 256)
    asked, measured = space(3, widths, params=1, layout="per-layer"), costs(seed, 3, widths)
    found = asked.choose(measured, asked.weights, limit)
    assert found is not None
    shape, kl = found
    assert weight(shape) <= limit
    assert shape.sources[0] == 0 and shape.blocks[0].heads > 0, "the first block keeps attention"
    fits = [cost for size, cost in uneven(asked, measured, 3, widths) if size <= limit]
    steps = [max(item.values()) - min(item.values()) for item in (*measured.attention, *measured.ffn)]
    assert min(fits) - 1e-9 <= kl <= min(fits) + max(steps)
    expected = sum(
        measured.attention[index][(0, 0) if index not in shape.sources else _heads(shape, index)]
        + measured.ffn[index][0 if index not in shape.sources else shape.blocks[shape.sources.index(index)].ffn]
        for index in range(3)
    )
    assert kl == pytest.approx(expected)


def _heads(shape: Shape, index: int) -> tuple[int, int]:
    block = shape.blocks[shape.sources.index(index)]
    return block.heads, block.kv_heads


def test_blocks_that_differ_leave_room_for_what_stands_outside_of_them() -> None:
    asked, measured = space(3, latency=0.5, layout="per-layer"), costs(1, 3)
    plain = Cost(asked.weights.attention, asked.weights.ffn, rest=100000)
    found = asked.choose(measured, plain, 200000)
    assert found is not None
    assert weight(found[0]) + 100000 <= 200000 + asked.slack(plain)
    assert asked.choose(measured, replace(plain, rest=250000), 200000) is None


def test_nothing_is_chosen_where_nothing_fits() -> None:
    for layout in ("uniform", "per-layer"):
        asked = space(params=1, layout=layout)
        assert asked.choose(costs(0), asked.weights, 10000) is None


def test_blocks_without_anything_are_left_out() -> None:
    blocks = [BlockShape(4, 2, 64), BlockShape(0, 0, 0), BlockShape(0, 0, 64), BlockShape(4, 2, 0)]
    assert pruning_space.whole(blocks) == Shape((0, 2, 3), (blocks[0], blocks[2], blocks[3]))


def test_sizes_of_blocks_that_differ_are_those_of_the_widest() -> None:
    alike = Shape((0, 3), (BlockShape(2, 1, 64),) * 2)
    assert alike.uniform
    assert alike.dimensions(BASE) == replace(BASE, layers=2, heads=2, kv_heads=1, ffn=64)
    blocks = (BlockShape(2, 1, 64), BlockShape(0, 0, 192))
    found = Shape((0, 3), blocks).dimensions(BASE)
    assert found == replace(BASE, layers=2, heads=2, kv_heads=1, ffn=192, blocks=blocks)
    assert pruning_space.unchanged(BASE).dimensions(BASE) == BASE


def test_before_measuring_counts_are_taken_from_the_end() -> None:
    asked = Space(
        Prune.model_validate(
            {"method": "prune", "layers": 1, "attention": 2, "mlp": 1, "ffn": 0.5, "layout": "per-layer"}
        ),
        FAMILIES["llama"],
        BASE,
        (128,),
        ((2, 1),),
    )
    assert asked.before_measuring(0) == Shape(
        (0, 1, 2), (BlockShape(2, 1, 128), BlockShape(0, 0, 128), BlockShape(0, 0, 0))
    )


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            {"ratio": 0.25},
            Shape((0, 1, 2, 3), (BlockShape(4, 2, 192),) * 4),
        ),  # half a step too many, which is the slack
        ({"params": 1000 + int(0.75 * WHOLE)}, Shape((0, 1, 2, 3), (BlockShape(4, 2, 128),) * 4)),
        ({"params": 1000 + 3 * 36864}, Shape((0, 1, 2), (BlockShape(4, 2, 64),) * 3)),
        ({"params": 1500}, Shape((0,), (BlockShape(2, 1, 64),))),
        ({"latency": 0.75}, Shape((0, 1, 2, 3), (BlockShape(4, 2, 192),) * 4)),
    ],
)
def test_before_measuring_a_target_is_met_by_widths_and_then_by_layers(step: dict[str, Any], expected: Shape) -> None:
    assert space(**step).before_measuring(1000) == expected


@pytest.mark.parametrize(
    ("before", "group", "per_layer", "step"),
    [
        (8192, None, False, 128),
        (8192, None, True, 128),
        (2048, 128, False, 128),
        (2048, None, True, 64),  # 32 levels of 128 would be 4096
        (1024, None, False, 64),
        (960, None, False, 32),
        (128, 32, True, 32),
        (2048, 96, False, 384),  # lcm
        (96, 64, False, 64),
    ],
)
def test_widths_are_multiples_of_tiles_and_groups(before: int, group: int | None, per_layer: bool, step: int) -> None:
    found = pruned_sizes.widths(before, group, per_layer)
    assert found == (*range(step, before, step), before)


def test_heads_go_by_groups_or_equally_from_every_group() -> None:
    base = replace(BASE, heads=12, kv_heads=3)
    assert pruned_sizes.heads(base, None) == ((4, 1), (8, 2), (3, 3), (6, 3), (9, 3), (12, 3))
    assert pruned_sizes.heads(base, 128) == ((4, 1), (8, 2), (12, 3)), (
        "32 * 3, 6 or 9 inputs are no whole groups of 128"
    )
    assert pruned_sizes.heads(replace(BASE, heads=1, kv_heads=1), None) == ((1, 1),)


@pytest.mark.parametrize(
    ("step", "removals", "at_once", "in_all"),
    [
        # of 20 layers: widths, KV groups, query heads and layers once; ten layers again after every removal but the
        # last, and before each three on four times as many tokens
        ({"ratio": 0.2}, 4, 4 * 20, 4 * 20 + 3 * 10 + 4 * 12),
        ({"ratio": 0.02}, 0, 4 * 20, 4 * 20),
        ({"latency": 0.75}, 5, 4 * 20, 4 * 20 + 4 * 10 + 5 * 12),
        ({"ratio": 0.2, "layout": "per-layer"}, 0, 5 * 20, 5 * 20),  # and blocks without either sublayer
        ({"layers": 3}, 3, 20, 20 + 2 * 10 + 3 * 12),
    ],
)
def test_changes_that_are_tried_are_counted(step: dict[str, Any], removals: int, at_once: int, in_all: int) -> None:
    made = asking(20, **step)
    assert (made.removals, made.probes, made.tried) == (removals, at_once, in_all)


def test_measurements_are_shared_by_targets_and_by_nothing_else() -> None:
    def depends_on(**step: Any) -> list[Any]:
        return asking(4, **step).measured_for()

    assert depends_on(ratio=0.1) == depends_on(ratio=0.4) == depends_on(params=9000) == depends_on(latency=0.5)
    assert depends_on(layers=1) == depends_on(layers=3) == depends_on(layers=2, ffn=0.25)
    per_layer = {"layout": "per-layer"}
    others = [{"damp": 0.1, "ratio": 0.1}, {"ratio": 0.1, **per_layer}, {"attention": 1, **per_layer}]
    others += [{"attention": 1, "mlp": 1, **per_layer}, {"attention": 1, "mlp": 2, **per_layer}, {"ratio": 0.1}]
    others += [{"layers": 1}]
    keys = [str(depends_on(**other)) for other in others]
    assert len(set(keys)) == len(keys)
