"""Sums over tokens by bfloat16 instructions of a CPU against float64. Skipped where it has none."""

import pytest
import torch

from hubplugin.kernels.instructions import amx, token_sums
from hubplugin.kernels.instructions.packed_tokens import PackedTokens
from hubplugin.kernels.instructions.panels import Panels
from hubplugin.kernels.instructions.tiles import Tiles

KINDS = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(each, marks=pytest.mark.skipif(each not in token_sums.kinds(), reason=f"this CPU has no {name}"))
        for each, name in ((Tiles, "AMX unit for bfloat16"), (Panels, "fast dot products of bfloat16"))
    ],
)
# tokens and features around the sizes of a tile or panel, of what stays in the cache, and of a run
SHAPES = [(32, 64), (1, 64), (33, 64), (100, 192), (700, 448), (32 * amx.RUN + 40, 64 * (amx.SIDE // 2 + 1))]


def activations(tokens: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed)).bfloat16()


def near(total: torch.Tensor, expected: torch.Tensor) -> bool:
    return float((total.double() - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@KINDS
def test_the_lower_triangle_is_the_second_moments(kind: type[PackedTokens], shape: tuple[int, int]) -> None:
    x = activations(*shape)
    total = torch.zeros(shape[1], shape[1])
    for _ in range(2):
        token_sums.add_lower(total, kind().fill(x))
    assert near(total.tril(), 2 * (x.double().T @ x.double()).tril())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outputs", [64, 576])
@KINDS
def test_a_product_of_different_activations_is_added_whole(
    kind: type[PackedTokens], shape: tuple[int, int], outputs: int
) -> None:
    x, y = activations(*shape), activations(shape[0], outputs, seed=1)
    total = torch.ones(outputs, shape[1])
    token_sums.add_product(total, kind().fill(y, both=False), kind().fill(x))
    assert near(total - 1, y.double().T @ x.double())


@KINDS
def test_whole_numbers_come_out_exactly(kind: type[PackedTokens]) -> None:
    x = torch.arange(32 * 64).reshape(32, 64).remainder(9).sub(4).bfloat16()
    total = torch.zeros(64, 64)
    token_sums.add_lower(total, kind().fill(x))
    assert torch.equal(total.tril(), (x.long().T @ x.long()).float().tril())


@KINDS
def test_memory_is_used_again_and_nothing_of_what_was_there_is_left(kind: type[PackedTokens]) -> None:
    packed = kind().fill(activations(200, 192))
    x = activations(50, 64, seed=2)
    total = torch.zeros(64, 64)
    token_sums.add_lower(total, packed.fill(x))
    assert near(total.tril(), (x.double().T @ x.double()).tril())


@KINDS
def test_a_part_of_the_tokens_is_multiplied_alone(kind: type[PackedTokens]) -> None:
    x, y = activations(160, 64), activations(96, 128, seed=1)
    part, total = kind().fill(x).part(32, 128), torch.zeros(128, 64)
    assert part is not None
    token_sums.add_product(total, kind().fill(y, both=False), part)
    assert near(total, y.double().T @ x[32:128].double())
    assert kind().fill(x).part(17, 128) is None, "a tile or pair would bring tokens of others"


@KINDS
def test_sums_of_another_shape_or_number_of_tokens_are_refused(kind: type[PackedTokens]) -> None:
    x = kind().fill(activations(64, 64))
    for total in (torch.zeros(64, 32), torch.zeros(64, 64).double(), torch.zeros(64, 128)[:, ::2]):
        with pytest.raises(ValueError, match="float32"):
            token_sums.add_lower(total, x)
    with pytest.raises(ValueError, match="as many tokens"):
        token_sums.add_product(torch.zeros(64, 64), kind().fill(activations(96, 64), both=False), x)


@KINDS
def test_not_a_number_stays_one(kind: type[PackedTokens]) -> None:
    x = activations(40, 64)
    x[3, 5] = float("nan")
    total = torch.zeros(64, 64)
    token_sums.add_lower(total, kind().fill(x))
    assert total[5].isnan().all() and total[:5, :5].isfinite().all()
