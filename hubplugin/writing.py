"""Report, card, plots and scores of a variant, written into its folder. Knows what a report is drawn and written as."""

from contextlib import suppress
from pathlib import Path

from hubplugin import report
from hubplugin.checkpoint.model_folder import SCORES, SCORES_FILE
from hubplugin.disk import write_atomically
from hubplugin.evaluation.cards import benchmarks, card, plots
from hubplugin.report import Report
from hubplugin.variant_folder import CARD


def write(made: Report, folder: Path) -> None:
    """Write what a report alone decides; the plots come before the card that shows them."""
    report.write(made, folder)
    plots.write(made, folder)
    _write_scores(made, folder)
    write_atomically(folder / CARD, card.render(made))


def _write_scores(made: Report, folder: Path) -> None:
    """The file of registered benchmarks, or none where the report has no score of one."""
    text = benchmarks.render(made)
    if text is not None:
        (folder / SCORES).mkdir(exist_ok=True)
        write_atomically(folder / SCORES_FILE, text)
    elif (folder / SCORES_FILE).is_file():
        (folder / SCORES_FILE).unlink()
        with suppress(OSError):  # it holds files of others
            (folder / SCORES).rmdir()


def written(made: Report, folder: Path) -> bool:
    """Whether card and plots of a report stand in its folder as they would be written now.

    Of plots only their presence is looked at: they are drawn from numbers of the report.
    """
    path, scores = folder / CARD, folder / SCORES_FILE
    if (scores.read_text(encoding="utf-8") if scores.is_file() else None) != benchmarks.render(made):
        return False
    whole = path.is_file() and path.read_text(encoding="utf-8") == card.render(made)
    return whole and all((folder / name).is_file() for name in plots.names(made))
