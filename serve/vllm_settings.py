"""How vLLM is set up for this machine and this model: device, arguments, size of the KV cache, environment.

Of the model it knows what config.json says about widths and lengths; it starts nothing.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hubplugin.errors import ServeError
from serve import codes, cpu_features, idle_threads, vllm_errors, vllm_options

CPU_SEQUENCES = 64  # answered at the same time
# what the KV cache holds: so many sequences of full length, or all at once of so many tokens each; what does not fit
# waits
CPU_CACHED, CPU_SHORT = 4, 256
CPU_MODEL_LEN = 4096  # tokens; more is served where it is asked for
KV_BLOCK = 128  # tokens; vLLM's CPU cache is handed out in these. Those on GPUs divide it
FEWEST_KV_BLOCKS = 64  # of a cache whose size is measured: less than a block is left over, 1 part in 64 of it
NORMS = "hubplugin"  # what vLLM calls the norms of `rms_norm`
MIB, GIB = 2**20, 2**30
# GiB of a KV cache on a CPU. vLLM would let it replace --kv-cache-memory-bytes without a word (findings/)
SPACE = "VLLM_CPU_KVCACHE_SPACE"


def find_device() -> str:
    """What the installed vLLM runs on here, "cuda" or "cpu". Raises ServeError where it cannot run at all."""
    if _version("vllm-cpu") or "cpu" in (_version("vllm") or ""):
        return "cpu"
    if _version("vllm") is None:
        raise ServeError("vllm", "vLLM is not installed in this environment", vllm_errors.INSTALL)
    if not _sees_gpu():
        raise ServeError("vllm", "this is vLLM's CUDA build, and no GPU is visible", vllm_errors.INSTALL)
    return "cuda"


def version() -> str:
    """The release of the installed vLLM; empty where there is none."""
    return _version("vllm-cpu") or _version("vllm") or ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _sees_gpu() -> bool:
    """Asked of the driver's own tool, because importing torch to find out takes seconds and memory."""
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU " in listed.stdout


def read_config(model: str | Path) -> dict[str, Any] | None:
    """config.json of a folder; None for a repo id."""
    folder = Path(model)
    if not folder.exists() and isinstance(model, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model):
        return None
    if not folder.is_dir():
        raise ServeError(str(model), "no such folder", "give a folder with config.json, or a repo id owner/name")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError as error:
        raise ServeError(str(folder), "holds no config.json", "give the folder of a model or a variant") from error
    except (OSError, ValueError) as error:
        raise ServeError(str(folder / "config.json"), f"cannot be read: {error}", "write the folder again") from error
    if not isinstance(config, dict):
        raise ServeError(str(folder / "config.json"), "holds no JSON object", "write the folder again")
    return config


def refuse_unservable(device: str, config: dict[str, Any] | None, name: str, options: tuple[str, ...] = ()) -> None:
    """Raise ServeError for codes whose kernels fail on this processor, where dense weights are not made of them, and
    for options of vLLM that give wrong answers on it: vLLM itself would load them."""
    if device != "cpu":
        return
    known = config or {}
    features = () if codes.options(known, options) else codes.needed_features(known)
    if missing := cpu_features.missing(features):
        what = f"vLLM's CPU kernels for its codes need {' and '.join(features)}, and this CPU has no {missing}"
        fix = "serve the base or a variant without codes here, or this one on another CPU or on a GPU"
        raise ServeError(name, what, fix)
    vllm_options.check_kv_cache([*cpu_dtype(known), *options])


def words(
    model: str | Path,
    name: str,
    place: Sequence[str],
    *,
    device: str,
    config: dict[str, Any] | None,
    max_model_len: int | None,
    extra: Sequence[str],
) -> list[str]:
    """All arguments of vLLM's server for one model that listens at `place`; those of the user win, they come last."""
    chosen = arguments(device, config, max_model_len, extra)
    return ["--model", str(model), "--served-model-name", name, *place, *chosen, *extra]


def arguments(
    device: str, config: dict[str, Any] | None, max_model_len: int | None, extra: Sequence[str] = ()
) -> list[str]:
    """Those that hubplugin chooses, beside a user's own `extra`."""
    always = ["--disable-fastapi-docs", "--disable-uvicorn-access-log"]
    if device == "cuda":
        return always + (["--max-model-len", str(max_model_len)] if max_model_len else [])
    return [
        *always,
        *cpu_dtype(config or {}),
        *codes.options(config or {}, extra),
        *("--ir-op-priority.rms_norm", NORMS, "--ir-op-priority.fused_add_rms_norm", NORMS),
        # Compiling takes half a minute and pays only where there is a lot to generate.
        "--enforce-eager",
        *("--max-model-len", str(cpu_model_len(config or {}, max_model_len))),
        *("--max-num-seqs", str(CPU_SEQUENCES), "--max-num-batched-tokens", "512"),
        *("--kv-cache-memory-bytes", str(served_kv_cache(config or {}, max_model_len))),
    ]


def cpu_dtype(config: dict[str, Any]) -> tuple[str, ...]:
    """float32 where weights are dense and the CPU has no AVX-512: it multiplies half precision far more slowly
    (docs/serving.md)."""
    if cpu_features.has(cpu_features.AVX512) or codes.kept(config):
        return ()
    return "--dtype", "float32"


def cpu_model_len(config: dict[str, Any], asked: int | None) -> int:
    """Tokens of prompt and answer together that are served on a CPU."""
    return asked or min(CPU_MODEL_LEN, context(config) or CPU_MODEL_LEN)


def context(config: dict[str, Any]) -> int | None:
    """Tokens that a model is made for, by its config.json; None where that does not say."""
    own = config.get("text_config", config).get("max_position_embeddings")
    return own if isinstance(own, int) and own > 0 else None


def served_kv_cache(config: dict[str, Any], max_model_len: int | None) -> int:
    """Bytes of the KV cache on a CPU: what the environment says for all engines, else what suits this model. Raises
    ServeError where the environment says no size."""
    if space := os.environ.get(SPACE):
        return _gibibytes(space)
    length = cpu_model_len(config, max_model_len)
    few, all_at_once = (length, CPU_CACHED), (min(length, CPU_SHORT), CPU_SEQUENCES)
    return max(reserved_kv_cache(config, *each) for each in (few, all_at_once))


def _gibibytes(space: str) -> int:
    if not (space.isascii() and space.isdecimal() and int(space)):
        raise ServeError(SPACE, f"{space!r} is no whole number of GiB", "write one, such as 4, or unset it")
    return int(space) * GIB


def reserved_kv_cache(config: dict[str, Any], max_model_len: int | None, sequences: int) -> int:
    """Bytes of a KV cache on a CPU for so many sequences of full length, in the data type that the model has there."""
    wide = 2 if cpu_dtype(config) else 1
    return wide * kv_cache_bytes(config, cpu_model_len(config, max_model_len), sequences)


def kv_cache_bytes(config: dict[str, Any], tokens: int, sequences: int) -> int:
    """Bytes of 16-bit keys and values for `sequences` times `tokens`; at least 32 MiB, and no more than 4 GiB
    unless one sequence alone needs it. A config that does not say its widths gets 1 GiB."""
    per_token = _kv_bytes_per_token(config)
    if per_token is None:
        return 1024 * MIB
    each, own = -(-tokens // KV_BLOCK), 1  # blocks; vLLM keeps the first of all for itself
    one, all_at_once = (per_token * KV_BLOCK * (count * each + own) for count in (1, sequences))
    return max(32 * MIB, one, min(all_at_once, 4096 * MIB))


def measured_kv_cache(config: dict[str, Any], tokens: int, sequences: int) -> int:
    """Bytes for a KV cache whose size is to be measured, the same for every data type: room for `sequences` times
    `tokens` as `reserved_kv_cache` has it, in whole blocks, so that the engine's own data type leaves nothing over."""
    room, per_token = reserved_kv_cache(config, tokens, sequences), _kv_bytes_per_token(config)
    if per_token is None:
        return room
    block = per_token * KV_BLOCK * (2 if cpu_dtype(config) else 1)
    return max(FEWEST_KV_BLOCKS, -(-room // block)) * block


def _kv_bytes_per_token(config: dict[str, Any]) -> int | None:
    """Bytes of 16-bit keys and values of one token in all layers; None where the config does not say its widths."""
    text = config.get("text_config", config)
    try:
        heads = int(text["num_attention_heads"])
        width = int(text.get("head_dim") or text["hidden_size"] // heads)
        return 2 * int(text["num_hidden_layers"]) * int(text.get("num_key_value_heads") or heads) * width * 2
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def environment(device: str, *, local: bool, deadline: float) -> dict[str, str]:
    """What vLLM's processes get. Ours under the user's: whoever sets one of these outside knows why. The size of a KV
    cache on a CPU is an argument."""
    outside = idle_threads.of_engine(os.environ)
    users = {name: value for name, value in outside.items() if device != "cpu" or name != SPACE}
    return own_environment(device, local=local, deadline=deadline) | users


def own_environment(device: str, *, local: bool, deadline: float) -> dict[str, str]:
    """The variables that are set for vLLM where the user does not."""
    ours = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(int(deadline)),
    }
    if device == "cpu":
        ours["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # no separate worker process: 8 s and 0.6 GB less
        # With AMX, vLLM would by itself also round the activations to 8 bits: not the model that was measured.
        ours["VLLM_CPU_INT4_W4A8"] = "0"
    if local:
        ours["HF_HUB_OFFLINE"] = "1"  # a folder is complete; nothing is to be asked of the Hub
    return ours
