"""Sums in a CPU's matrix unit against float64. Skipped where there is no such unit."""

import pytest
import torch

from hubplugin.kernels import amx, xtx_cpu
from hubplugin.kernels.xtx_cpu import Tiles

pytestmark = pytest.mark.skipif(not xtx_cpu.works(), reason="this CPU has no AMX unit for bfloat16")
# tokens and features around the sizes of a tile, of what stays in the cache, and of a run
SHAPES = [(32, 32), (1, 32), (33, 64), (100, 96), (700, 480), (32 * amx.RUN + 40, 32 * (amx.SIDE + 1))]


def activations(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed)).bfloat16()


def near(total: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((total.double() - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_lower_triangle_is_the_second_moments(shape: tuple[int, int]) -> None:
    x = activations(*shape)
    total = torch.zeros(shape[1], shape[1])
    for _ in range(2):
        xtx_cpu.add_lower(total, Tiles().fill(x))
    assert near(total.tril(), 2 * (x.double().T @ x.double()).tril())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outputs", [32, 544])
def test_a_product_of_different_activations_is_added_whole(shape: tuple[int, int], outputs: int) -> None:
    x, y = activations(*shape), activations(shape[0], outputs, seed=1)
    total = torch.ones(outputs, shape[1])
    xtx_cpu.add_product(total, Tiles().fill(y, both=False), Tiles().fill(x))
    assert near(total - 1, y.double().T @ x.double())


def test_whole_numbers_come_out_exactly() -> None:
    x = torch.arange(64 * 32).reshape(64, 32).remainder(9).sub(4).bfloat16()
    total = torch.zeros(32, 32)
    xtx_cpu.add_lower(total, Tiles().fill(x))
    assert torch.equal(total.tril(), (x.long().T @ x.long()).float().tril())


def test_memory_is_used_again_and_nothing_of_what_was_there_is_left() -> None:
    tiles = Tiles().fill(activations(200, 96))
    x = activations(50, 64, seed=2)
    total = torch.zeros(64, 64)
    xtx_cpu.add_lower(total, tiles.fill(x))
    assert near(total.tril(), (x.double().T @ x.double()).tril())


def test_a_part_of_the_tokens_is_multiplied_alone() -> None:
    x, y = activations(160, 64), activations(96, 32, seed=1)
    part, total = Tiles().fill(x).part(32, 128), torch.zeros(32, 64)
    assert part is not None
    xtx_cpu.add_product(total, Tiles().fill(y, both=False), part)
    assert near(total, y.double().T @ x[32:128].double())
    assert Tiles().fill(x).part(16, 128) is None, "a tile would bring tokens of others"


def test_sums_of_another_shape_or_number_of_tokens_are_refused() -> None:
    x = Tiles().fill(activations(64, 64))
    for total in (torch.zeros(64, 32), torch.zeros(64, 64).double(), torch.zeros(64, 128)[:, ::2]):
        with pytest.raises(ValueError, match="float32"):
            xtx_cpu.add_lower(total, x)
    with pytest.raises(ValueError, match="as many tokens"):
        xtx_cpu.add_product(torch.zeros(64, 64), Tiles().fill(activations(96, 64), both=False), x)


def test_not_a_number_stays_one() -> None:
    x = activations(40, 32)
    x[3, 5] = float("nan")
    total = torch.zeros(32, 32)
    xtx_cpu.add_lower(total, Tiles().fill(x))
    assert total[5].isnan().all() and total[:5, :5].isfinite().all()
