"""A smaller model that drafts for a larger one (speculative decoding: Leviathan et al., arXiv 2211.17192).

The larger model checks several drafted tokens in one pass and keeps those that it
accepts: its own answers, in fewer passes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubplugin.errors import ServeError
from serve import codes, vllm_metrics, vllm_settings

DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
STEPS = "vllm:spec_decode_num_drafts_total"


@dataclass(frozen=True)
class Draft:
    """Who drafts, and how much."""

    name: str
    folder: Path
    tokens: int  # that are drafted before the larger model looks
    expected: float | None = None  # of a drafted token: the chance that it is accepted, as the variant's report says

    @property
    def option(self) -> str:
        """As vLLM takes it."""
        config = {"method": "draft_model", "model": str(self.folder), "num_speculative_tokens": self.tokens}
        return f"--speculative-config={json.dumps(config)}"

    def tokens_per_step(self, acceptance: float) -> float:
        """Tokens that one pass of the larger model yields, where each draft is accepted with this chance."""
        return sum(acceptance**count for count in range(self.tokens + 1))

    def facts(self, metrics: str = "") -> dict[str, Any]:
        """What is expected, and what was measured so far by vLLM's own counters."""
        said: dict[str, Any] = {"model": self.name, "tokens": self.tokens}
        if self.expected is not None:
            expected = {
                "expected_acceptance": self.expected,
                "expected_tokens_per_step": self.tokens_per_step(self.expected),
            }
            said |= expected
        steps, drafted, accepted = (vllm_metrics.total(metrics, name) for name in (STEPS, DRAFTED, ACCEPTED))
        if steps and drafted:
            # of single tokens: those behind a refused one are never looked at, so they say nothing
            said |= {"drafted": int(drafted), "accepted": int(accepted), "tokens_per_step": 1 + accepted / steps}
        return said


def check(draft: Draft, base: Path, device: str) -> None:
    """Raise ServeError where the draft cannot draft for a base."""
    ours, theirs = (vllm_settings.read_config(folder) or {} for folder in (draft.folder, base))
    vllm_settings.refuse_unservable(device, ours, draft.name, codes.KEPT)  # a drafter's are computed with
    sizes = [config.get("vocab_size") for config in (ours, theirs)]
    if sizes[0] != sizes[1]:
        what = f"has a vocabulary of {sizes[0]} tokens, and the model it would draft for one of {sizes[1]}"
        raise ServeError(draft.name, what, "draft with a variant of that model")
