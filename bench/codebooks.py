"""How far the k-means of `method: codebook`, rounded to what is stored, and Lloyd's iterations are from the optimum.

    python bench/codebooks.py FOLDER --rows 16

Takes evenly spaced rows of every linear of the first, middle and last block of a dense Llama-like folder, all inputs
weighing the same, and prints for 4, 3 and 2 bits the summed squared errors over the least possible one, which a plain
dynamic programme finds, with the milliseconds per row that each takes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numba import njit
from torch import Tensor

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.methods.codebook import kmeans


@njit(cache=True)
def least(ordered, count):  # type: ignore[no-untyped-def]
    """The least squared error of `count` runs of ascending float64 values: dynamic programming over where each ends."""
    inputs = len(ordered)
    sums, squares = np.zeros(inputs + 1), np.zeros(inputs + 1)
    for place in range(inputs):
        sums[place + 1] = sums[place] + ordered[place]
        squares[place + 1] = squares[place] + ordered[place] ** 2
    best = np.full(inputs + 1, np.inf)
    best[0] = 0.0
    for _ in range(count):
        longer = np.full(inputs + 1, np.inf)
        longer[0] = 0.0
        for last in range(1, inputs + 1):
            for first in range(last):
                inside = squares[last] - squares[first] - (sums[last] - sums[first]) ** 2 / (last - first)
                longer[last] = min(longer[last], best[first] + inside)
        best = longer
    return best[inputs]


def rows_of(folder: Path, count: int) -> list[Tensor]:
    """Some rows of every linear of three blocks, each float32 [count, inputs]."""
    view = DenseView(folder)
    layers = view.config["num_hidden_layers"]
    prefixes = [f"model.layers.{index}." for index in sorted({0, layers // 2, layers - 1})]
    names = [name for name in view.names() if name.startswith(tuple(prefixes)) and name.endswith("_proj.weight")]
    weights = (view.get(name).float() for name in names)
    return [weight[:: max(1, len(weight) // count)][:count] for weight in weights]


def main() -> None:
    """Print a line for each width."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--rows", type=int, default=16, help="of each linear")
    given = asked.parse_args()
    linears = rows_of(given.folder, given.rows)
    total = sum(map(len, linears))
    least(np.arange(8.0), 2), kmeans.fit(torch.randn(2, 32), torch.ones(32), 4)  # compiled now
    print("bits | rows | as stored / least | Lloyd / least | ms per row | ms per row, Lloyd")
    for bits in (4, 3, 2):
        optimal, errors, seconds = 0.0, [0.0, 0.0], [0.0, 0.0]
        for rows in linears:
            optimal += sum(least(np.sort(row.double().numpy()), 2**bits) for row in rows)
            for number, cluster in enumerate((kmeans.fit, kmeans.local_optimum)):
                began = time.perf_counter()
                centroids = cluster(rows, torch.ones(rows.shape[1]), 2**bits).float()
                seconds[number] += time.perf_counter() - began
                off = (rows[:, :, None] - centroids[:, None]).abs().amin(dim=2)
                errors[number] += float(off.double().square().sum())
        each = " | ".join(f"{1000 * one / total:.2f}" for one in seconds)
        print(f"{bits} | {total} | {errors[0] / optimal:.4f} | {errors[1] / optimal:.4f} | {each}")


if __name__ == "__main__":
    main()
