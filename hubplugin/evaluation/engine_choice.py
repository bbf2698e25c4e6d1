"""Chooses the engine that generates from a finished folder: vLLM in its own process, as it will be served.

Where the vLLM installed here cannot load the format, or this CPU lacks what its kernels need, transformers generates
from the dequantized folder and the report says so. Knows the verdicts of plan/vllm_support.py, which are rules and no
guess after a crash; knows no weights.
"""

from collections.abc import Sequence
from pathlib import Path

from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.plan.vllm_support import Verdict
from serve import cpu_features, smoke, vllm_settings


def generate(folder: Path, prompts: list[list[int]], tokens: int, verdicts: Sequence[Verdict]) -> Generated:
    """Generate `tokens` tokens greedily after each prompt of token ids.

    Raises ServeError where the engine that should load the folder does not.
    """
    target = "cuda tp=1" if vllm_settings.find_device() == "cuda" else "cpu"
    verdict = next(verdict for verdict in verdicts if verdict.target == target)
    why = verdict.why
    if target == "cpu" and (missing := cpu_features.missing(verdict.features)):
        why = f"needs {verdict.note}, and this one has no {missing}"
    if why:
        generated = generate_dequantized(folder, prompts, tokens)
        return Generated(f"{generated.engine} (vLLM on {target}: {why})", generated.token_ids, generated.logprobs)
    answer = smoke.generate(folder, prompts, tokens)
    return Generated(f"vLLM on {target}", answer.token_ids, answer.logprobs)
