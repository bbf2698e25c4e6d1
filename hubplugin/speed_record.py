"""The part of a report about speed: base and variant in vLLM on one machine. Computes nothing."""

from pydantic import Field

from hubplugin.record import Record


class Spread(Record):
    """A number that was measured once in each round."""

    median: float
    least: float
    greatest: float


class Machine(Record):
    """What was measured on. Neither its name nor its owner's is in here."""

    processor: str
    cores: int  # that this process may use
    features: tuple[str, ...]  # of the processor's vector instructions, as Linux calls them
    memory_bytes: int
    accelerators: tuple[str, ...] = ()


class Ceiling(Record):
    """What the machine reaches at dense matrix products alone, with all its cores; the engine may use fewer."""

    flops_per_second: Spread
    dtype: str  # in which it is fastest: the engine's, or float32 where no instruction takes the engine's
    size: int  # rows and columns of the matrices


class UnderLoad(Record):
    """A served model while so many requests are under way."""

    concurrency: int
    requests: int
    first_token_seconds: Spread  # the mean of the requests of a round
    per_token_seconds: Spread  # the same, of all tokens but the first
    tokens_per_second: Spread  # output tokens of all requests, over the time from first request to last answer
    mfu: Spread | None = None  # FLOPs that the shapes ask for, per second, over the ceiling's
    speedup: Spread | None = None  # tokens per second over the base's of the same round; None: the base itself


class Served(Record):
    """One model in vLLM."""

    ready_seconds: Spread  # from start to readiness, once in each round
    peak_bytes: Spread  # resident, of all processes of the engine; pages that they share count in each
    others_share: Spread  # of the machine's cores, that other processes used while requests were answered
    flops_per_request: float
    loads: tuple[UnderLoad, ...]  # by rising concurrency


class KVCache(Record):
    """The variant, started once with one data type of its KV cache, and what it says of real text then.

    What compares is held against the first line, the engine's own data type.
    """

    dtype: str  # as vLLM's --kv-cache-dtype takes it; "auto": what the engine chooses
    not_measured: str = ""  # why; then nothing below is known
    stored_as: str | None = None  # what "auto" came to; None: not known
    bytes_per_token: float | None = None  # bytes that the cache was given over the tokens that the engine fits in
    sequences: int | None = None  # of the evaluation's main text, from its start
    predicted_tokens: int | None = None  # of those sequences: all tokens but the first of each
    perplexity: float | None = None  # by the engine's own log-probabilities of those tokens
    perplexity_ratio: float | None = None
    top1_agreement: float | None = None  # ratio of positions where both rank the same token first
    # nats per token, a LOWER BOUND of KL(first line || this): of tokens that only one of both lists among its 20
    # likeliest, and of all others, the sum alone is known
    mean_kl_top20: float | None = None
    tokens_per_second: float | None = None  # at the highest concurrency, of this one start
    others_share: float | None = None  # of the machine's cores, that other processes used meanwhile


class Speed(Record):
    """Base and variant, which took turns in every round."""

    not_measured: str = ""  # why; then nothing below is known but the machine and what was asked
    machine: Machine
    prompt_tokens: int
    output_tokens: int
    rounds: int
    engine: str = ""  # name, release, and the dtype that it computes in
    ceiling: Ceiling | None = None
    base: Served | None = None
    variant: Served | None = None
    kv_caches: tuple[KVCache, ...] = ()  # of the variant; the engine's own data type first
    measured_from: dict[str, str] = Field(default_factory=dict)  # digests of what decided these numbers
