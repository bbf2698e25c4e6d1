"""Report, card and plots of a variant, written into its folder. Knows what a report is drawn and written as."""

from pathlib import Path

from hubplugin import report
from hubplugin.disk import write_atomically
from hubplugin.evaluation.cards import card, plots
from hubplugin.report import Report
from hubplugin.variant_folder import CARD


def write(made: Report, folder: Path) -> None:
    """Write what a report alone decides; the plots come before the card that shows them."""
    report.write(made, folder)
    plots.write(made, folder)
    write_atomically(folder / CARD, card.render(made))


def written(made: Report, folder: Path) -> bool:
    """Whether card and plots of a report stand in its folder as they would be written now.

    Of plots only their presence is looked at: they are drawn from numbers of the report.
    """
    path = folder / CARD
    whole = path.is_file() and path.read_text(encoding="utf-8") == card.render(made)
    return whole and all((folder / name).is_file() for name in plots.names(made))
