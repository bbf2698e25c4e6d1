"""Codebooks of single rows: the centroids with the least sum_j h_j (w_j - c(w_j))^2, by Lloyd's iterations.

In one dimension a cluster is a run of the sorted weights, so that prefix sums give every centroid and a search gives
every boundary: an iteration costs centroids x log(inputs) for a row, however many inputs it has. Knows numbers and what
is stored of them; no second moments beyond a weight per input.
"""

import torch
from torch import Tensor

from hubplugin.methods.codebook import kmeans_cpu

ITERATIONS = 60  # at most; what they still gain after that is below a thousandth (docs/maths.md, Codebooks)
ROWS = 512  # rows that are clustered at a time, in float64
LARGEST = 60000.0  # that float16 holds and bfloat16 does not round beyond it


def storable(centroids: Tensor) -> Tensor:
    """The nearest values that float16 and bfloat16 both represent; dtype unchanged."""
    return centroids.clamp(-LARGEST, LARGEST).to(torch.bfloat16).to(torch.float16).to(centroids.dtype)


def fit(weight: Tensor, importance: Tensor, count: int) -> Tensor:
    """`count` centroids for every row: weight [rows, n], importance [n] -> ascending [rows, count], as storable.

    Lloyd's iterations from two starts, of which each row keeps the better: centroids of equal importance, and centroids
    as dense as the cube root of the weights' density, which is best for many of them (Panter, Dite, 1951). A centroid
    that gets no weight stays where it is.
    """
    parts = [
        _fit(weight[first : first + ROWS].double(), importance.double(), count) for first in range(0, len(weight), ROWS)
    ]
    return storable(torch.cat(parts).to(weight.dtype))


def _fit(weight: Tensor, importance: Tensor, count: int) -> Tensor:
    ordered, order = weight.contiguous().sort(dim=1)
    mass = importance[order]
    zero = mass.new_zeros(len(weight), 1)
    masses = torch.cat((zero, mass.cumsum(dim=1)), dim=1)
    moments = torch.cat((zero, (mass * ordered).cumsum(dim=1)), dim=1)
    iterate = lloyd if weight.is_cuda else kmeans_cpu.lloyd
    found = [
        iterate(ordered, masses, moments, _quantiles(ordered, density, count), ITERATIONS)
        for density in (mass, _companded(ordered, mass))
    ]
    (one, kept), (other, kept_too) = found
    return torch.where(kept_too > kept, other, one)


def _companded(ordered: Tensor, mass: Tensor) -> Tensor:
    """The mass of each sorted weight under a density that is the cube root of theirs: m^(1/3) gap^(2/3)."""
    gaps = ordered.diff(dim=1)
    gaps = (torch.cat((gaps[:, :1], gaps), dim=1) + torch.cat((gaps, gaps[:, -1:]), dim=1)) / 2
    return mass ** (1 / 3) * gaps ** (2 / 3)


def _quantiles(ordered: Tensor, density: Tensor, count: int) -> Tensor:
    """`count` of the sorted weights, with the same density between each two of them."""
    reached = density.cumsum(dim=1)
    shares = (torch.arange(count, dtype=ordered.dtype, device=ordered.device) + 0.5) / count
    places = torch.searchsorted(reached, (reached[:, -1:] * shares).contiguous())
    return ordered.gather(1, places.clamp(max=ordered.shape[1] - 1))


def lloyd(
    ordered: Tensor, masses: Tensor, moments: Tensor, centroids: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Ascending centroids [rows, count] after the iterations, and how much of the squared weights they keep [rows, 1].

    `ordered` [rows, n] are ascending weights; `masses`, `moments` [rows, n + 1] the sums of h and of h w before each.
    """
    rows, inputs = ordered.shape
    first = torch.zeros(rows, 1, dtype=torch.int64, device=ordered.device)
    last = torch.full_like(first, inputs)
    for _ in range(iterations):
        between = ((centroids[:, 1:] + centroids[:, :-1]) / 2).contiguous()
        bounds = torch.cat((first, torch.searchsorted(ordered, between, right=True), last), dim=1)
        mass, moment = masses.gather(1, bounds).diff(dim=1), moments.gather(1, bounds).diff(dim=1)
        filled = mass > 0
        moved = torch.where(filled, moment / mass.clamp(min=torch.finfo(mass.dtype).tiny), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    kept = torch.where(filled, moment * centroids, 0).sum(dim=1, keepdim=True)
    return centroids.sort(dim=1).values, kept
