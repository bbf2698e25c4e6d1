"""Proof that vLLM loads a folder and generates from it: a child process, a few greedy tokens, one JSON line.

    python -m serve.smoke FOLDER [--tokens 8] [--prompt-ids '[1, 2, 3]' ...]

Prompts are token ids, so no chat template is needed. `generate` is the caller's side: it runs the child under
a supervisor and reads its line; the process that calls it never imports vLLM. What the tokens mean is not judged
here.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubplugin.errors import ServeError
from serve import engine, vllm_errors, vllm_settings

SEQUENCES = 4  # at the same time
DEFAULT_PROMPT = [1, 2, 3, 4]


@dataclass(frozen=True)
class Smoke:
    """What vLLM generated; one entry per prompt, in order."""

    texts: list[str]
    token_ids: list[list[int]]
    logprobs: list[list[float]]  # natural logarithm, of each generated token


def generate(folder: Path, prompts: list[list[int]], tokens: int, timeout: float = 600.0) -> Smoke:
    """Load `folder` with vLLM in a child process and generate at most `tokens` tokens greedily after each
    prompt.

    Takes about ten seconds for a small model on a CPU. Nothing is left running, whatever happens. Raises
    ServeError with vLLM's own cause where it cannot load the folder, or is not done after `timeout` seconds.
    """
    config = vllm_settings.read_config(folder)
    device = vllm_settings.find_device()
    if config is None or not prompts or not all(prompts):
        raise ServeError(str(folder), "needs a folder and prompts of at least one token", "give both")
    command = [sys.executable, "-m", "serve.smoke", str(folder.resolve()), "--tokens", str(tokens)]
    for prompt in prompts:
        command += ["--prompt-ids", json.dumps(prompt)]
    environment = vllm_settings.environment(device, local=True, deadline=timeout)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        process, lifeline = engine.spawn(command, environment, stdout=output, stderr=log)
        try:
            process.wait(timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        finally:
            lifeline.close()  # whatever is left of the child ends now
            status = process.wait()
        output.seek(0)
        log.seek(0)
        line, text = output.read(), log.read().decode("utf-8", "replace")
    if late:
        raise _error(folder, text, f"vLLM did not generate {tokens} tokens in {timeout:g} s")
    try:
        return Smoke(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise _error(folder, text, f"vLLM ended with status {status} and no answer") from error


def _error(folder: Path, log: str, otherwise: str) -> ServeError:
    cause = vllm_errors.find_cause(log) or vllm_errors.Cause(otherwise, "")
    return ServeError(str(folder), cause.what, cause.fix or f"python -m serve.smoke {folder} shows vLLM's whole log")


def _run(folder: str, prompts: Sequence[list[int]], tokens: int) -> Smoke:
    """In the child: the only place in the project that imports vLLM."""
    vllm: Any = importlib.import_module("vllm")

    config = vllm_settings.read_config(Path(folder)) or {}
    length = max(len(prompt) for prompt in prompts) + tokens
    options: dict[str, Any] = {
        "enforce_eager": True,
        "max_model_len": length,
        "max_num_seqs": SEQUENCES,
        "max_num_batched_tokens": max(length, 256),
        "kv_cache_memory_bytes": vllm_settings.kv_cache_bytes(config, length, SEQUENCES),
        "disable_log_stats": True,
        "seed": 0,
    }
    model = vllm.LLM(folder, **options)
    # logprobs=0: that of the chosen token alone. min_tokens stays 0, an end of text is an answer too.
    greedy = vllm.SamplingParams(temperature=0, max_tokens=tokens, logprobs=0)
    answers = model.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], greedy, use_tqdm=False)
    first = [answer.outputs[0] for answer in answers]
    return Smoke(
        texts=[output.text for output in first],
        token_ids=[list(output.token_ids) for output in first],
        logprobs=[
            [row[token].logprob for row, token in zip(output.logprobs, output.token_ids, strict=True)]
            for output in first
        ],
    )


def main() -> None:
    """The child: its only line on stdout is the JSON; vLLM's talk goes to stderr."""
    parser = argparse.ArgumentParser(prog="python -m serve.smoke", description="Generate a few tokens with vLLM.")
    parser.add_argument("folder")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--prompt-ids", type=json.loads, action="append", metavar="JSON")
    given = parser.parse_args()
    answer = os.dup(1)
    os.dup2(2, 1)  # vLLM logs to stdout
    result = _run(given.folder, given.prompt_ids or [DEFAULT_PROMPT], given.tokens)
    with os.fdopen(answer, "w") as stdout:
        print(json.dumps(asdict(result)), file=stdout)


if __name__ == "__main__":
    main()
