"""The Triton sweep against the reference: in Triton's interpreter everywhere, on a CUDA device where there is one."""

from typing import Any

import pytest
import torch
import triton_cases
from torch import Tensor
from triton_cases import SWEEPS, Case

from hubplugin.checkpoint import encodings
from hubplugin.methods.gptq import grid, loop
from hubplugin.methods.gptq.loop import Swept


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("triton")
    return triton_cases.interpreted("sweeps", tmp_path_factory.mktemp("triton"))


def unexplained(case: Case, got: Swept, want: Swept) -> list[str]:
    """Rows whose codes or scales part at a place that is no tie, by arithmetic in float64.

    Up to where two sweeps of a row part they made the same errors, so both saw the same target there: it must lie
    halfway between two codes; or the two grids must cost the same, or be two roundings of one candidate.
    """
    columns, factor, importance = triton_cases.problem(case)
    group, upper = case.spec.group_size, factor.unit_upper.double()
    scales, zeros = (found.repeat_interleave(group, dim=0) for found in (want.scales, want.zeros))
    errors = columns.double() - encodings.values(want.codes, scales, zeros).double()
    wrong = []
    for row in range(case.outputs):
        column = first(got.codes[:, row] != want.codes[:, row], case.inputs)
        grids = (got.scales[:, row] != want.scales[:, row]) | (got.zeros[:, row] != want.zeros[:, row])
        start = group * first(grids, len(grids))
        if start <= column and start < case.inputs:
            inside = slice(start, start + group)
            feedback = upper[:start, inside].T @ errors[:start, row]
            updated = loop.fully_updated(
                columns[inside, row : row + 1].double(), feedback[:, None], upper[inside, inside]
            )
            at = start // group, row
            pair = [(found.scales[at].double()[None], found.zeros[at].double()[None]) for found in (got, want)]
            costs = [grid._error(updated.T, *each, importance[inside].double(), case.spec) for each in pair]
            if not torch.allclose(*costs, rtol=1e-5) and not borderline(updated.flatten(), pair, case.spec):
                wrong.append(f"row {row}: scale of the group at {start}")
        elif column < case.inputs:
            target = columns[column, row].double() + upper[:column, column] @ errors[:column, row]
            if not halfway(target / want.scales[column // group, row].double()):
                wrong.append(f"row {row}: column {column}")
    return wrong


def first(where: Tensor, none: int) -> int:
    """The first place that is true, or `none`."""
    places = where.nonzero()
    return int(places[0]) if len(places) else none


def halfway(level: Tensor) -> bool:
    """Whether any level lies between two codes, as well as float32 can tell."""
    return bool(((level - level.floor() - 0.5).abs() <= 1e-3).any())


def borderline(weight: Tensor, pair: list[tuple[Tensor, Tensor]], spec: grid.Spec) -> bool:
    """Whether a candidate of weight [n] lies between two scales, or its zero between two zeros."""
    shares = torch.tensor((1.0, *spec.shares), dtype=torch.float64)
    low, high = weight.min().clamp(max=0), weight.max().clamp(min=0)
    full = weight.abs().max() / (spec.middle - 0.5) if spec.symmetric else (high - low) / spec.top
    (scale, _), (other, _) = pair
    if bool(scale != other):
        return bool(((full * shares / ((scale + other) / 2) - 1).abs() <= 1e-5).any())
    return halfway(-low * shares / scale)


def check(case: Case, found: tuple[Tensor, Tensor, Tensor]) -> None:
    got = Swept(*found)
    columns, factor, importance = triton_cases.problem(case)
    want = loop.sweep(columns, factor, importance, case.spec)
    assert got.codes.dtype == torch.uint8 and got.scales.dtype == torch.float32
    assert unexplained(case, got, want) == []
    same = (got.codes == want.codes).all(dim=0).float().mean()
    assert same >= 0.9  # ties are rare


@pytest.mark.parametrize("name", SWEEPS)
def test_codes_scales_and_zeros_are_the_references(name: str, answers: dict[str, Any]) -> None:
    check(SWEEPS[name], answers[name])


def test_a_wrong_code_is_not_taken_for_a_tie() -> None:
    case = SWEEPS["2-bit, groups of 32, signed"]
    want = loop.sweep(*triton_cases.problem(case), case.spec)
    codes, scales = want.codes.clone(), want.scales.clone()
    codes[70, 5] = (codes[70, 5] + 1) % 4
    assert unexplained(case, Swept(codes, want.scales, want.zeros), want) == ["row 5: column 70"]
    scales[2, 6] *= 1.5
    assert unexplained(case, Swept(want.codes, scales, want.zeros), want) == ["row 6: scale of the group at 64"]


def test_only_neighbouring_roundings_of_one_candidate_are_borderline() -> None:
    spec = grid.Spec(4, 64, shares=(0.5,))
    zero = torch.full((1,), 8.0, dtype=torch.float64)
    below, above = (torch.tensor([value], dtype=torch.float64) for value in (1.0, 1.0 + 2.0**-7))
    pair = [(below, zero), (above, zero)]
    tie = torch.tensor([7.5 * (1 + 2.0**-8), -1.0], dtype=torch.float64)
    assert borderline(tie, pair, spec) and borderline(2 * tie, pair, spec)
    assert not borderline(1.001 * tie, pair, spec)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scales_are_rounded_as_the_checkpoint_stores_them(sign: float, answers: dict[str, Any]) -> None:
    assert torch.equal(answers[f"scales {sign}"], grid.storable(triton_cases.awkward_weights() / 7.5 * sign))


@pytest.mark.slow
@pytest.mark.parametrize("group", [32, 128])
def test_the_row_kernel_compiles_for_hopper_within_its_shared_memory(group: int) -> None:
    pytest.importorskip("triton")
    from hubplugin.methods.gptq import loop_cuda, loop_triton

    fixed = {"GROUP": group, "FIT": True, "SYMMETRIC": True, "TOP": 15, "ROWS": loop_cuda.ROWS}
    pointers = ("columns", "feedback", "upper", "transfer", "importance", "shares", "scales", "zeros", "errors")
    kinds = dict.fromkeys(pointers, "*fp32") | {"codes": "*u8"}
    options = {"num_warps": loop_cuda.WARPS, "num_stages": 1}
    made = triton_cases.compiled_for_hopper(loop_triton.block_rows, kinds, fixed, options)
    assert made.metadata.shared <= 227 * 1024 // 2  # two programs on a multiprocessor


@pytest.mark.gpu
@pytest.mark.parametrize("name", SWEEPS)
def test_codes_on_the_device_are_the_references(name: str) -> None:
    check(SWEEPS[name], on_device(SWEEPS[name]))


@pytest.mark.gpu
def test_codes_on_the_device_of_a_linear_of_real_size() -> None:
    check(case := Case(2048, 1000, grid.Spec(4, 128, shares=grid.shrinking(4, 128))), on_device(case))


@pytest.mark.gpu
def test_feedback_is_in_full_precision_whatever_the_caller_set() -> None:
    settings = torch.backends.cuda.matmul
    found, settings.fp32_precision = settings.fp32_precision, "tf32"
    try:
        check(case := Case(1024, 100, grid.Spec(4, 128)), on_device(case))
        assert settings.fp32_precision == "tf32"
    finally:
        settings.fp32_precision = found


def on_device(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    from hubplugin.methods.gptq import loop_cuda
    from hubplugin.methods.linear_algebra import Factor

    columns, factor, importance = triton_cases.problem(case)
    factor = Factor(factor.unit_upper.cuda(), factor.diagonal.cuda(), factor.damp, factor.fallback)
    found = loop_cuda.sweep(columns.cuda(), factor, importance.cuda(), case.spec)
    return found.codes.cpu(), found.scales.cpu(), found.zeros.cpu()
