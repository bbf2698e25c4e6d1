"""What a model says of a text that is given to it token by token: vLLM's `prompt_logprobs`, which others do not have.

Knows the request and its answer; sends nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubplugin.errors import ServeError
from serve import token_logprobs

# vLLM computes a row of the whole vocabulary for each token of a chunk: of 150 000 tokens, 1.2 GB of float32.
LONGEST = 2048  # tokens of a text
LONGEST_BODY = 2**25  # bytes of an answer; a token's are some 1500


@dataclass(frozen=True)
class Scored:
    """A token of the text at its place, never the first: nothing stands before that."""

    token: int
    listed: Mapping[
        int, float
    ]  # natural log-probability by token id: the likeliest at this place, and the token itself
    text: str = ""  # as this model's vocabulary has it

    @property
    def logprob(self) -> float:
        """Of the token itself."""
        return self.listed[self.token]

    @property
    def likeliest(self) -> dict[str, float]:
        """`listed` by key, as `token_logprobs` has them."""
        return {f"{token_logprobs.ID}{token}": value for token, value in self.listed.items()}


def body(model: str, tokens: Sequence[int], likeliest: int) -> dict[str, Any]:
    """The request. It has to ask for one token more, which is not looked at."""
    asked = {"prompt_logprobs": likeliest, "max_tokens": 1, "temperature": 0}
    return {"model": model, "prompt": list(tokens), "stream": False, **asked}


def read(data: bytes, tokens: Sequence[int], where: str) -> list[Scored]:
    """One for each of the `tokens`, which end the text. Raises ServeError where the server did not score it."""
    try:
        rows = json.loads(data)["choices"][0]["prompt_logprobs"][-len(tokens) :]
        scored = [_scored(row, token) for row, token in zip(rows, tokens, strict=True)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ServeError(where, "does not score a text that is given to it", "serve the model by vLLM") from error
    return scored


def _scored(row: dict[str, Any], token: int) -> Scored:
    values = {int(number): token_logprobs.bounded(each["logprob"]) for number, each in row.items()}
    listed = {number: value for number, value in values.items() if value is not None}
    # the token itself first: a KeyError where the row is another token's
    return Scored(token, {token: listed[token], **listed}, str(row[str(token)].get("decoded_token") or ""))
