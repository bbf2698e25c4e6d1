"""What a running vLLM says of given text: of each token of a prompt how likely it was, and which were the likeliest.

A prompt is read with keys and values from the KV cache, as an answer is (shown for vLLM 0.32's CPU attention, see
docs/log.md), so that its log-probabilities show what the cache's data type does. Knows HTTP and engines; nothing of
models and of what numbers mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from hubplugin.errors import ServeError
from serve.engine import Engine

LIKELIEST = 20  # that are listed; as many as vLLM lists where it is not started otherwise
SILENCE = 1800.0  # seconds that one prompt may take


@dataclass(frozen=True)
class Scored:
    """One token of a prompt, but never its first."""

    token: int
    listed: dict[int, float]  # natural log-probability by token id: the likeliest at this place, and the token itself

    @property
    def logprob(self) -> float:
        """Of the token itself."""
        return self.listed[self.token]


def ask(running: Engine, prompts: Sequence[Sequence[int]]) -> tuple[tuple[Scored, ...], ...]:
    """Each prompt's tokens from the second on, one prompt at a time: an answer takes about 1.4 kB a token.

    Prompts are token ids, each at least one shorter than the engine's context. Raises ServeError where vLLM does not
    answer, or scores other tokens.
    """
    # vLLM generates one token at least
    body = {"model": running.name, "max_tokens": 1, "temperature": 0, "prompt_logprobs": LIKELIEST}
    with httpx.Client(base_url=running.url, trust_env=False, timeout=SILENCE) as client:

        def scored(prompt: Sequence[int]) -> tuple[Scored, ...]:
            reply = client.post("/v1/completions", json={**body, "prompt": list(prompt)})
            reply.raise_for_status()
            return read(reply.json()["choices"][0], prompt)

        try:
            return tuple(map(scored, prompts))
        except (httpx.HTTPError, LookupError, TypeError, ValueError, AttributeError) as error:
            what = f"vLLM did not say how likely a text is: {error!r}"
            raise ServeError(running.name, what, f"read {running.log}") from error


def read(choice: dict[str, Any], prompt: Sequence[int]) -> tuple[Scored, ...]:
    """A choice of an answer: for each place of the prompt a log-probability by token id, none for the first place.

    Raises ValueError or LookupError where that is not of this prompt.
    """
    first, *places = choice["prompt_logprobs"]
    if first is not None or len(places) != len(prompt) - 1:
        raise ValueError(f"{len(places)} places of {len(prompt) - 1}")
    found = []
    for token, place in zip(prompt[1:], places, strict=True):
        listed = {int(other): float(said["logprob"]) for other, said in place.items()}
        found.append(Scored(token, {token: listed[token], **listed}))
    return tuple(found)
