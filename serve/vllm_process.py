"""vLLM's API server as engines run it: `python -m serve.vllm_process`, with the arguments of vLLM.

On a CPU its engine core is forked, not started as a new interpreter that imports vLLM and torch a second time, which
takes as long as everything else of a start together. vLLM spawns it there because OpenMP's threads do not survive a
fork; the API server multiplies nothing, so it has none. On a GPU everything is as vLLM has it.
"""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from serve.transformers_imports import without_sklearn

Main = Callable[[], None]
SERVER = "vllm.entrypoints.launchers.api_server.entry"
# what an engine core imports; a fork has it already
CORE = ("vllm.v1.engine.async_llm", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker")


def load() -> Main:
    """Import vLLM; its main function, which reads sys.argv."""
    with without_sklearn():
        server = importlib.import_module(SERVER)
    if importlib.import_module("vllm.platforms").current_platform.is_cpu():
        for module in CORE:
            importlib.import_module(module)
        utils: Any = importlib.import_module("vllm.v1.engine.utils")
        utils.get_mp_context = lambda: multiprocessing.get_context("fork")
        # a fork must not wake its parent's event loop when a signal reaches it
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    main: Main = server.main
    return main


if __name__ == "__main__":
    load()()
