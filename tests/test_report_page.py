"""`hubplugin report`: what the page holds, that foreign strings stay text, what differs, and which folders it takes."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import test_speed
from card_helpers import report
from test_card_plots import full
from test_metrics import MAX_KL

from hubplugin import cli
from hubplugin import report as reports
from hubplugin.errors import CheckpointError
from hubplugin.evaluation import metrics
from hubplugin.evaluation.pages import differences, figures, page, runs, table
from hubplugin.report import GateLine, LinearResult, Report

EVIL = "<script>alert('x')</script>\"><img src=http://evil.example/x>"


class Parsed(HTMLParser):
    """The elements and the text of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return [name for name, _ in self.elements].count(tag)

    def loaded(self) -> list[str]:
        return [attrs[key] or "" for _, attrs in self.elements for key in ("src", "href", "srcset") if key in attrs]

    @property
    def text(self) -> str:
        return "".join(self.texts)


def stand(root: Path, *made: Report, run: str = "run") -> Path:
    """A folder of variants."""
    for count, one in enumerate(made):
        folder = root / run / f"{count}-variant"
        folder.mkdir(parents=True)
        reports.write(one, folder)
    return root / run


def rendered(*folders: Path) -> str:
    return page.render(runs.read(folders))


def changed(**values: float) -> Report:
    made = report()
    assert made.evaluation
    quality = made.evaluation.variant.model_copy(update=values)
    return made.model_copy(update={"evaluation": made.evaluation.model_copy(update={"variant": quality})})


def plain(**changes: Any) -> Report:
    """A report of which no plot shows the linears."""
    return report(**{"linears": (), **changes})


# -- what it holds


def test_the_page_holds_every_number_of_every_metric(tmp_path: Path) -> None:
    small = changed(mean_kl_stderr=0.00613, flips=0.0517, acceptance_rate=0.8713)
    made = [full(variant="Fast", speed=test_speed.measured()), small.model_copy(update={"variant": "Small"})]
    text = Parsed(rendered(stand(tmp_path, *made))).text
    rows = figures.rows(made)
    assert {row.metric.key for row in rows} >= {row.key for row in metrics.QUALITY} | {"speedup", "ready_seconds"}
    for row in rows:
        assert row.label in text
        for one in made:
            for number in (row.variant(one), row.base(one)):
                assert number is None or (number.text in text and number.around in text), row.label
    for known in (
        "ns/base at commit " + "a" * 40, "apache-2.0", "2026-01-02T03:04:05+00:00", "some, 2 cores with avx2",
        "vLLM 1.2 on cpu, bfloat16", "finite, no NaN, no Inf", "model.layers.6.mlp.down_proj",
        "bits: 4, group_size: 64",
    ):  # fmt: skip
        assert known in text


def test_a_new_metric_appears_by_its_row_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = stand(tmp_path, changed(max_kl=7.654321).model_copy(update={"linears": ()}))
    assert "max KL" not in rendered(folder)
    monkeypatch.setattr(metrics, "QUALITY", (*metrics.QUALITY, MAX_KL))
    text = Parsed(rendered(folder)).text
    assert "max KL" in text and "7.654" in text


def test_base_and_variants_are_lines_of_one_table_and_what_was_not_measured_is_empty(tmp_path: Path) -> None:
    found = runs.read([stand(tmp_path, report(variant="A"), report(variant="B", evaluation=None))])
    made = table.of(table.shown(found))
    assert [line.name for line in made.lines] == ["base (ns/base)", "A", "B"]
    cells = {
        line.name: dict(zip([head.label for head in made.headings], line.cells, strict=True)) for line in made.lines
    }
    base, first, second = (cells[line.name] for line in made.lines)
    assert isinstance(base["perplexity"], figures.Number) and base["perplexity"].value == 20.46
    assert base["mean KL"] is second["mean KL"] is second["perplexity"] is None
    assert isinstance(first["mean KL"], figures.Number) and first["gate"] == "passed" and "run" not in first


def test_a_failed_gate_stands_at_the_top(tmp_path: Path) -> None:
    line = GateLine(name="mean KL", passed=False, detail="1.2 is above 1.0")
    text = Parsed(rendered(stand(tmp_path, report(gate=(line,))))).text
    assert text.index("Failed at the gate") < text.index("1.2 is above 1.0") < text.index("All variants")


def test_the_same_reports_give_the_same_page_in_which_all_plots_are_data(tmp_path: Path) -> None:
    folder = stand(tmp_path, full())
    text = rendered(folder)
    assert text == rendered(folder)
    pictures = [source for source in Parsed(text).loaded() if source.startswith("data:image/png;base64,")]
    assert len(pictures) == 3  # all variants, sizes by component, loss by layer
    assert all(base64.b64decode(one.split(",")[1]).startswith(b"\x89PNG") for one in pictures)


def test_numbers_that_no_measurement_gives_are_shown_and_sort_last(tmp_path: Path) -> None:
    made = changed(perplexity=float("inf"), mean_kl=float("nan"))
    made = made.model_copy(
        update={
            "sizes": made.sizes.model_copy(update={"safetensors_bytes": 0}),
            "steps": ({"bits": 3}, {"method": "unknown"}),
            "linears": (LinearResult(name="x", method="y", loss=float("nan"), damp=-0.5, dead_inputs=None),),
        }
    )
    run = runs.Run(tmp_path, "run", [runs.Made(tmp_path, made)])
    text = page.render([run])
    assert 'data-key="Infinity">inf' in text and 'data-key="">nan' in text and "?, unknown" in text


# -- foreign strings


def test_foreign_strings_are_text_and_nothing_is_fetched(tmp_path: Path) -> None:
    base = report().base.model_copy(update={"licence": EVIL, "licence_link": "javascript:alert(1)", "repo": EVIL})
    made = full(
        variant=EVIL, base=base, manifest_text=f"</pre>{EVIL}", notes=(EVIL,), versions={EVIL: EVIL},
        steps=({"method": EVIL, EVIL: EVIL},), gate=(GateLine(name=EVIL, passed=False, detail=EVIL),),
        linears=(LinearResult(name=EVIL, method=EVIL, loss=0.1, damp=0.0, fallback=EVIL),), widths={EVIL: (2, 1)},
    )  # fmt: skip
    other = made.model_copy(update={"hubplugin": EVIL, "steps": ()})
    text = rendered(stand(tmp_path, made, run="<b>&"), stand(tmp_path, other, run="<i>'\""))
    seen = Parsed(text)
    assert (seen.count("script"), seen.count("style"), seen.count("i"), seen.count("b")) == (1, 1, 0, 0)
    assert all(one.startswith(("data:", "#variant-")) for one in seen.loaded())
    assert seen.text.count(EVIL) > 20 and "<b>&" in seen.text and "http" not in "".join(seen.loaded())
    assert not [attrs for _, attrs in seen.elements for key in attrs if key.startswith("on")]


def test_the_policy_allows_the_pages_own_script_and_style_and_pictures_in_it(tmp_path: Path) -> None:
    text = rendered(stand(tmp_path, plain()))
    policy = next(
        attrs["content"] or "" for tag, attrs in Parsed(text).elements if tag == "meta" and "content" in attrs
    )
    assert policy.startswith("default-src 'none'; img-src data:; ") and "unsafe" not in policy
    for kind in ("script", "style"):
        (inside,) = re.findall(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


# -- what differs


def test_figures_that_differ_are_listed_with_old_new_and_change() -> None:
    old, new = report(), changed(mean_kl=0.2, top1_agreement=0.9, p99_kl=1.8700001)
    found = {one.what: one for one in differences.compare(old, new).figures}
    assert set(found) == {"mean KL", "top-1 agreement", "p99 KL"}
    kl, same = found["mean KL"], found["top-1 agreement"]
    assert (kl.old, kl.new, kl.change, kl.better) == ("0.1523", "0.2000", "+0.04770 (+31.32 %)", False)
    assert (same.old, same.new, same.better) == ("84.12 %", "90.00 %", True)
    assert (found["p99 KL"].old, found["p99 KL"].new) == ("1.87", "1.8700001")  # digits enough to tell them apart


def test_what_only_one_report_has_and_what_is_no_number_differs_too() -> None:
    old = report(speed=test_speed.measured())
    linears = (*old.linears[:-1], old.linears[-1].model_copy(update={"loss": 0.5, "fallback": "damped more"}))
    gate = (GateLine(name="finite", passed=False, detail="a NaN"),)
    new = report(linears=linears[1:], gate=gate, hubplugin="0.2.0", seconds={"pull": 9.0})
    found = differences.compare(old, new)
    assert any(one.what == "speed-up, 8 at once" and one.old == "1.50" and one.new == "—" for one in found.figures)
    made = {one.what: (one.old, one.new) for one in found.made}
    assert made["hubplugin"] == ("0.1.0", "0.2.0") and made["gate, finite"] == ("passed", "FAILED: a NaN")
    assert made["time, pull"] == ("1.2 s", "9.0 s") and made["time, evaluation"] == ("3.0 min", "—")
    assert [(one.what, one.old, one.new) for one in found.linears] == [
        ("model.layers.0.mlp.down_proj", "gptq", "—"),
        ("model.layers.6.mlp.down_proj, loss", "0.06600", "0.5000"),
        ("model.layers.6.mlp.down_proj, fallback", "—", "damped more"),
    ]
    same = differences.compare(old, old)
    assert (same.figures, same.made, same.linears) == ([], [], [])


def test_variants_of_one_name_in_two_runs_are_compared_in_the_order_of_the_folders(tmp_path: Path) -> None:
    before = stand(tmp_path, plain(variant="A"), plain(variant="B"), run="before")
    after = stand(tmp_path, changed(mean_kl=0.2).model_copy(update={"variant": "A", "linears": ()}), run="after")
    text = Parsed(rendered(before, after)).text
    assert "A: before → after" in text and "+0.04770 (+31.32 %)" in text and "B: before" not in text
    assert "A: after → before" in Parsed(rendered(after, before)).text
    assert (
        "Quality, sizes and speed are the same." in Parsed(rendered(before, stand(tmp_path, plain(variant="B")))).text
    )
    assert "Between two runs" not in rendered(before)


# -- folders


def test_a_variants_own_folder_and_one_given_twice_are_variants_of_their_run(tmp_path: Path) -> None:
    folder = stand(tmp_path, plain(variant="A"), plain(variant="B"))
    (folder / ".0-variant.part").mkdir()
    reports.write(plain(variant="hidden"), folder / ".0-variant.part")
    (folder / "notes").mkdir()
    (only,) = runs.read([folder / "1-variant"])
    assert (only.name, [one.report.variant for one in only.made]) == ("run", ["B"])
    (whole,) = runs.read([folder / "1-variant", folder, tmp_path / "run" / "0-variant" / ".."])
    assert sorted(one.report.variant for one in whole.made) == ["A", "B"]


def test_runs_are_named_by_as_many_parts_as_tell_them_apart(tmp_path: Path) -> None:
    places = [stand(tmp_path / first, plain(), run="demo") for first in ("old", "new")]
    names = [run.name for run in runs.read([*places, stand(tmp_path, plain(), run="other")])]
    assert names == ["old/demo", "new/demo", "other"]


def newer(folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps({"schema_version": reports.SCHEMA_VERSION + 1}))


def torn(folder: Path) -> None:
    path = folder / "report.json"
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("spoil", "what", "fix"),
    [
        (torn, "is not a report of this version", "hubplugin run"),
        (newer, "this release of hubplugin reads up to", "upgrade hubplugin"),
        (lambda folder: (folder / "report.json").unlink(), "holds no report.json", "name a folder of variants"),
    ],
)
@pytest.mark.parametrize("given", ["run", "run/0-variant"])
def test_a_folder_with_nothing_to_show_is_three_lines_and_no_page(
    spoil: Any, what: str, fix: str, given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(stand(tmp_path, plain()) / "0-variant")
    good = stand(tmp_path, plain(), run="good")
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(good), str(tmp_path / given)])
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert (
        ended.value.code == 2 and said.out == "" and [line.split(":")[0] for line in lines] == ["where", "what", "fix"]
    )
    assert given in lines[0] and what in lines[1] and fix in lines[2] and not (good / page.NAME).exists()


@pytest.mark.parametrize("words", [["nowhere"], ["run", "--out", "m.yaml"]])
def test_no_folder_and_a_page_that_is_none_are_three_lines(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand(tmp_path, plain())
    (tmp_path / "m.yaml").write_text("model: x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *words])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 3 and words[-1] in lines[0]
    assert (tmp_path / "m.yaml").read_text() == "model: x"


def test_a_damaged_variant_among_others_is_named_on_the_page_and_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stand(tmp_path, plain(variant="Whole"), plain(variant="Torn"))
    torn(folder / "1-variant")
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", str(folder)])
    said = capsys.readouterr()
    assert ended.value.code == 0 and said.out == f"{folder / page.NAME}\n"
    assert "1-variant" in said.err and "is not a report" in said.err
    text = Parsed((folder / page.NAME).read_text(encoding="utf-8")).text
    assert "run/1-variant: the report is not a report of this version" in text and "Whole" in text


def test_the_page_goes_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stand(tmp_path, plain(evaluation=None))
    for out, written in ((tmp_path / "new" / "a.html", "new/a.html"), (tmp_path, "report.html")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", str(folder), "--out", str(out)])
        assert ended.value.code == 0 and (tmp_path / written).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(CheckpointError):
        runs.read([tmp_path / "new"])


def test_bytes_of_a_folders_name_that_are_no_characters_do_not_keep_the_page_from_being_written(tmp_path: Path) -> None:
    folder = stand(tmp_path, plain(), run="odd-\udcff")
    assert "odd-\ufffd" in rendered(folder)
