"""The plots of a card: which there are, that they show the report's numbers, and that they lie beside the card."""

import re
from pathlib import Path
from typing import Any

import pytest
from card_helpers import components, report, siblings
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from hubplugin import writing
from hubplugin.checkpoint.model_folder import PLOTS, PUSHED
from hubplugin.evaluation.cards import card, plots
from hubplugin.report import LinearResult, Report

SHOWN = re.compile(r"!\[[^\]]+\]\(([^)]+)\)")


def full(**changes: Any) -> Report:
    """A report with all three plots."""
    made = report(**changes)
    sizes = made.sizes.model_copy(update={"components": components(0.7)})
    sizes_base = made.sizes_base.model_copy(update={"components": components(2.0)})
    return made.model_copy(update={"sizes": sizes, "sizes_base": sizes_base, "siblings": siblings()})


def test_the_card_shows_exactly_the_plots_that_are_written(tmp_path: Path) -> None:
    made = full()
    writing.write(made, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == set(PLOTS) == set(SHOWN.findall(card.render(made)))
    assert set(PLOTS) <= set(PUSHED)
    for name in PLOTS:
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] == plots.WIDTH * plots.DPI and len(picture.convert("RGB").getcolors(10**6)) > 8
    assert writing.written(made, tmp_path)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"repo": None}, []),
        ({"evaluation": None}, ["loss-by-layer.png"]),
        ({"linears": (LinearResult(name="model.layers.0.x", method="gptq", loss=0.1, damp=0.0),)}, ["variants.png"]),
    ],
)
def test_plots_that_a_report_has_no_numbers_for_are_neither_shown_nor_kept(
    changes: dict[str, Any], left: list[str], tmp_path: Path
) -> None:
    writing.write(full(), tmp_path)
    made = report(**changes)
    writing.write(made, tmp_path)
    assert [path.name for path in tmp_path.glob("*.png")] == left == SHOWN.findall(card.render(made))


def test_a_card_whose_plot_is_gone_is_written_again(tmp_path: Path) -> None:
    made = full()
    writing.write(made, tmp_path)
    (tmp_path / PLOTS[0]).unlink()
    assert not writing.written(made, tmp_path)


def test_a_plot_is_the_same_bytes_for_the_same_report(tmp_path: Path) -> None:
    pictures = []
    for _ in range(2):
        plots.write(full(), tmp_path)
        pictures.append([(tmp_path / name).read_bytes() for name in PLOTS])
    assert pictures[0] == pictures[1]


def test_the_bars_are_the_components_bytes() -> None:
    made, axes = full(), Figure().add_subplot()
    plots.ALL[0].draw(axes, made)
    widths = [round(bar.get_width() * 1e6) for bars in axes.containers for bar in bars]
    expected = zip(made.sizes.components, made.sizes_base.components, strict=True)
    assert widths == [one.bytes for pair in expected for one in pair]
    ends = [bars[1].get_x() + bars[1].get_width() for bars in axes.containers]
    assert ends[-1] * 1e6 == pytest.approx(sum(one.bytes for one in made.sizes_base.components))


def test_the_greatest_loss_of_the_experts_of_a_block_is_drawn() -> None:
    linears = tuple(
        LinearResult(name=f"model.layers.{block}.mlp.experts.{one}.up_proj", method="gptq", loss=loss, damp=0.0)
        for block, losses in enumerate(((0.1, 0.3), (0.2, 0.05)))
        for one, loss in enumerate(losses)
    )
    axes = Figure().add_subplot()
    plots.ALL[1].draw(axes, report(linears=linears))
    (line,) = axes.get_lines()
    assert line.get_label() == "mlp.experts.up_proj" and list(line.get_ydata()) == [0.3, 0.2]


def test_the_front_holds_what_nothing_beats() -> None:
    points = [(24.0, 1.0), (20.0, 1.01), (15.0, 1.0003), (9.0, 1.2), (10.0, 1.3)]
    assert plots.pareto_front(points) == [(9.0, 1.2), (15.0, 1.0003), (24.0, 1.0)]


def test_a_name_between_dollar_signs_is_drawn_as_it_is(tmp_path: Path) -> None:
    """matplotlib takes such text for mathematics, and fails where it is none."""
    plots.write(full(variant=r"$\no$"), tmp_path)
    assert (tmp_path / "variants.png").is_file()


def test_labels_cover_neither_each_other_nor_a_point_and_long_names_leave_room_for_the_plot(tmp_path: Path) -> None:
    others = [plots.Point("near-to-the-next-one", 9.9, 1.0110), plots.Point("x" * 200, 10.0, 1.0109)]
    others += [plots.Point("base", 24.2, 1.0)]
    figure = Figure(figsize=(8, 4), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    plots.draw_points(axes, others)
    boxes = [label.get_window_extent() for label in axes.texts]
    places = [axes.transData.transform((one.megabytes, one.ratio)) for one in others]
    assert not any(boxes[one].overlaps(boxes[other]) for one in range(3) for other in range(one))
    assert not any(box.contains(*place) for box in boxes for place in places)
    assert axes.bbox.width > figure.bbox.width / 2


def test_powers_of_ten_beside_an_axis_are_set_as_mathematics() -> None:
    with rc_context(plots.STYLE):
        figure = Figure()
        axes = figure.add_subplot()
        plots.ALL[1].draw(axes, report())
        figure.draw_without_rendering()
    labels = [label for label in axes.get_yticklabels() if "$" in label.get_text()]
    assert labels and all(label.get_parse_math() for label in labels)
