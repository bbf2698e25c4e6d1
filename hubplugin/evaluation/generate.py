"""A few greedy tokens from a finished folder, by the engine that will serve it: vLLM in a process of its own.

Where the vLLM of this machine cannot load the format, transformers generates from the dequantized folder and the
report says so; the rules are those of `plan` (loadable.py), not a guess after a crash.
"""

from collections.abc import Sequence
from pathlib import Path

from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.plan.vllm_support import Verdict
from serve import smoke, vllm_settings


def greedy(folder: Path, prompts: list[list[int]], tokens: int, verdicts: Sequence[Verdict]) -> Generated:
    """Generate after each prompt. Raises ServeError where the engine that should load the folder does not."""
    target = "cuda tp=1" if vllm_settings.find_device() == "cuda" else "cpu"
    verdict = next(verdict for verdict in verdicts if verdict.target == target)
    if not verdict.loads:
        made = generate_dequantized(folder, prompts, tokens)
        return Generated(f"{made.engine} (vLLM on {target}: {verdict.why})", made.token_ids, made.logprobs)
    answer = smoke.generate(folder, prompts, tokens)
    return Generated(f"vLLM on {target}", answer.token_ids, answer.logprobs)
