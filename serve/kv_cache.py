"""One start of vLLM with one data type of its KV cache: bytes per token, what it says of text, tokens per second.

Every data type gets the same bytes, so that what fits in tells what a token takes. Knows engines; nothing of models and
of what numbers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from hubplugin.errors import ServeError
from serve import engine, prompt_scores, throughput, vllm_metrics, vllm_settings
from serve.engine import Engine, Progress
from serve.scoring import Scored
from serve.throughput import Answered, Load

LONGEST = 511  # tokens of a text: with the one that vLLM generates at least, whole blocks of its cache
SETTINGS = "vllm:cache_config_info"  # of /metrics: the settings of the KV cache are its labels


@dataclass(frozen=True)
class Served:
    """What one start has shown."""

    stored_as: str | None  # the data type that the engine stores; None: not known
    bytes_per_token: float
    texts: tuple[tuple[Scored, ...], ...]
    answered: Answered


def serve(
    folder: Path,
    name: str,
    dtype: str,
    texts: Sequence[Sequence[int]],
    load: Load,
    vocabulary: int,
    progress: Progress,
    options: tuple[str, ...] = (),
    asked: str | None = None,
) -> Served:
    """Start vLLM for a folder, score texts of token ids, answer a load, stop it. What is longer than LONGEST tokens, or
    than the model's context less one, is cut. `options` are vLLM's, and `asked` the model that is asked, as for
    `engine.start`. Raises ServeError where it does not start or answer."""
    config = vllm_settings.read_config(folder) or {}
    needed = load.prompt_tokens + load.output_tokens
    own = vllm_settings.context(config)
    longest = min(LONGEST, (own or LONGEST + 1) - 1)
    length = max(needed, 1 + max(len(text[:longest]) for text in texts))
    length = min(-(-length // vllm_settings.KV_BLOCK) * vllm_settings.KV_BLOCK, own or length)
    given = vllm_settings.measured_kv_cache(config, length, load.concurrency)
    extra = ["--no-enable-prefix-caching", "--max-num-seqs", str(load.concurrency)]
    extra += ["--kv-cache-memory-bytes", str(given), "--kv-cache-dtype", dtype]
    with engine.start(folder, name=name, max_model_len=length, extra=(*extra, *options), asked=asked) as running:
        stored_as, tokens = _settings(running)
        progress(f"KV cache {dtype}: {given / tokens:.0f} bytes a token")
        scored = prompt_scores.ask(running, [text[:longest] for text in texts])
        answered = throughput.warm_answer(running, load, vocabulary, seed=0)
        progress(f"KV cache {dtype}: {load.concurrency} at once: {answered.tokens_per_second:.1f} tokens/s")
        return Served(stored_as, given / tokens, scored, answered)


def _settings(running: Engine) -> tuple[str | None, int]:
    """The data type that is stored, and tokens that fit into the cache, as vLLM itself says."""
    try:
        reply = httpx.get(f"{running.url}/metrics", trust_env=False, timeout=60)
        reply.raise_for_status()
        said = vllm_metrics.labels(reply.text, SETTINGS)
        tokens, dtype = int(said["kv_cache_size_tokens"]), said["cache_dtype"]
    except (httpx.HTTPError, KeyError, ValueError) as error:
        what = f"vLLM did not say how large its KV cache is: {error!r}"
        raise ServeError(running.name, what, "use the release of vLLM that is pinned here") from error
    return (throughput.dtype(running.log) if dtype == "auto" else dtype), tokens
