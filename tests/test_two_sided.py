"""GPTQ with errors fed from output to output: what it minimises, and the compiled sweep against the plain one."""

import pytest
import torch
from torch import Tensor

from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import gptq, grid, loop, two_sided, two_sided_cpu
from hubplugin.methods.gptq.two_sided import OutputFactor, Stacked

SPEC = grid.Spec(bits=3, group_size=32, shares=grid.shrinking(3, 32))


def moments(size: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Second moments [size, size] of correlated samples."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=generator, dtype=dtype)
    samples = torch.randn(4 * size, size, generator=generator, dtype=dtype) @ mixing
    return samples.T @ samples / len(samples)


def weights(outputs: int, inputs: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(9), dtype=dtype)


def settings(**changed: object) -> Gptq:
    return Gptq.model_validate({"method": "gptq", "bits": 3, "group_size": 32, **changed})


def test_an_error_is_weighed_by_both_sides() -> None:
    """Codes of two outputs and one input, by hand: the second output makes up for the error of the first."""
    across = OutputFactor(torch.tensor([0, 1]), torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=torch.float64))
    columns = torch.tensor([[1.4, 0.4]], dtype=torch.float64)
    factor = linear_algebra.factor(torch.ones(1, 1, dtype=torch.float64), 0.01)
    spec = grid.Spec(bits=2, group_size=1, symmetric=False)
    fitted = grid.fit(columns.T, torch.ones(1, dtype=torch.float64), spec)
    swept = two_sided.sweep(columns, factor, torch.ones(1, dtype=torch.float64), spec, Stacked.of([across]))
    scale, zero = (tensor[0] for tensor in fitted)
    first = scale * ((1.4 / scale + zero).round().clamp(0, 3) - zero)
    assert float(swept.codes[0, 0]) == float((1.4 / scale + zero).round().clamp(0, 3))
    aimed = 0.4 + 0.5 * (1.4 - first)
    scale, zero = (tensor[1] for tensor in fitted)
    assert float(swept.codes[0, 1]) == float((aimed / scale + zero).round().clamp(0, 3))


def test_outputs_that_do_not_matter_to_each_other_are_quantized_as_without() -> None:
    weight, hessian = weights(12, 64), moments(64, 0)
    alone = gptq.compress(weight, hessian, settings())
    across = [two_sided.factored(torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))) for _ in range(2)]
    beside = gptq.compress(weight, hessian, settings(), outputs=across)
    assert torch.equal(beside.encoding.codes, alone.encoding.codes)
    assert torch.equal(beside.encoding.scales, alone.encoding.scales)


def test_the_loss_of_both_sides_falls() -> None:
    weight, hessian = weights(48, 64), moments(64, 0)
    outputs = torch.eye(48, dtype=torch.float64) / 10 + 1  # most of a gradient is common to all outputs
    across = two_sided.factored(outputs)
    alone, beside = (gptq.compress(weight, hessian, settings(), outputs=some) for some in ((), [across]))

    def loss(made: Tensor) -> float:
        error = weight - made
        damped = linear_algebra.damped(outputs, two_sided.DAMP)
        return float(torch.trace(damped @ error @ linear_algebra.damped(hessian, 0.01) @ error.T))

    assert loss(beside.weight) < 0.9 * loss(alone.weight)


def test_the_loss_is_the_sum_of_what_was_rounded() -> None:
    """tr(H_O E H E^T) = sum D_k D_i R^2, with R what each code was off what it was aimed at."""
    weight, hessian, outputs = weights(8, 32), moments(32, 0), moments(8, 1)
    factor = linear_algebra.factor(hessian, 0.01)
    across = linear_algebra.factor(outputs, two_sided.DAMP)
    stacked = Stacked.of([OutputFactor(torch.arange(8), across.unit_upper)])
    swept = two_sided.sweep(weight.T.contiguous(), factor, hessian.diagonal(), SPEC, stacked)
    dense = swept.scales.repeat_interleave(32, 0) * (swept.codes - swept.zeros.repeat_interleave(32, 0))
    error = weight.T - dense  # [inputs, outputs]
    off = across.unit_upper.T @ (factor.unit_upper.T @ error).T  # [outputs, inputs]
    assert bool((off.abs() <= swept.scales.T * 0.5001).float().mean() > 0.9)  # but where the grid ends
    total = float((across.diagonal[:, None] * factor.diagonal * off**2).sum())
    left, right = linear_algebra.damped(outputs, two_sided.DAMP), linear_algebra.damped(hessian, 0.01)
    assert total == pytest.approx(float(torch.trace(left @ error.T @ right @ error)))


@pytest.mark.parametrize("group", [32, 128, 256])
@pytest.mark.parametrize("outputs", [(40,), (200, 72, 72)])
def test_the_compiled_sweep_gives_the_same_codes(group: int, outputs: tuple[int, ...]) -> None:
    inputs = 256
    spec = grid.Spec(bits=4, group_size=group, shares=grid.shrinking(4, group))
    hessian = moments(inputs, 0).float()
    factor = linear_algebra.factor(hessian, 0.01)
    stacked = Stacked.of([two_sided.factored(moments(size, number).float()) for number, size in enumerate(outputs)])
    columns = weights(sum(outputs), inputs).float().T.contiguous()
    plain, fast = (
        each.sweep(columns, factor, hessian.diagonal(), spec, stacked) for each in (two_sided, two_sided_cpu)
    )
    same = (plain.codes == fast.codes).float().mean(dim=0)
    # a tie that falls the other way changes what all later outputs of its linear are aimed at: most outputs see none
    assert float((same > 0.99).float().mean()) > 0.8
    assert float(same.mean()) > 0.9


def test_a_stack_is_its_linears() -> None:
    """No error of one linear of a stack reaches another."""
    hessian, sizes = moments(64, 0), (24, 8)
    across = [two_sided.factored(moments(size, size)) for size in sizes]
    weight = weights(32, 64)
    whole = gptq.compress(weight, hessian, settings(), outputs=across)
    apart = [
        gptq.compress(part, hessian, settings(), outputs=[factor])
        for part, factor in zip(weight.split(sizes), across, strict=True)
    ]
    assert torch.equal(whole.encoding.codes, torch.cat([part.encoding.codes for part in apart]))


def test_gradients_that_were_never_there_change_nothing() -> None:
    weight, hessian = weights(16, 64), moments(64, 0)
    alone = gptq.compress(weight, hessian, settings())
    silent = gptq.compress(weight, hessian, settings(), outputs=[two_sided.factored(torch.zeros(16, 16).double())])
    assert torch.equal(silent.encoding.codes, alone.encoding.codes)


def test_columns_are_visited_in_their_own_order_and_outputs_in_theirs() -> None:
    """With act_order and falling gradients both sides are permuted, and all comes back to its place."""
    weight, hessian, outputs = weights(16, 64), moments(64, 0), moments(16, 1)
    made = gptq.compress(weight, hessian, settings(), outputs=[two_sided.factored(outputs)])
    turned = torch.arange(15, -1, -1)
    other = gptq.compress(weight[turned], hessian, settings(), outputs=[two_sided.factored(outputs[turned][:, turned])])
    assert torch.equal(made.encoding.codes[turned], other.encoding.codes)


def test_the_plain_sweep_with_a_unit_factor_is_the_one_sided_one() -> None:
    weight, hessian = weights(8, 64), moments(64, 0)
    factor = linear_algebra.factor(hessian, 0.01)
    columns = weight.T.contiguous()
    stacked = Stacked.of([OutputFactor(torch.arange(8), torch.eye(8, dtype=torch.float64))])
    both = [
        loop.sweep(columns, factor, hessian.diagonal(), SPEC),
        two_sided.sweep(columns, factor, hessian.diagonal(), SPEC, stacked),
    ]
    assert torch.equal(both[0].codes, both[1].codes)
