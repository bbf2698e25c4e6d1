"""How far the models of two answers are from each other, at each token of an answer: KL(its own model ‖ the other).

At a token both have to have seen the same text. An answer is given to the other model, where the server scores texts;
elsewhere only the tokens up to the first that differs are known. Knows `client`; nothing of HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hubplugin.errors import ServeError
from serve import client, scoring, token_divergence
from serve.token_logprobs import Token

LIKELIEST = 20  # tokens at each place: the most that OpenAI's API lists, and vLLM unless it is told otherwise
NOT_SHOWN = "KL is not shown, and colours are of the probability: "
ALONE = f"{NOT_SHOWN}one model was asked, and there is no other."
UNFINISHED = f"{NOT_SHOWN}one of the models gave no whole answer."
NO_LIKELIEST = f"{NOT_SHOWN}the server does not list the likeliest tokens."
DIFFERENT_TOKENS = f"{NOT_SHOWN}the models do not have the same tokens."
NO_NUMBERS = "the server does not number its tokens"
TOO_LONG = f"texts of more than {scoring.LONGEST} tokens are not scored"
BOUND = (
    "Tokens that both models list among their likeliest count one by one, all others as one: the KL is this or more."
)


@dataclass(frozen=True)
class Answered:
    """A model's whole answer."""

    name: str
    sent: Sequence[dict[str, str]]  # what it is the answer to
    prompt: tuple[int, ...]  # the same as tokens, with its chat template, where the server says them
    tokens: tuple[Token, ...]


Found = tuple[list[float | None], str]  # nats of each token, and on that in words


async def between(base_url: str, api_key: str | None, own: Answered, other: Answered) -> Found:
    """KL(own ‖ other) at each token of the own answer."""
    if not any(token.likeliest for token in own.tokens):
        return [], NO_LIKELIEST
    numbers = [token.number for token in own.tokens[: max(0, scoring.LONGEST - len(own.prompt))]]
    known = [number for number in numbers if number is not None]
    if not own.prompt or len(known) < len(numbers):
        return _until_different(own, other, NO_NUMBERS)
    if not known:
        return _until_different(own, other, TOO_LONG)
    try:
        said = await client.ascore(base_url, other.name, own.prompt, known, likeliest=LIKELIEST, api_key=api_key)
    except ServeError as error:
        return _until_different(own, other, f"the server {error.what}")
    return _scored(own, other, said)


def _scored(own: Answered, other: Answered, said: Sequence[scoring.Scored]) -> Found:
    """Of an answer that was given to the other model."""
    if not _same_vocabulary(own.tokens, said):
        return [], DIFFERENT_TOKENS
    kl: list[float | None] = [
        token_divergence.at_least(token.likeliest, each.likeliest)
        for token, each in zip(own.tokens, said, strict=False)
    ]
    how = f"KL({own.name} ‖ {other.name}): {other.name} was given this answer token by token"
    rest = f", and {TOO_LONG}" if len(kl) < len(own.tokens) else ""
    return kl, f"{how}{rest}. {BOUND}"


def _same_vocabulary(tokens: Sequence[Token], said: Sequence[scoring.Scored]) -> bool:
    """Whether numbers mean the same tokens to the other model. Parts of characters are written in many ways."""
    texts = (
        (token.data.decode(errors="replace").strip(), each.text.strip())
        for token, each in zip(tokens, said, strict=False)
    )
    whole = [(one, other) for one, other in texts if one and other and "\ufffd" not in one + other]
    return bool(whole) and all(one == other for one, other in whole)


def _until_different(own: Answered, other: Answered, why: str) -> Found:
    """Of two answers to the same text, up to the first token that differs. `why`: the rest is not known."""
    if own.sent != other.sent or (own.prompt and other.prompt and own.prompt != other.prompt):
        return [], f"{NOT_SHOWN}the models were not asked the same text, and none can be given the other's ({why})."
    kl: list[float | None] = []
    for token, same in zip(own.tokens, other.tokens, strict=False):
        kl.append(token_divergence.at_least(token.likeliest, same.likeliest))
        if token.data != same.data:
            break
    where = "up to the first token that differs, since after it the models saw different texts"
    return kl, f"KL({own.name} ‖ {other.name}), {where} and none can be given the other's ({why}). {BOUND}"
