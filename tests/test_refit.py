"""What is stored in place of a fitted weight, and what a linear still owes: by hand and bit for bit."""

import pytest
import torch

from hubplugin.methods import qep


def problem(seed: int = 0, outputs: int = 6, inputs: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator).bfloat16().float(), x.T @ x


def test_a_row_whose_fit_gains_less_than_rounding_costs_keeps_its_bits() -> None:
    plain, h = problem()
    target = plain.clone()
    target[0] += 1e-5  # far below what bfloat16 rounds away
    target[3] += 0.5
    made = qep.stored(target, plain, h, torch.bfloat16)
    for row in (0, 1, 2, 4, 5):
        assert torch.equal(made[row].view(torch.int32), plain[row].view(torch.int32)), row
    assert torch.equal(made[3], target[3].bfloat16().float()) and not torch.equal(made[3], plain[3])


def test_the_line_lies_where_the_gain_is_what_rounding_costs() -> None:
    plain, h = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    step = 2.0**-7  # between bfloat16 numbers from 1 to 2
    for moved, stays in ((0.4 * step, True), (0.6 * step, False)):  # rounds back; rounds on, and is nearer there
        made = qep.stored(plain + torch.tensor([[moved, 0.0]]), plain, h, torch.bfloat16)
        assert torch.equal(made, plain) == stays
    # a coordinate that gains little, beside one that rounding costs more: the row as a whole decides
    target = plain + torch.tensor([[0.1 * step, 1.0]])
    assert qep.stored(target, plain, h, torch.bfloat16).tolist() == [[1.0, 1.0]]


def test_a_fit_that_rounding_spoils_is_not_stored() -> None:
    plain, step = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 2.0**-7
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.001]])  # two inputs that cancel where both move alike
    target = plain + step * torch.tensor([[0.6, 0.4], [1.0, -1.0]])
    made = qep.stored(target, plain, opposed, torch.bfloat16)
    # the first row's fit is worth (0.6 - 0.4)^2, and rounding it would cost (0.4 + 0.4)^2; the second is no rounding
    assert torch.equal(made[0], plain[0]) and torch.equal(made[1], target[1])
    assert not torch.equal(target.bfloat16().float()[0], plain[0])


def test_float32_stores_every_fit() -> None:
    plain, h = problem()
    target = plain + torch.randn_like(plain) * 1e-4
    assert torch.equal(qep.stored(target, plain, h, torch.float32), target)


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_owed_where_columns_are_gone_is_that_of_the_columns_that_stay(ends: bool) -> None:
    x, base = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), torch.tensor([[1.0, 1.0, 3.0], [2.0, 1.0, -1.0]])
    weight = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]])
    correction = qep.TargetCorrection(weight, ends, means=True)
    correction.add(x, base)
    # base - x is (0, -1, 0) and (2, 0, 0); W of it is (-2, 1) and (2, 0)
    whole = torch.tensor([[-2.0, -4.0 + 2.0, -6.0 - 2.0], [1.0, 2.0, 3.0]])
    assert torch.allclose(correction.cross_term(correction.sum()), whole)
    correction = correction.on_columns(torch.tensor([0, 2]))
    assert torch.allclose(correction.cross_term(correction.sum()), whole[:, [0, 2]])


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("columns", [None, [0, 2]])
def test_what_is_owed_on_average_by_hand(ends: bool, columns: list[int] | None) -> None:
    generator = torch.Generator().manual_seed(3)
    x, base, lost = (torch.randn(7, size, generator=generator).double() for size in (3, 3, 2))
    weight, made = torch.randn(2, 3, generator=generator).double(), torch.randn(2, 3, generator=generator).double()
    correction = qep.TargetCorrection(weight, ends, means=True)
    for part in (slice(0, 4), slice(4, 7)):
        correction.add(x[part], base[part], lost[part] if ends else None)
    kept = None if columns is None else torch.tensor(columns)
    made, seen = (made, x) if columns is None else (made[:, columns], x[:, columns])
    if kept is not None:
        correction = correction.on_columns(kept)
    expected = (base @ weight.T - seen @ made.T + (lost if ends else 0)).sum(dim=0)
    assert torch.allclose(correction.on_average(made, kept), expected)
    assert correction.tokens == 7
