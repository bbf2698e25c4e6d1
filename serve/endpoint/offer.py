"""What an endpoint offers: models by name, their folders, what is known of each, what an engine of each takes.

Knows folders and what vLLM reserves. Starts nothing.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from hubplugin.errors import ServeError
from serve import loaded_size, tool_calls, vllm_options, vllm_settings
from serve.endpoint.companions import adapters, drafting
from serve.endpoint.companions.adapters import Adapter
from serve.endpoint.companions.drafting import Draft

RUNTIME_BYTES = 900_000_000  # of an engine's own processes on a CPU, beside weights, KV cache and what forks share
FORK_SERVER_BYTES = 900_000_000  # what they share: one process with torch and vLLM in it
SHARE = 0.8  # of the memory that is free when the endpoint starts: its budget, where none is given
GPU_SHARE = 0.9  # of a GPU's memory, for all engines together


@dataclass(frozen=True)
class Offer:
    """A model that the endpoint answers for."""

    name: str  # that requests carry
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)  # of its report; shown in /v1/models
    max_model_len: int | None = None  # tokens of prompt and answer; None: as vllm_settings has it
    options: tuple[str, ...] = ()  # for vLLM, as typed
    draft: Draft | None = None  # who drafts for it
    adapters: tuple[Adapter, ...] = ()  # that its engine computes too, under names of their own

    @property
    def folders(self) -> tuple[Path, ...]:
        """Of its model and its drafter."""
        return (self.folder, self.draft.folder) if self.draft else (self.folder,)

    @property
    def weight_bytes(self) -> int:
        """Of the safetensors in its folders."""
        return sum(map(loaded_size.stored_bytes, self.folders))

    @property
    def loaded_bytes(self) -> int:
        """Of its weights in half precision, once an engine on a CPU has loaded them."""
        config = vllm_settings.read_config(self.folder) or {}
        drafter = loaded_size.stored_bytes(self.draft.folder) if self.draft else 0
        return loaded_size.loaded_bytes(self.folder, config) + drafter

    @property
    def words(self) -> tuple[str, ...]:
        """All options of vLLM."""
        drafting = [self.draft.option] if self.draft else []
        return (*drafting, *adapters.options(self.adapters, self.name), *self._tools, *self.options)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether requests may offer it tools to call."""
        return vllm_options.value_of(self.words, tool_calls.OPTION) is not None

    @cached_property
    def _tools(self) -> tuple[str, ...]:
        return tool_calls.options(self.folder, self.options)


def check(offers: Sequence[Offer], device: str) -> None:
    """Raise ServeError for the first thing that keeps one of them from being served."""
    names = [name for one in offers for name in (one.name, *(adapter.name for adapter in one.adapters))]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ServeError(", ".join(sorted(twice)), "is the name of two models", "serve one of them, or give --name")
    for one in offers:
        vllm_options.check(one.options, device)
        if one.draft:
            drafting.check(one.draft, one.folder, device)
        for adapter in one.adapters:
            adapters.check(adapter)
        vllm_settings.refuse_unservable(device, vllm_settings.read_config(one.folder), one.name, one.options)


def memory_needed(offer: Offer, device: str) -> int:
    """Bytes that an engine takes: of the machine's memory on a CPU, of the GPU's there. An estimate, rounded up."""
    if device == "cuda":
        return int(_option(offer.options, "--gpu-memory-utilization", GPU_SHARE) * gpu_bytes())
    config = vllm_settings.read_config(offer.folder) or {}
    kv_cache = vllm_settings.served_kv_cache(config, offer.max_model_len)
    if offer.draft:
        drafter = vllm_settings.read_config(offer.draft.folder) or {}
        kv_cache += vllm_settings.served_kv_cache(drafter, offer.max_model_len)
    wide = 2 if vllm_settings.cpu_dtype(config) else 1  # half precision is stored, float32 computed in
    kv_cache = int(_option(offer.options, "--kv-cache-memory-bytes", kv_cache))
    return RUNTIME_BYTES + wide * offer.loaded_bytes + adapters.memory(offer.adapters, config, 2 * wide) + kv_cache


def budget(device: str, asked: int | None = None) -> int:
    """Bytes for all engines together; `asked` is what the user allows for them and what they are forked from."""
    if device == "cuda":
        return asked or int(GPU_SHARE * gpu_bytes())
    return (asked or int(SHARE * psutil.virtual_memory().available)) - FORK_SERVER_BYTES


def shared(offers: Sequence[Offer], device: str) -> tuple[Offer, ...]:
    """The offers as they are started beside each other. On a GPU each engine gets an equal part of its memory, where
    every model's weights fill less than two thirds of that; otherwise one at a time has all of it."""
    if device != "cuda" or len(offers) < 2:
        return tuple(offers)
    part = GPU_SHARE / len(offers)
    if max(offer.weight_bytes for offer in offers) > part * gpu_bytes() * 2 / 3:
        return tuple(offers)
    ours = ("--gpu-memory-utilization", f"{int(1000 * part) / 1000:.3f}")  # rounded down, or one would not fit
    return tuple(replace(offer, options=(*ours, *offer.options)) for offer in offers)


def gpu_bytes() -> int:
    """Memory of the first visible GPU, asked of the driver's own tool. Raises ServeError where it does not say."""
    tool = shutil.which("nvidia-smi") or "nvidia-smi"
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
        return int(said.split()[0]) * vllm_settings.MIB
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise ServeError("nvidia-smi", "does not say how much memory the GPU has", "give --memory") from error


def _option(options: Sequence[str], name: str, otherwise: float) -> float:
    """The number that the user gives an option of vLLM, which wins over ours."""
    text = vllm_options.value_of(options, name)
    try:
        return otherwise if text is None else float(text)
    except ValueError:
        raise ServeError(name, f"{text!r} is no number", "give it a number") from None
