"""The check of speed: base and variant take turns in vLLM again, as the report says that they did.

Held against the report are speed-ups over the base of the same round, which a slow minute costs nothing; on another
machine or engine they are others, and are shown beside the report's without a judgement.
"""

from collections.abc import Iterator

from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.speed import rounds
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.model.architectures import architecture, configs, families
from hubplugin.plan import vllm_support
from hubplugin.plan.costs import operations
from hubplugin.report import Report
from hubplugin.speed_record import Machine, Served, Speed, Spread
from hubplugin.verification.outcome import Finding, compared, unchecked
from hubplugin.verification.subject import CONFIG, Subject

# of a speed-up, that medians may differ by beside what rounds spread over. Of two runs of 3 rounds with a standard
# deviation of 5 % that measured the same thing, 1 in 1000 pairs differs by more
ALLOWED = 0.05
FEWEST_ROUNDS = 2  # a single one has no spread


def measured_again(subject: Subject) -> Iterator[Finding]:
    """At each concurrency the variant is as many times as fast as the base as the report says."""
    report = subject.report
    if report is None or report.speed is None:
        return
    if report.speed.variant is None:
        yield unchecked(f"the report has none: {report.speed.not_measured}")
        return
    found = _measured(subject, report, report.speed.variant)
    if found.variant is None:
        yield unchecked(f"not measured here: {found.not_measured}", claimed=_usual(report.speed.variant))
        return
    why = _not_comparable(report.speed, found)
    for said, again in zip(report.speed.variant.loads, found.variant.loads, strict=True):
        if said.speedup is not None and again.speedup is not None:
            yield _compared(f"speed-up, {said.concurrency} at once", said.speedup, again.speedup, why)


def _measured(subject: Subject, report: Report, said: Served) -> Speed:
    """With the settings that the report says, whatever the manifest does."""
    assert report.speed is not None
    asked = Settings(
        prompt_tokens=report.speed.prompt_tokens,
        output_tokens=report.speed.output_tokens,
        concurrency=tuple(load.concurrency for load in said.loads),
        rounds=report.speed.rounds,
    )
    return rounds.measure(_base(subject), _variant(subject, report), asked, engine_choice.take_turn)


def _base(subject: Subject) -> rounds.Subject:
    folder = subject.base_folder
    config = configs.read_config(folder, str(folder))
    family = families.match(config, str(folder))
    dims = architecture.dimensions(config, family, f"{folder}/{CONFIG}")
    loads = vllm_support.verdicts(config["model_type"], dims, ())
    return rounds.Subject("base", folder, loads, operations.of(family, dims, config), dims.vocab)


def _variant(subject: Subject, report: Report) -> rounds.Subject:
    family = families.match(subject.config, subject.files.name)
    dims = architecture.dimensions(subject.config, family, f"{subject.files.name}: {CONFIG}")
    loads = [vllm_support.of_report(load.target, load.loads, load.why, load.note) for load in report.loads]
    work = operations.of(family, dims, subject.config, subject.reader.headers)
    return rounds.Subject(report.variant, subject.folder, loads, work, dims.vocab)


def _not_comparable(said: Speed, found: Speed) -> str:
    """Why speed-ups may differ from those of the report though both are true; empty where they may not."""
    if _kind(said.machine) != _kind(found.machine):
        return f"measured on {_words(said.machine)}; this is {_words(found.machine)}"
    if said.engine != found.engine:
        return f"measured in {said.engine}; this is {found.engine}"
    if min(said.rounds, found.rounds) < FEWEST_ROUNDS:
        return "a single round says nothing of how much rounds differ"
    return ""


def _kind(one: Machine) -> tuple[str, int, tuple[str, ...]]:
    return one.processor, one.cores, one.accelerators


def _words(one: Machine) -> str:
    """A machine as one reads it."""
    return ", ".join((one.processor, f"{one.cores} cores", *one.accelerators))


def _compared(what: str, said: Spread, found: Spread, why: str) -> Finding:
    if why:
        return unchecked(why, what, _text(said), _text(found))
    allowed = said.greatest - said.least + found.greatest - found.least + ALLOWED * said.median
    detail = f"medians may differ by {allowed:.2f}: what rounds spread over, and {ALLOWED:.0%}"
    return compared(_text(said), _text(found), what, detail, holds=abs(said.median - found.median) <= allowed)


def _text(ratio: Spread) -> str:
    return f"{ratio.median:.2f} times the base's tokens per second ({ratio.least:.2f} to {ratio.greatest:.2f})"


def _usual(said: Served) -> str | None:
    """What the report says of the highest concurrency."""
    ratio = said.loads[-1].speedup if said.loads else None
    return _text(ratio) if ratio else None
