"""What the report and card of a variant say of the other variants of its manifest.

Knows finished folders and their reports. Measures nothing: sizes and numbers are the others' own.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hubplugin import report, writing
from hubplugin.errors import CheckpointError
from hubplugin.report import Report, Sibling


def relate(reports: Sequence[Report], out: Path) -> list[Report]:
    """The reports, each with the others in `out` that were made by the same manifest and passed their gate.

    Report and card of a variant are written again where the others have changed.
    """
    family = list(_passed(out))
    related = []
    for made in reports:
        others = tuple(
            _sibling(other)
            for other in family
            if other.variant != made.variant and other.manifest_sha256 == made.manifest_sha256
        )
        if others != made.siblings:
            made = made.model_copy(update={"siblings": others})
            writing.write(made, out / made.variant)
        related.append(made)
    return related


def _passed(out: Path) -> Iterable[Report]:
    """The reports of all finished variants, the largest first; a folder that holds none of ours is passed over."""
    found = []
    for path in sorted(out.glob(f"[!.]*/{report.FILE_NAME}")):  # hidden folders are variants in the making
        try:
            found.append(report.read(path.parent))
        except CheckpointError:
            continue
    return sorted((made for made in found if made.passed), key=lambda made: -made.sizes.safetensors_bytes)


def _sibling(other: Report) -> Sibling:
    measured = other.evaluation
    return Sibling(
        variant=other.variant,
        repo=other.repo,
        safetensors_bytes=other.sizes.safetensors_bytes,
        perplexity_ratio=measured.variant.perplexity / measured.base.perplexity if measured else None,
        mean_kl=measured.variant.mean_kl if measured else None,
    )
