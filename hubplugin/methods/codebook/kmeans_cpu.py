"""Lloyd's iterations compiled for CPUs: same signature and same answer as `kmeans.lloyd`, row by row.

An iteration is so little work that in plain torch its calls would take most of the time. Knows prefix sums; no weights
of a model.
"""

import numpy as np
import torch
from torch import Tensor

from hubplugin.kernels.threads import compiled, spread


def lloyd(
    ordered: Tensor, masses: Tensor, moments: Tensor, centroids: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Centroids after the iterations, and what they keep; see `kmeans.lloyd`."""
    moved, kept = centroids.clone(), torch.empty(len(centroids), 1, dtype=centroids.dtype)
    arrays = [tensor.contiguous().numpy() for tensor in (ordered, masses, moments, moved, kept)]
    spread(_rows, len(ordered), *arrays, iterations)
    return moved.sort(dim=1).values, kept


@compiled
def _rows(first, last, ordered, masses, moments, centroids, kept, iterations):  # type: ignore[no-untyped-def]
    count = centroids.shape[1]
    bounds = np.zeros(count + 1, np.int64)
    for row in range(first, last):
        values, own = ordered[row], centroids[row]
        bounds[count] = len(values)
        for _ in range(iterations):
            changed = False
            for place in range(1, count):
                between = (own[place - 1] + own[place]) / 2
                bounds[place] = np.searchsorted(values, between, side="right")
            total = 0.0
            for place in range(count):
                low, high = bounds[place], bounds[place + 1]
                mass = masses[row, high] - masses[row, low]
                if mass > 0:
                    moment = moments[row, high] - moments[row, low]
                    moved = moment / mass
                    changed = changed or moved != own[place]
                    own[place] = moved
                    total += moment * moved
            kept[row, 0] = total
            if not changed:
                break
