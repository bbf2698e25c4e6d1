"""Codebooks of single rows: the centroids with the least sum_j h_j (w_j - c(w_j))^2.

On CPUs the optimum (`kmeans_cpu.py`), on devices a local one by Lloyd's iterations, in plain torch: a cluster is a run
of the sorted weights, prefix sums give every centroid and a search every boundary, for all rows at once. Knows numbers
and what is stored of them; no second moments beyond a weight per input.
"""

import torch
from torch import Tensor

from hubplugin.methods.codebook import kmeans_cpu

ITERATIONS = 60  # of Lloyd's, at most: more gain nothing, only another start would (docs/maths.md, Codebooks)
ROWS = 512  # rows that are clustered at a time, in float64
LARGEST = 60000.0  # that float16 holds and bfloat16 does not round beyond it


def storable(centroids: Tensor) -> Tensor:
    """The nearest values that float16 and bfloat16 both represent; dtype unchanged."""
    return centroids.clamp(-LARGEST, LARGEST).to(torch.bfloat16).to(torch.float16).to(centroids.dtype)


def fit(weight: Tensor, importance: Tensor, count: int) -> Tensor:
    """`count` centroids for every row: weight [rows, n], importance [n] -> ascending [rows, count], as storable."""
    cluster = optimum if weight.device.type == "cpu" else local_optimum
    parts = [weight[first : first + ROWS] for first in range(0, len(weight), ROWS)]
    return storable(torch.cat([cluster(part, importance, count) for part in parts]).to(weight.dtype))


def optimum(weight: Tensor, importance: Tensor, count: int) -> Tensor:
    """The centroids float64 [rows, count] of the least error, of rows on a CPU."""
    ordered, mass, masses, moments = _sums(weight, importance)
    return kmeans_cpu.optimum(masses, moments, _quantiles(ordered, mass, count))


def local_optimum(weight: Tensor, importance: Tensor, count: int) -> Tensor:
    """Centroids float64 [rows, count] of an error that no small change of them lowers.

    Lloyd's iterations begin from two starts, of which each row keeps the better: centroids of equal importance, and
    centroids as dense as the cube root of the weights' density, which is best for many of them (Panter, Dite, 1951).
    """
    ordered, mass, masses, moments = _sums(weight, importance)
    (one, kept), (other, kept_too) = (
        _lloyd(ordered, masses, moments, _quantiles(ordered, density, count))
        for density in (mass, _companded(ordered, mass))
    )
    return torch.where(kept_too > kept, other, one)


def _sums(weight: Tensor, importance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sorted weights and their importance [rows, n], the sums of h and of h w before each [rows, n + 1]; in float64."""
    ordered, order = weight.double().contiguous().sort(dim=1)
    mass = importance.double()[order]
    zero = mass.new_zeros(len(weight), 1)
    masses = torch.cat((zero, mass.cumsum(dim=1)), dim=1)
    return ordered, mass, masses, torch.cat((zero, (mass * ordered).cumsum(dim=1)), dim=1)


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


def _lloyd(ordered: Tensor, masses: Tensor, moments: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending centroids [rows, count] after the iterations, and how much of the squared weights they keep [rows, 1].

    A centroid that gets no weight stays where it is.
    """
    rows, inputs = ordered.shape
    first = torch.zeros(rows, 1, dtype=torch.int64, device=ordered.device)
    last = torch.full_like(first, inputs)
    for _ in range(ITERATIONS):
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
