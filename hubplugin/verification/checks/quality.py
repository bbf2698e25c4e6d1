"""The check of quality: base and variant measured again on the tokens that the report names, of each text.

The tokens are made anew from the manifest, and count only where they have the hash that the report says.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from hubplugin.compress.calibration import calibration_data
from hubplugin.errors import CalibrationError, HubError, HubPluginError
from hubplugin.evaluation import quality_metrics
from hubplugin.evaluation.metrics import QUALITY, Metric
from hubplugin.manifest.reading import loading
from hubplugin.manifest.schema import Evaluate
from hubplugin.manifest.source import Source
from hubplugin.model.architectures import configs, families
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.report import Evaluation, Quality
from hubplugin.variant_folder import MANIFEST
from hubplugin.verification import texts
from hubplugin.verification.outcome import Finding, compared, number, unchecked
from hubplugin.verification.subject import Subject

RELATIVE, ABSOLUTE = 0.01, 1e-4  # of what another machine's float32 sums may differ by


def measured_again(subject: Subject) -> Iterator[Finding]:
    """Perplexity, KL and all other metrics are what the report says, for variant and base."""
    if subject.report is None or subject.report.evaluation is None:
        return
    evaluate, base = _settings(subject), subject.base_folder
    pairs = zip(subject.report.evaluation.on_all_texts, evaluate.sources, strict=True)
    for place, (said, source) in enumerate(pairs, start=1):
        for finding in _on_text(subject, base, evaluate, said, source):
            yield finding if place == 1 else replace(finding, what=f"{finding.what} on text {place}")


def _on_text(subject: Subject, base: Path, evaluate: Evaluate, said: Evaluation, source: Source) -> Iterator[Finding]:
    at = source.model_copy(update={"revision": said.tokens.revision}) if source.dataset else source
    try:
        at = texts.placed(subject, at)
    except CalibrationError as error:
        yield unchecked(f"{error.what}; {error.fix}", "tokens", said.tokens.sha256)
        return
    try:
        tokens = calibration_data.tokens(at, read_tokenizer(base), subject.folder, base, shuffle=False)
    except HubPluginError as error:
        yield unchecked(f"the tokens cannot be made again: {error.where}: {error.what}", "tokens", said.tokens.sha256)
        return
    if tokens.description.sha256 != said.tokens.sha256:
        why = f"made anew they have the sha256 {tokens.description.sha256}: {_why_other(source)}"
        yield unchecked(why, "tokens", said.tokens.sha256)
        return
    yield compared(said.tokens.sha256, tokens.description.sha256, "tokens")
    family = families.match(configs.read_config(base, str(base)), str(base))
    dtype = getattr(torch, evaluate.dtype)
    reference = quality_metrics.reference(base, family, tokens.ids, tokens.description, dtype)
    against_base = said.variant.mean_kl is not None
    with subject.together() as folder:
        of_variant = families.match(configs.read_config(folder, subject.files.name), subject.files.name)
        measured = quality_metrics.measure(folder, of_variant, reference, against_base)
    yield from _same(said, measured)


def _why_other(source: Source) -> str:
    """Why tokens may be others than those of the report though nothing is wrong with it."""
    if source.files:
        return "this is another text than was evaluated, or another base's tokenizer"
    return "data changes" if source.dataset else "samples of a base differ between machines"


def _same(said: Evaluation, found: Evaluation) -> Iterator[Finding]:
    for metric in QUALITY:
        claimed, measured = (metric.value(one.variant, one.base) for one in (said, found))
        yield from _compared(metric, metric.label, claimed, measured)
        if not metric.relative:
            claimed, measured = (metric.value(one.base, one.base) for one in (said, found))
            yield from _compared(metric, f"{metric.label} of the base", claimed, measured)


def _compared(metric: Metric[Quality], what: str, claimed: float | None, measured: float | None) -> Iterator[Finding]:
    """Nothing where the report has no such number."""
    if claimed is not None and measured is None:
        yield unchecked("this release does not measure it", what, str(claimed))
    elif claimed is not None and measured is not None:
        holds = abs(claimed - measured) <= ABSOLUTE + RELATIVE * abs(claimed)
        yield compared(number(claimed, metric.unit), number(measured, metric.unit), what, holds=holds)


def _settings(subject: Subject) -> Evaluate:
    """What the manifest evaluates."""
    manifest = loading.load(subject.folder / MANIFEST).manifest
    if manifest.evaluate is None:
        raise HubError(MANIFEST, "evaluates nothing, and the report has numbers", "run `hubplugin run` again")
    return manifest.evaluate
