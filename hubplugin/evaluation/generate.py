"""A few greedy tokens from a finished folder, by the engine that will serve it: vLLM in a process of its own.

Where the vLLM of this machine cannot load the format, or its processor lacks what vLLM's kernels need, transformers
generates from the dequantized folder and the report says so; the rules are those of `plan` (plan/vllm_support.py), not
a guess after a crash.
"""

from collections.abc import Sequence
from pathlib import Path

from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.plan.vllm_support import Verdict
from serve import cpu_features, smoke, vllm_settings


def greedy(folder: Path, prompts: list[list[int]], tokens: int, verdicts: Sequence[Verdict]) -> Generated:
    """Generate after each prompt. Raises ServeError where the engine that should load the folder does not."""
    target = "cuda tp=1" if vllm_settings.find_device() == "cuda" else "cpu"
    verdict = next(verdict for verdict in verdicts if verdict.target == target)
    why = verdict.why
    if target == "cpu" and (missing := cpu_features.missing(verdict.features)):
        why = f"needs {verdict.note}, and this one has no {missing}"
    if why:
        made = generate_dequantized(folder, prompts, tokens)
        return Generated(f"{made.engine} (vLLM on {target}: {why})", made.token_ids, made.logprobs)
    answer = smoke.generate(folder, prompts, tokens)
    return Generated(f"vLLM on {target}", answer.token_ids, answer.logprobs)
