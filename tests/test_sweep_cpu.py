"""The compiled sweep against the torch reference: same codes, whatever the grid and however ugly the shape."""

import pytest
import torch

from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import grid, loop, loop_cpu
from hubplugin.methods.gptq.grid import Spec

SHARES = grid.shrinking(3, 128)
SIGNED = SHARES + tuple(-share for share in SHARES)


def problem(inputs: int, outputs: int) -> tuple[torch.Tensor, linear_algebra.Factor, torch.Tensor]:
    generator = torch.Generator().manual_seed(inputs + outputs)
    mix = torch.randn(inputs, inputs, generator=generator)
    x = torch.randn(4 * inputs, inputs, generator=generator) @ mix
    second = x.T @ x
    columns = torch.randn(inputs, outputs, generator=generator) * 0.02
    return columns, linear_algebra.factor(second, 0.01), second.diagonal().contiguous()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("inputs", "group"), [(256, 32), (192, 64), (384, 128), (320, 320), (160, 160), (96, 32)])
def test_codes_scales_and_zeros_are_the_references(inputs: int, group: int, symmetric: bool, bits: int) -> None:
    columns, factor, importance = problem(inputs, 77)
    spec = Spec(bits, group, symmetric, SIGNED if symmetric else SHARES)
    fast, plain = (each.sweep(columns, factor, importance, spec) for each in (loop_cpu, loop))
    same = (fast.scales == plain.scales) & (fast.zeros == plain.zeros)
    # a candidate may win by less than the rounding of a sum; a group that starts alike must then go on alike
    assert float(same.float().mean()) > 0.99
    assert float((fast.codes != plain.codes).float().mean()) < 0.01
    assert bool(same[0].all()) and torch.equal(fast.codes[:group, :8], plain.codes[:group, :8])


def test_the_first_group_is_fitted_to_its_own_columns_alone() -> None:
    columns, factor, importance = problem(384, 40)
    made = loop_cpu.sweep(columns, factor, importance, Spec(4, 128))
    assert torch.equal(made.scales[0], grid.storable(columns[:128].abs().amax(dim=0) / 7.5))


@pytest.mark.parametrize("outputs", [1, 63, 64, 65, 200])
def test_threads_and_tiles_do_not_change_the_codes(outputs: int) -> None:
    columns, factor, importance = problem(128, outputs)
    spec = Spec(4, 64, True, SHARES)
    whole = loop_cpu.sweep(columns, factor, importance, spec)
    apart = [loop_cpu.sweep(part.contiguous(), factor, importance, spec) for part in columns.split(7, dim=1)]
    assert torch.equal(whole.codes, torch.cat([part.codes for part in apart], dim=1))
    assert torch.equal(whole.scales, torch.cat([part.scales for part in apart], dim=1))


def test_small_scales_are_stored_as_float16_and_bfloat16_hold_them() -> None:
    columns, factor, importance = problem(128, 70)
    tiny = columns * torch.logspace(-8, 6, 70)
    made, plain = (each.sweep(tiny, factor, importance, Spec(4, 128)) for each in (loop_cpu, loop))
    assert torch.equal(made.scales, grid.storable(made.scales)) and torch.equal(made.scales, plain.scales)
