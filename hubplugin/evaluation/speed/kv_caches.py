"""Data types of the KV cache: a variant served once with each, and how far that moves what it says of real text.

Everything is held against the engine's own data type, so that weights and text are the same on both sides. Knows what
an engine said of each token of a text (docs/maths.md, Speed: KV caches); starts no engine.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hubplugin.errors import ServeError
from hubplugin.evaluation.speed.rounds import Subject, named
from hubplugin.manifest.speed import ENGINES_OWN
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.progress import progress
from hubplugin.speed_record import KVCache
from serve import token_divergence
from serve.scoring import Scored

SEQUENCES = 8  # of the text, from its start


Text = tuple[Scored, ...]  # a sequence from its second token on


@dataclass(frozen=True)
class Start:
    """One start of the engine with one data type of its KV cache."""

    stored_as: str | None
    bytes_per_token: float
    texts: tuple[Text, ...]
    tokens_per_second: float
    others: float  # share of the machine's cores that other processes used while these came


# serves a folder with a data type and has it score sequences of token ids. Raises ServeError where the engine here does
# not have it.
Serve = Callable[[Subject, Settings, str, Sequence[Sequence[int]]], Start]


def measure(
    variant: Subject, settings: Settings, sequences: Sequence[Sequence[int]], serve: Serve
) -> tuple[KVCache, ...]:
    """A record for the engine's own data type, then for each that the settings name; none where they name none.

    `sequences` are token ids of held-out text. What cannot be measured here is said in its record, and is no error.
    """
    if not settings.kv_cache:
        return ()
    first, own = _started(variant, settings, ENGINES_OWN, sequences, serve)
    found = [first if own is None else record(ENGINES_OWN, own, own)]
    for dtype in settings.kv_cache:
        if own is None:
            found.append(KVCache(dtype=dtype, not_measured=f"nothing to compare it with: {first.not_measured}"))
            continue
        refused, start = _started(variant, settings, dtype, sequences, serve)
        found.append(refused if start is None else record(dtype, own, start))
    return tuple(found)


def _started(
    variant: Subject, settings: Settings, dtype: str, sequences: Sequence[Sequence[int]], serve: Serve
) -> tuple[KVCache, Start | None]:
    progress(f"speed | {variant.name} | KV cache {dtype}")
    try:
        return KVCache(dtype=dtype), serve(variant, settings, dtype, sequences[:SEQUENCES])
    except ServeError as error:
        why = named(error, variant)
        progress(f"speed | {variant.name} | KV cache {dtype} not measured: {why}")
        return KVCache(dtype=dtype, not_measured=why), None


def record(dtype: str, own: Start, start: Start) -> KVCache:
    """The numbers of one start, held against those of the engine's own data type on the same sequences."""
    pairs = [pair for mine, other in zip(own.texts, start.texts, strict=True) for pair in zip(mine, other, strict=True)]
    own_perplexity, perplexity = (
        math.exp(-statistics.fmean(one.logprob for one in side)) for side in zip(*pairs, strict=True)
    )
    return KVCache(
        dtype=dtype,
        stored_as=start.stored_as if dtype == ENGINES_OWN else None,
        bytes_per_token=start.bytes_per_token,
        sequences=len(start.texts),
        predicted_tokens=len(pairs),
        perplexity=perplexity,
        perplexity_ratio=perplexity / own_perplexity,
        top1_agreement=statistics.fmean(likeliest(mine.listed) == likeliest(other.listed) for mine, other in pairs),
        mean_kl_top20=statistics.fmean(
            token_divergence.at_least(mine.listed, other.listed) or 0.0 for mine, other in pairs
        ),
        tokens_per_second=start.tokens_per_second,
        others_share=start.others,
    )


def likeliest(listed: Mapping[int, float]) -> int:
    """The token of the highest log-probability; of several the one of the lowest id, as an argmax has it."""
    return min(listed, key=lambda token: (-listed[token], token))
