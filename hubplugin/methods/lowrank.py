"""Low-rank factors of a weight under the second moments of its input: SVD-LLM (Wang et al., arXiv 2403.07378).

W' = B A has the least tr((W-W') H (W-W')^T) of all matrices of its rank: the singular value decomposition of W S with
H + damping = S S^T, cut off (docs/maths.md, Low rank). Linears that read the same input may be stacked by rows and then
share A. Weight in, factors out: knows no module, no file and no budget.
"""

import torch
from torch import Tensor

from hubplugin.checkpoint.encodings import LowRank as Factors
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.methods import linear_algebra
from hubplugin.methods.base import Compressed
from hubplugin.methods.linear_algebra import Prepared

RIDGE = 1e-6  # of a matrix with a diagonal of ones, near to the identity: for rows of A that are nothing but rounding


def prepare(hessian: Tensor, settings: LowRank) -> Prepared:
    """Factor second moments [inputs, inputs] of the dtype to compute in; linears that share an input share it."""
    return linear_algebra.prepare(hessian, settings.damp)


def spectrum(weight: Tensor, prepared: Prepared) -> Tensor:
    """Squared singular values [min(outputs, inputs)] of W S, greatest first: what rank r leaves out is the sum of all
    but the first r, and the sum of all is tr(W (H + damping) W^T)."""
    _, whitened = _whitened(weight, prepared)
    energies: Tensor = torch.linalg.eigvalsh(_gram(whitened))
    return energies.flip(0).clamp(min=0)


def compress(
    weight: Tensor,
    hessian: Tensor,
    settings: LowRank,
    prepared: Prepared | None = None,
    *,
    rank: int,
    stored: torch.dtype = torch.float32,
) -> Compressed:
    """Factor a weight [outputs, inputs] into B [outputs, rank] and A [rank, inputs] under second moments.

    Both are rounded to `stored`; B is fitted to the rounded A by least squares. Each row of A is as long as its column
    of B, so that neither leaves the range of half precision. Weights of inputs never excited become 0. `prepared` is
    `prepare`'s for the same second moments and damping, if it is known already. Computes in float32, or float64 where
    the weight is float64. Raises ValueError for a rank that is none.
    """
    work = weight if weight.dtype == torch.float64 else weight.float()
    prepared = prepared or prepare(hessian.to(work.dtype), settings)
    made = factors(work, prepared, rank, stored)
    dense = made.dense()
    return Compressed(
        weight=dense,
        encoding=made,
        loss=linear_algebra.relative_loss(work, dense.to(work.dtype), prepared.alive),
        damp=prepared.factor.damp,
        fallback=prepared.factor.fallback,
        dead_inputs=int(prepared.dead.sum()),
    )


def factors(weight: Tensor, prepared: Prepared, rank: int, stored: torch.dtype) -> Factors:
    """B and A of a weight [outputs, inputs], in the dtype to compute in, as `compress` describes them."""
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"a matrix of {list(weight.shape)} has no factors of rank {rank}")
    alive, whitened = _whitened(weight, prepared)
    b, a = _balanced(*_cut_off(alive, whitened, prepared, rank))
    rounded = a.to(stored)
    if stored.itemsize < 4:
        b = _fitted(whitened, rounded.to(weight.dtype) @ _root(prepared))
    return Factors(b.to(stored), rounded)


def fitted(weight: Tensor, a: Tensor, prepared: Prepared) -> Tensor:
    """The B [outputs, rank] with the least loss of B A against a weight [outputs, inputs], for A [rank, inputs]."""
    _, whitened = _whitened(weight, prepared)
    return _fitted(whitened, a @ _root(prepared))


def _root(prepared: Prepared) -> Tensor:
    """S [inputs, inputs], upper triangular, with H + damping = S S^T."""
    return prepared.factor.unit_upper * prepared.factor.diagonal.sqrt()


def _whitened(weight: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
    """W without weights of dead inputs, and W S."""
    alive = weight.masked_fill(prepared.dead, 0)
    return alive, alive @ _root(prepared)


def _gram(whitened: Tensor) -> Tensor:
    """The products of the rows of W S with each other, or of its columns: whichever are fewer."""
    return whitened @ whitened.T if len(whitened) <= whitened.shape[1] else whitened.T @ whitened


def _cut_off(weight: Tensor, whitened: Tensor, prepared: Prepared, rank: int) -> tuple[Tensor, Tensor]:
    """B and A with B A S = W S on its first `rank` singular vectors.

    With left ones U, W' = U U^T W needs no inverse of S; with right ones V, W' = W S V V^T S^-1. The smaller of both
    eigenproblems is solved.
    """
    _, vectors = torch.linalg.eigh(_gram(whitened))
    first = vectors[:, -rank:].flip(1)
    if len(weight) <= weight.shape[1]:
        return first, first.T @ weight
    a: Tensor = torch.linalg.solve_triangular(_root(prepared), first.T, upper=True, left=False)
    return whitened @ first, a


def _balanced(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """The same product; every row of A as long as its column of B."""
    scale = (b.norm(dim=0) / a.norm(dim=1)).sqrt()
    scale = torch.where(torch.isfinite(scale) & (scale > 0), scale, torch.ones_like(scale))
    return b / scale, a * scale[:, None]


def _fitted(whitened: Tensor, basis: Tensor) -> Tensor:
    """The B [outputs, rank] with the least |W S - B A S|^2, for W S [outputs, inputs] and A S [rank, inputs]."""
    length = basis.norm(dim=1, keepdim=True)
    unit = basis / torch.where(length > 0, length, torch.ones_like(length))
    square = unit @ unit.T
    square.diagonal().add_(RIDGE)
    solution = linear_algebra.solve(square, whitened @ unit.T, "low-rank factors")
    return solution / torch.where(length > 0, length, torch.ones_like(length)).T
