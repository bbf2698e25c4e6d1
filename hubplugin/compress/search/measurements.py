"""What searches measure on a base before they choose: no target is in it, so variants of other targets share it.

Kept in a file, it is measured once for all ratios and budgets of a manifest, and a killed search goes on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from hubplugin.checkpoint.resume import Decision
from hubplugin.progress import progress
from hubplugin.record import Record
from hubplugin.report import Removal


class Costs(Record):
    """KL in nats per token that each choice for one block of the base costs alone; the base's own cost 0."""

    heads: tuple[tuple[int, int, float], ...]  # query heads, KV heads, KL; no heads: KL without attention
    ffn: tuple[tuple[int, float], ...]  # channels, KL; none: KL without the FFN


class Widths(Record):
    """Costs of all blocks."""

    blocks: tuple[Costs, ...]
    seconds: float = 0.0  # that measuring took


class Added(Record):
    """What a candidate of layer dropping added to KL when it was tried last, on beginnings of sequences."""

    block: int
    what: str
    kl: float


class Dropped(Record):
    """Layers and sublayers in the order in which they go, and what it takes to choose the next."""

    removals: tuple[Removal, ...] = ()
    added: tuple[Added, ...] = ()
    beginnings_kl: float = 0.0  # of the model without them, on beginnings of sequences
    seconds: tuple[float, ...] = ()  # that choosing each of them took


class Sensitivities(Record):
    """What every option of every unit loses, and what one option of each does to the model."""

    losses: tuple[tuple[float, ...], ...]  # tr((W-W')H(W-W')^T) / tr(W H W^T), by unit and option
    probed: tuple[int, ...]  # by unit: the option that KL was measured with
    kl: tuple[float, ...]  # by unit: nats per token, KL(base || base with that unit alone quantized)
    tokens: int  # that `kl` is the mean over
    seconds: float = 0.0  # that measuring took

    def predicted_kl(self) -> list[list[float]]:
        """KL by unit and option: in proportion to the loss, through the measured point."""
        return [
            [kl * loss / losses[probed] if losses[probed] > 0 else 0.0 for loss in losses]
            for losses, probed, kl in zip(self.losses, self.probed, self.kl, strict=True)
        ]


Measurement = TypeVar("Measurement", Widths, Dropped, Sensitivities)
Whole = TypeVar("Whole", Widths, Sensitivities)


@dataclass
class Kept(Generic[Measurement]):
    """A measurement in a file, if there is one; without a file nothing is kept."""

    file: Decision[Measurement] | None = None
    reused: float = 0.0  # seconds that an earlier search spent on what was taken from it

    def load(self) -> Measurement | None:
        """The measurement, where it was made."""
        return self.file.load() if self.file else None

    def save(self, measured: Measurement) -> None:
        """Keep it, in place of what was there."""
        if self.file:
            self.file.save(measured)


def load_or_measure(kept: Kept[Whole], what: str, measure: Callable[[], Whole]) -> Whole:
    """What is kept, else what is measured now; `what` names it in a line of progress."""
    found = kept.load()
    if found is None:
        found = measure()
        kept.save(found)
    else:
        kept.reused = found.seconds
        progress(f"{what} | measured before, in {found.seconds:.0f} s")
    return found
