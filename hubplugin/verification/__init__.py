"""`hubplugin verify`: what a published model claims, against its tensors: ours by its report, anybody's by its card.

Knows folders, repos, reports and cards; changes none of them and runs no step. CHECKS has one row for each check.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hubplugin
from hubplugin.errors import CheckpointError, HubPluginError, one_line
from hubplugin.report import Report
from hubplugin.verification import outcome, texts
from hubplugin.verification.checks import (
    adapters,
    base,
    card,
    files,
    linears,
    quality,
    signature,
    sizes,
    speed,
    tensors,
)
from hubplugin.verification.outcome import Finding, Line, Outcome, Verification, failed, unchecked
from hubplugin.verification.subject import Subject, open_subject

__all__ = ["CHECKS", "Check", "Line", "Outcome", "Verification", "verify"]


@dataclass(frozen=True)
class Check:
    """One row."""

    name: str
    look: Callable[[Subject], Iterator[Finding]]
    option: str = ""  # of the command line, without which it is not run: it takes long
    claimed: Callable[[Report], bool] = lambda report: True  # whether a report says anything that it looks at
    adapters: bool = False  # whether it is asked of an adapter, whose folder is no model's


QUALITY, SPEED = "quality", "speed"
# what files from elsewhere may raise where they hold another kind of value than a check expects
FOREIGN = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
CHECKS = (
    Check("files as measured", files.as_reported, adapters=True),
    Check("signature", signature.is_there, adapters=True),
    Check("files as signed", signature.files_as_signed, adapters=True),
    Check("signature's key", signature.made_with_key, adapters=True),
    Check("manifest", files.manifest, adapters=True),
    Check("tokenizer", files.tokenizer),
    Check("pickles", files.pickles, adapters=True),
    Check("card", files.card, adapters=True),
    Check("report", files.report_of_card, adapters=True),
    Check("scores of benchmarks", files.scores, adapters=True),
    Check("card names", files.repository_card_claims),
    Check("front matter", card.metadata, adapters=True),
    Check("front matter", sizes.in_card),
    Check("card's lines", card.text, adapters=True),
    Check("known tensors", linears.known),
    Check("shapes", tensors.as_implied),
    Check("shape of the variant", sizes.shape),
    Check("codes as configured", linears.configured),
    Check("codes as in the steps", linears.as_in_steps),
    Check("codes as in words", linears.in_words),
    Check("quantize_config.json", linears.files_agree),
    Check("stored zero points", linears.zero_points),
    Check("checkpoint_format", tensors.zero_offset),
    Check("g_idx", tensors.group_index),
    Check("scales", tensors.scale_dtypes),
    Check("finite weights", tensors.finite),
    Check("output head", tensors.head),
    Check("sizes", sizes.of_variant),
    Check("adapter", adapters.tensors, adapters=True),
    Check("sizes of the adapter", adapters.sizes, adapters=True),
    Check("weights that it is for", adapters.parent, adapters=True),
    Check("sizes of the base", sizes.of_base),
    Check("zeros as asked", sizes.zeros_as_asked),
    Check("base", base.identity),
    Check("licence of the base", base.licence, adapters=True),
    Check("values of the base", base.values),
    Check("quality", quality.measured_again, option=QUALITY, adapters=True),
    Check("speed", speed.measured_again, option=SPEED, claimed=lambda report: report.speed is not None),
)


def verify(
    target: str,
    base_name: str | None = None,
    options: Collection[str] = (),
    given: Iterable[Path] = (),
    *,
    public_key: Path | None = None,
) -> Verification:
    """Look at a folder, or at "owner/name[@revision]".

    `base_name` is a repo or folder to compare with; `given` are the files that the manifest evaluates, in its order.
    Raises HubPluginError where there is nothing that could be checked, for files that are not as many, and for a public
    key that is none.
    """
    subject = open_subject(target, base_name, given, public_key)
    texts.check_given(subject, QUALITY in options)
    lines, told = [], set[str]()
    for check in CHECKS:
        for line in outcome.lines(check.name, _looked(check, subject, options, told)):
            lines.append(line)
    return Verification(
        hubplugin=hubplugin.__version__,
        target=target,
        revision=subject.files.sha,
        made_by_hubplugin=subject.report is not None,
        lines=tuple(lines),
    )


def _looked(check: Check, subject: Subject, options: Collection[str], told: set[str]) -> Iterator[Finding]:
    """What a check finds; where it cannot look, why. Weights that cannot be read fail once, and are then named."""
    if subject.report and subject.report.adapter and not check.adapters:
        return
    if check.option and check.option not in options:
        if subject.report and check.claimed(subject.report):
            yield unchecked(f"measured only with --{check.option}")
        return
    try:
        yield from check.look(subject)
    except HubPluginError as error:
        why = f"{error.where}: {error.what}"
        new = isinstance(error, CheckpointError) and why not in told
        told.add(why)
        yield failed(why) if new else unchecked(why)
    except FOREIGN as error:
        yield unchecked(f"what is there cannot be understood: {type(error).__name__}: {one_line(error)}")
