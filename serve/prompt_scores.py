"""What a running vLLM says of given text: of each token of a prompt how likely it was, and which were the likeliest.

A prompt is read with keys and values from the KV cache, as an answer is (shown for vLLM 0.32's CPU attention, see
docs/log.md), so that its log-probabilities show what the cache's data type does. Knows HTTP and engines; nothing of
models and of what numbers mean.
"""

from collections.abc import Sequence

import httpx

from hubplugin.errors import ServeError
from serve import scoring
from serve.engine import Engine
from serve.scoring import Scored

LIKELIEST = 20  # that are listed; as many as vLLM lists where it is not started otherwise
SILENCE = 1800.0  # seconds that one prompt may take


def ask(running: Engine, prompts: Sequence[Sequence[int]]) -> tuple[tuple[Scored, ...], ...]:
    """Each prompt's tokens from the second on, one prompt at a time: an answer takes about 1.4 kB a token.

    Prompts are token ids, each at least one shorter than the engine's context. Raises ServeError where vLLM does not
    answer, or scores other tokens.
    """
    with httpx.Client(base_url=running.url, trust_env=False, timeout=SILENCE) as client:

        def scored(prompt: Sequence[int]) -> tuple[Scored, ...]:
            reply = client.post("/v1/completions", json=scoring.body(running.name, prompt, LIKELIEST))
            reply.raise_for_status()
            return tuple(scoring.read(reply.content, prompt[1:], running.name))

        try:
            return tuple(map(scored, prompts))
        except (httpx.HTTPError, ServeError) as error:
            what = f"vLLM did not say how likely a text is: {error!r}"
            raise ServeError(running.name, what, f"read {running.log}") from error
