"""Compiled kernels, and how their work is spread over threads. Knows no matrix."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from numba import njit

compiled = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")


def spread(kernel: Any, count: int, *arguments: Any, least: int = 1) -> None:
    """Run kernel(first, last, ...) over 0 .. count, in as many threads as torch uses, `least` or a multiple in each."""
    threads = torch.get_num_threads()
    step = -(-count // threads // least) * least if count > least else count
    ranges = [(start, min(start + step, count)) for start in range(0, count, max(step, 1))]
    jobs = [_pool(threads).submit(kernel, *some, *arguments) for some in ranges[1:]]
    if ranges:
        kernel(*ranges[0], *arguments)  # this thread has nothing better to do
    for job in jobs:
        job.result()
