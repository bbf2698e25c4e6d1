"""What lm-eval runs in: quiet, seeded as its own command seeds it, and for tasks of a manifest's own without network
traffic and with templates that reach no Python.
"""

import contextlib
import io
import logging
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "examples": 1234}  # the defaults of lm-eval's command
SEEDED = ", ".join(f"{name} {seed}" for name, seed in SEEDS.items())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No talk of the harness, and its bars on a terminal alone: what goes wrong is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Tasks that shuffle their choices do so alike for every model, and leave the caller's generators as they were."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(SEEDS["random"])
        np.random.seed(SEEDS["numpy"])
        torch.manual_seed(SEEDS["torch"])
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextlib.contextmanager
def of_own_task(utils: Any) -> Iterator[None]:
    """For a task from a file: its templates are sandboxed, and `datasets` asks no server to count what it reads.

    `utils` is lm_eval.utils, whose environment of templates lets them call anything.
    """
    from datasets import config
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(
        loader=utils.env.loader, undefined=utils.env.undefined, keep_trailing_newline=utils.env.keep_trailing_newline
    )
    sandbox.filters.update(utils.env.filters)
    before = utils.env, config.HF_UPDATE_DOWNLOAD_COUNTS
    utils.env, config.HF_UPDATE_DOWNLOAD_COUNTS = sandbox, False
    try:
        yield
    finally:
        utils.env, config.HF_UPDATE_DOWNLOAD_COUNTS = before
