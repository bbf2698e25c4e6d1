"""Coordinate descent and refit: by hand, against brute force, never worse, and compiled as in plain torch."""

from types import ModuleType

import pytest
import torch

from hubplugin.checkpoint import encodings
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import coordinate_descent, coordinate_descent_cpu, gptq, grid, loop
from hubplugin.methods.gptq.loop import Swept

TOP = 15


def found(codes: torch.Tensor, scales: torch.Tensor, zero: float = 8.0) -> Swept:
    return Swept(codes.to(torch.uint8), scales, torch.full_like(scales, zero))


def errors(columns: torch.Tensor, swept: Swept) -> torch.Tensor:
    group = len(columns) // len(swept.scales)
    scales, zeros = (part.repeat_interleave(group, dim=0) for part in (swept.scales, swept.zeros))
    return columns - encodings.values(swept.codes.to(columns.dtype), scales, zeros)


def losses(columns: torch.Tensor, second: torch.Tensor, swept: Swept) -> torch.Tensor:
    """e^T H e of every output."""
    off = errors(columns, swept)
    return (off * (second @ off)).sum(dim=0)


def problem(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [inputs, outputs] and damped second moments of correlated inputs."""
    generator = torch.Generator().manual_seed(inputs + outputs)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=dtype)
    x = torch.randn(4 * inputs, inputs, generator=generator, dtype=dtype) @ mix
    columns = torch.randn(inputs, outputs, generator=generator, dtype=dtype) * 0.02
    return columns, linear_algebra.damped(x.T @ x, 0.01)


def rounded(columns: torch.Tensor, group: int) -> Swept:
    """Rounding to nearest: where a descent has far to go."""
    scales, zeros = [], []
    for part in columns.split(group):
        scale, zero = grid.fit(part.T, torch.ones(group, dtype=columns.dtype), grid.Spec(4, group))
        scales.append(scale)
        zeros.append(zero)
    swept = Swept(torch.empty_like(columns, dtype=torch.uint8), torch.stack(scales), torch.stack(zeros))
    wide = swept.scales.repeat_interleave(group, dim=0)
    swept.codes.copy_(grid.codes(columns, wide, 8, TOP))
    return swept


@pytest.mark.parametrize("way", [coordinate_descent, coordinate_descent_cpu])
def test_two_inputs_by_hand(way: ModuleType) -> None:
    """(0.6, 0.6) rounds to (1, 1); H couples both, so the first goes to 0 and makes up for the second."""
    columns, second = torch.tensor([[0.6], [0.6]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    swept = found(torch.tensor([[9], [9]]), torch.ones(1, 1))
    assert losses(columns, second, swept).item() == pytest.approx(0.96)
    way.descend(columns, second, swept, TOP, move=True, refit=False)
    assert swept.codes.flatten().tolist() == [8, 9]
    assert losses(columns, second, swept).item() == pytest.approx(0.56)


@pytest.mark.parametrize("way", [coordinate_descent, coordinate_descent_cpu])
def test_a_refitted_scale_is_the_least_squares_answer(way: ModuleType) -> None:
    """Codes (1, 2) under H: s = c^T H w / c^T H c = 12 / 14, rounded to what is stored."""
    columns, second = torch.tensor([[0.5], [2.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    swept = found(torch.tensor([[9], [10]]), torch.ones(1, 1))
    way.descend(columns, second, swept, TOP, move=False, refit=True)
    assert swept.scales.item() == grid.storable(torch.tensor(12 / 14)).item()
    assert swept.codes.flatten().tolist() == [9, 10]


def test_where_it_stops_no_single_code_could_do_better() -> None:
    columns, second = problem(12, 5, torch.float64)
    swept = rounded(columns, 12)
    for _ in range(50):
        coordinate_descent.descend(columns, second, swept, TOP, move=True, refit=False)
    best = losses(columns, second, swept)
    for column in range(12):
        for code in range(TOP + 1):
            other = found(swept.codes.clone(), swept.scales)
            other.codes[column] = code
            assert bool((losses(columns, second, other) >= best * (1 - 1e-9)).all())


@pytest.mark.parametrize("way", [coordinate_descent, coordinate_descent_cpu])
@pytest.mark.parametrize("group", [32, 128, 256])
def test_no_pass_makes_any_output_worse(way: ModuleType, group: int) -> None:
    columns, second = problem(256, 70)
    swept = rounded(columns, group)
    before = losses(columns, second, swept)
    for move, refit in ((True, False), (False, True), (True, True)):
        way.descend(columns, second, swept, TOP, move, refit)
        after = losses(columns, second, swept)
        assert bool((after <= before * (1 + 1e-4)).all()) and float(after.sum()) < float(before.sum())
        before = after


@pytest.mark.parametrize(("inputs", "group"), [(256, 32), (192, 64), (384, 128), (320, 320)])
@pytest.mark.parametrize("refit", [True, False])
def test_compiled_as_in_torch(inputs: int, group: int, refit: bool) -> None:
    columns, second = problem(inputs, 77)
    plain, fast = (rounded(columns, group) for _ in range(2))
    coordinate_descent.descend(columns, second, plain, TOP, True, refit)
    coordinate_descent_cpu.descend(columns, second, fast, TOP, True, refit)
    # what lies halfway between two codes goes either way, and others follow
    assert float((plain.codes != fast.codes).float().mean()) < 0.01
    assert float((plain.scales != fast.scales).float().mean()) < 0.05


@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True)])
def test_after_gptq_both_lower_the_loss_of_the_layer(bits: int, symmetric: bool) -> None:
    columns, second = problem(256, 96)

    def loss(**more: object) -> float:
        asked = {"method": "gptq", "bits": bits, "group_size": 64, "symmetric": symmetric, **more}
        return gptq.compress(columns.T.contiguous(), second, Gptq.model_validate(asked)).loss

    plain, moved, refitted, both = loss(), loss(descent=1), loss(scale_refit=True), loss(descent=2, scale_refit=True)
    assert moved < plain and refitted < plain and both < min(moved, refitted)


def test_inputs_that_were_never_excited_keep_the_code_of_nothing() -> None:
    columns, second = problem(64, 20)
    second[:8], second[:, :8] = 0, 0
    asked = Gptq.model_validate({"method": "gptq", "bits": 4, "group_size": 32, "descent": 2})
    made = gptq.compress(columns.T.contiguous(), second, asked)
    assert not bool(made.weight[:, :8].any())


def test_the_reference_sweep_may_be_followed_too() -> None:
    columns, second = problem(64, 20, torch.float64)
    swept = loop.sweep(columns, linear_algebra.factor(second, 0.01), second.diagonal(), grid.Spec(4, 32))
    before = losses(columns, second, swept).sum()
    coordinate_descent.descend(columns, second, swept, TOP, True, True)
    assert losses(columns, second, swept).sum() < before
