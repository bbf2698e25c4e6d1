"""Chooses the engine that generates from a finished folder: vLLM in its own process, as it will be served.

Where the vLLM installed here cannot load the format, or this CPU lacks what its kernels need, transformers generates
from the dequantized folder and the report says so (plan/checks/this_machine.py). Knows no weights.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hubplugin import memory
from hubplugin.checkpoint.adapters import composed
from hubplugin.errors import ServeError
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.evaluation.speed.kv_caches import Start
from hubplugin.evaluation.speed.rounds import Answered, Subject, Turn
from hubplugin.manifest.speed import Speed
from hubplugin.plan.checks import this_machine
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.plan.vllm_support import CPU, Verdict
from hubplugin.progress import progress
from serve import codes, forking, kv_cache, smoke, throughput, vllm_settings
from serve.endpoint.companions import adapters

FORK_SERVER = 10**9  # bytes that a process with vLLM imported takes beside what is forked from it
ADAPTER = "adapter"  # the name that an adapter is asked by
FEWEST = 4  # requests at a concurrency; else one for each place


def generate(folder: Path, prompts: list[list[int]], tokens: int, verdicts: Sequence[Verdict]) -> Generated:
    """Generate `tokens` tokens greedily after each prompt of token ids.

    Raises ServeError where the engine that should load the folder does not.
    """
    target, why = this_machine.why_not(verdicts)
    if why:
        return _by_transformers(folder, prompts, tokens, f"vLLM on {target}: {why}")
    options, asked = _given(folder)
    answer = smoke.generate(folder, prompts, tokens, options=options, asked=asked)
    return Generated(f"vLLM on {target}{_dense(folder, target)}", answer.token_ids, answer.logprobs)


def generate_anyhow(folder: Path, prompts: list[list[int]], tokens: int, verdicts: Sequence[Verdict]) -> Generated:
    """As `generate`, but with transformers where no vLLM is installed, which the report then says."""
    if vllm_settings.version():
        return generate(folder, prompts, tokens, verdicts)
    return _by_transformers(folder, prompts, tokens, "vLLM is not installed here")


def _by_transformers(folder: Path, prompts: list[list[int]], tokens: int, why: str) -> Generated:
    generated = generate_dequantized(folder, prompts, tokens)
    return Generated(f"{generated.engine} ({why})", generated.token_ids, generated.logprobs)


def kept(variants: Sequence[VariantPlan]) -> AbstractContextManager[object]:
    """Within it vLLM is imported once for all variants, where there are several and memory has room for that beside the
    one that needs most."""
    if len(variants) < 2 or max(each.peak_memory for each in variants) + FORK_SERVER > memory.available():
        return nullcontext()
    return forking.kept()


def take_turn(subject: Subject, settings: Speed, number: int) -> Turn:
    """Serve a folder with vLLM, time what the settings ask for, and stop it; `number` chooses the prompts.

    Raises ServeError where the vLLM at hand does not load the folder: no other engine's speed stands in for its.
    """
    name, target, loads = subject.name, _target(subject), _loads(settings)
    given = subject.folder, name, loads, subject.vocabulary, number, _progress(name)
    turn = throughput.turn(*given, *_given(subject.folder))
    answered = (
        Answered(each.load.concurrency, each.load.requests, each.first_token, each.per_token, each.tokens_per_second)
        for each in turn.answered
    )
    engine = f"vLLM {turn.version} on {target}{_dense(subject.folder, target)}"
    return Turn(engine, turn.dtype, turn.ready_seconds, turn.peak_bytes, tuple(answered), turn.others)


def serve_cache(subject: Subject, settings: Speed, dtype: str, sequences: Sequence[Sequence[int]]) -> Start:
    """Serve a folder with vLLM and one data type of its KV cache, score sequences of token ids, time the highest
    concurrency, and stop it. Raises ServeError where the vLLM at hand does not have it."""
    name, load = subject.name, _loads(settings)[-1]
    _target(subject)
    given = subject.folder, name, dtype, sequences, load, subject.vocabulary, _progress(name)
    served = kv_cache.serve(*given, *_given(subject.folder))
    rate, others = served.answered.tokens_per_second, served.answered.others
    return Start(served.stored_as, served.bytes_per_token, served.texts, rate, others)


def _given(folder: Path) -> tuple[tuple[str, ...], str | None]:
    """vLLM's options for a folder, and the name that asks for an adapter in it.

    Codes are computed with wherever vLLM has a kernel for them, also where `serve` would make dense weights of them
    because that is faster: what is proved and timed holds for whoever takes the folder to a vLLM of his own.
    """
    config, inside = vllm_settings.read_config(folder) or {}, composed.inside(folder)
    options = codes.KEPT if codes.has_kernel(config) else ()
    if inside is None:
        return options, None
    return (*options, *adapters.options([adapters.Adapter(ADAPTER, inside.resolve())], str(folder))), ADAPTER


def _target(subject: Subject) -> str:
    """The kind of machine that this is. Raises ServeError where the vLLM here does not load the folder on it."""
    target, why = this_machine.why_not(subject.verdicts)
    if why:
        raise ServeError(subject.name, f"vLLM on {target}: {why}", "measure it on another machine")
    return target


def _dense(folder: Path, target: str) -> str:
    """What an engine's name says of codes that it has no kernel for."""
    config = vllm_settings.read_config(folder) or {}
    made = target == CPU and codes.made_dense(config) and not codes.has_kernel(config)
    return ", codes made dense weights" if made else ""


def _loads(settings: Speed) -> list[throughput.Load]:
    asked = settings.prompt_tokens, settings.output_tokens
    return [throughput.Load(places, max(FEWEST, places), *asked) for places in settings.concurrency]


def _progress(name: str) -> Callable[[str], None]:
    return lambda line: progress(f"speed | {name} | {line}")
