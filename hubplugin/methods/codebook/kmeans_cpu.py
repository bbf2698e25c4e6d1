"""k-means of single rows compiled for CPUs: the optimum, by dynamic programming over where each cluster ends.

In one dimension a cluster is a run of the sorted weights. With the best error of the first weights in k runs known,
that in k + 1 follows, and the start of a best last run never moves back as more weights are taken in, so that halving
finds all of them in log(inputs) steps (Wang, Song, 2011; Grønlund et al., arXiv 1701.07204). Knows prefix sums; no
weights of a model.
"""

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread


def optimum(masses: Tensor, moments: Tensor, centroids: Tensor) -> Tensor:
    """Centroids float64 [rows, count], ascending, of the least error for n weights in ascending order.

    `masses` and `moments` [rows, n + 1] are the sums of h and of h w before each. Where a row has fewer weights than
    `centroids`, which else are not read, these stand in for the clusters that stay empty.
    """
    found = centroids.clone()
    arrays = [tensor.contiguous().numpy() for tensor in (masses, moments, found)]
    spread(_rows, len(masses), *arrays)
    return torch.sort(found, dim=1).values


@compiled
def _kept(masses, moments, first, last):  # type: ignore[no-untyped-def]
    """How much of the squared weights a run keeps: its squared moment over its mass."""
    mass = masses[last] - masses[first]
    if mass <= 0:
        return 0.0
    moment = moments[last] - moments[first]
    return moment * moment / mass


@compiled
def _rows(first, last, masses, moments, centroids):  # type: ignore[no-untyped-def]
    count, inputs = centroids.shape[1], masses.shape[1] - 1
    clusters = min(count, inputs)
    best, longer = np.empty(inputs + 1), np.empty(inputs + 1)
    starts = np.zeros((clusters, inputs + 1), np.int32)
    stack = np.empty((4 * 64, 4), np.int64)
    for row in range(first, last):
        own_masses, own_moments = masses[row], moments[row]
        for end in range(inputs + 1):
            best[end] = _kept(own_masses, own_moments, 0, end)
        for cluster in range(1, clusters):
            _lengthen(own_masses, own_moments, best, longer, starts[cluster], cluster, stack)
            best, longer = longer, best
        end = inputs
        for cluster in range(clusters - 1, -1, -1):
            start = starts[cluster, end] if cluster else 0
            mass = own_masses[end] - own_masses[start]
            if mass > 0:
                centroids[row, cluster] = (own_moments[end] - own_moments[start]) / mass
            end = start


@compiled
def _lengthen(masses, moments, best, longer, starts, cluster, stack):  # type: ignore[no-untyped-def]
    """`longer` and `starts` for each number of weights from `cluster` + 1 on: one run more than in `best`."""
    inputs = len(best) - 1
    longer[: cluster + 1] = best[: cluster + 1]  # no more runs than weights
    for end in range(cluster + 1):
        starts[end] = end
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = cluster + 1, inputs, cluster, inputs - 1
    filled = 1
    while filled:
        filled -= 1
        low, high, least, most = stack[filled, 0], stack[filled, 1], stack[filled, 2], stack[filled, 3]
        if low > high:
            continue
        middle = (low + high) // 2
        found, start = -1.0, least
        for candidate in range(least, min(most, middle - 1) + 1):
            kept = best[candidate] + _kept(masses, moments, candidate, middle)
            if kept > found:
                found, start = kept, candidate
        longer[middle], starts[middle] = found, start
        stack[filled, 0], stack[filled, 1], stack[filled, 2], stack[filled, 3] = low, middle - 1, least, start
        filled += 1
        stack[filled, 0], stack[filled, 1], stack[filled, 2], stack[filled, 3] = middle + 1, high, start, most
        filled += 1
