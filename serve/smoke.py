"""Proof that vLLM loads a folder and generates from it, as it will be served: a few greedy tokens after each prompt.

Prompts are token ids, so no chat template is needed. What the tokens mean is not judged here.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from hubplugin.errors import ServeError
from serve import engine, vllm_settings

SEQUENCES = 4  # at the same time


@dataclass(frozen=True)
class Smoke:
    """What vLLM generated; one entry per prompt, in order."""

    texts: list[str]
    token_ids: list[list[int]]
    logprobs: list[list[float]]  # natural logarithm, of each generated token


def generate(
    folder: Path,
    prompts: list[list[int]],
    tokens: int,
    timeout: float = 600.0,
    options: tuple[str, ...] = (),
    asked: str | None = None,
) -> Smoke:
    """Serve `folder` with vLLM, have it generate at most `tokens` tokens greedily after each prompt, stop it.

    Takes half a minute for a small model on a CPU, seconds where `forking` keeps a fork server. Nothing is left
    running, whatever happens. `options` are vLLM's, and `asked` the model that is asked, as for `engine.start`. Raises
    ServeError with vLLM's own cause where it cannot load the folder, is not ready after `timeout` seconds, or does not
    answer after as many again.
    """
    config = vllm_settings.read_config(folder)
    device = vllm_settings.find_device()
    if config is None or not prompts or not all(prompts):
        raise ServeError(str(folder), "needs a folder and prompts of at least one token", "give both")
    length = max(len(prompt) for prompt in prompts) + tokens
    kv_cache = vllm_settings.reserved_kv_cache(config, length, SEQUENCES)
    extra = ["--enforce-eager", "--max-num-seqs", str(SEQUENCES), "--max-num-batched-tokens", str(max(length, 256))]
    if device == "cuda":
        kv_cache = vllm_settings.kv_cache_bytes(config, length, SEQUENCES)
    # greedy means greedy: a repetition penalty of the model's own generation config does not take part
    extra += ["--kv-cache-memory-bytes", str(kv_cache), "--seed", "0", "--generation-config", "vllm"]
    with tempfile.TemporaryDirectory(prefix="hubplugin-") as place:
        running = engine.start(
            folder.resolve(),
            name=str(folder),
            socket=Path(place) / "vllm",
            max_model_len=length,
            extra=(*extra, *options),
            deadline=timeout,
            asked=asked,
        )
        with running:
            return _ask(running, prompts, tokens, timeout)


def _ask(running: engine.Engine, prompts: list[list[int]], tokens: int, timeout: float) -> Smoke:
    # logprobs=0: that of the chosen token alone. min_tokens stays 0, an end of text is an answer too.
    asked = {"model": running.name, "prompt": prompts, "max_tokens": tokens, "temperature": 0, "logprobs": 0}
    transport = httpx.HTTPTransport(uds=str(running.socket))
    try:
        with httpx.Client(trust_env=False, timeout=timeout, transport=transport) as client:
            reply = client.post(f"{running.url}/v1/completions", json={**asked, "return_token_ids": True})
            reply.raise_for_status()
            choices: list[dict[str, Any]] = sorted(reply.json()["choices"], key=lambda choice: choice["index"])
        return Smoke(
            [choice["text"] for choice in choices],
            [choice["token_ids"] for choice in choices],
            [choice["logprobs"]["token_logprobs"] for choice in choices],
        )
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ServeError(running.name, f"vLLM did not answer: {error!r}", f"read {running.log}") from error
