"""The line of the gate about generation: an engine loads the folder and computes what our own forward does.

Whether an engine generates is asked of a function of the candidate: this file starts no process.
"""

import torch

from hubplugin.errors import ServeError
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.evaluation.generation import logprobs, served_dtype
from hubplugin.report import GateLine

PROMPT_TOKENS = 16
NEW_TOKENS = 8
LOGPROB_TOLERANCE = 0.1  # nats, mean over generated tokens: half-precision kernels against float32
NOISE_TOLERANCE = 3  # times what half precision alone does to our own forward, where a model amplifies rounding more


def generation(candidate: Candidate) -> GateLine:
    """An engine loads the folder, generates, and gives its tokens the probabilities our own forward gives them."""
    name, folder, family, prompts = "generation", candidate.run, candidate.plan.family, candidate.prompts
    try:
        generated = candidate.generate(folder, prompts, NEW_TOKENS, candidate.plan.verdicts)
    except ServeError as error:
        return GateLine(name=name, passed=False, detail=f"{error.what} ({error.fix})")
    if not all(generated.token_ids):
        return GateLine(name=name, passed=False, detail=f"{generated.engine} generated nothing")
    exact = logprobs(folder, family, prompts, generated.token_ids)
    half = logprobs(folder, family, prompts, generated.token_ids, served_dtype(folder))
    noise = float((half - exact).abs().mean())
    served = torch.tensor([value for row in generated.logprobs for value in row])
    difference = float((exact - served).abs().mean())
    allowed = max(LOGPROB_TOLERANCE, NOISE_TOLERANCE * noise)
    detail = (
        f"{generated.engine}: {len(served)} tokens, their log-probabilities differ from float32 by {difference:.4f} "
        f"nats on average, allowed {allowed:.2g} (half precision alone: {noise:.4f})"
    )
    return GateLine(name=name, passed=difference <= allowed, detail=detail)
