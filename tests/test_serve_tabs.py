"""The tabs Compare and Bench of the chat page, without a browser: rows, plots, statistics, and the load itself."""

import asyncio
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from serve_helpers import WORDS, fake, until

from hubplugin.errors import ServeError
from serve import catalogue
from serve.catalogue import Listed
from serve.chat_page.tabs import benching, comparison, load, notes, timings
from serve.chat_page.tabs.load import Answer, Load, Plan, Progress, Round
from serve.chat_page.tabs.plots import axes, lines, scatter
from serve.chat_page.tabs.tables import Cell, Head, table

EVIL = "<img src=x onerror=alert(1)>\"'`${1}{{2}}"
BASE = Listed("org/base", state="ready")
SMALL = Listed(
    "me/small",
    parent="org/base",
    bytes=8_812_345,
    disk_ratio=2.8125,
    perplexity_ratio=1.0213,
    perplexity=20.426,
    mean_kl=0.031271,
    model_bits_per_weight=5.12,
    top1_agreement=0.9512,
    parameters=12_345_678,
)


def parsed(markup: str) -> ET.Element:
    """HTML as it is written here is XML too; a text that got out of its place would break it."""
    return ET.fromstring(f"<all>{markup.replace('<br>', '<br/>')}</all>")


def rows(markup: str) -> list[list[str]]:
    """The texts of a table's rows, heads first."""
    return [["".join(cell.itertext()) for cell in row] for row in parsed(markup).iter("tr")]


def labels(markup: str, kind: str = "label") -> list[str]:
    """The texts of the first plot, in its wide form."""
    svg = next(parsed(markup).iter("svg"))
    return [text.text or "" for text in svg.iter("text") if text.get("class") == kind]


# -- compare


def test_a_table_of_models_has_units_and_the_base_what_follows_from_its_variants() -> None:
    heads, base, small = rows(comparison.shown([BASE, SMALL]))
    assert dict(zip(heads, small, strict=True)) == {
        "model": "me/small",
        "engine": "–",
        "size": "8.8 MB",
        "against its base": "2.81x smaller",
        "per weight": "5.12 bits",
        "KL per token": "0.03127 nats",
        "perplexity": "20.43",
        "perplexity ratio": "x1.021",
        "same top token": "95.1%",
        "parameters": "12.3 M",
    }
    said = dict(zip(heads, base, strict=True))
    assert said["model"] == "org/base base" and said["size"] == "24.8 MB"  # 8 812 345 bytes, 2.8125 times
    assert (said["KL per token"], said["perplexity ratio"], said["perplexity"]) == ("0 nats", "x1.000", "20")
    assert said["engine"] == "ready" and said["per weight"] == "–"


def test_cells_are_sorted_by_value_and_not_by_text() -> None:
    cells = list(parsed(comparison.shown([BASE, SMALL])).iter("td"))
    assert [cell.get("data-key") for cell in cells if cell.text in ("24.8 MB", "8.8 MB")] == ["24784720", "8812345"]


def test_a_base_keeps_what_it_says_itself_and_no_variant_is_taken_for_one() -> None:
    said = replace(BASE, bytes=25_000_000, perplexity=19.5)
    smaller = replace(SMALL, name="me/smaller", parent="me/small", disk_ratio=3.0)
    base, small, _ = comparison.completed([said, SMALL, smaller])
    assert (base.bytes, base.perplexity, base.mean_kl) == (25_000_000, 19.5, 0.0)
    assert small == SMALL


def test_the_plot_marks_the_base_even_where_it_is_not_served() -> None:
    served = comparison.points([BASE, SMALL], lambda row: row.mean_kl)
    assert [(point.name, point.y, point.marked) for point in served] == [
        ("base (base)", 0.0, True),
        ("small", 0.031271, False),
    ]
    (_, base) = comparison.points([SMALL], lambda row: row.mean_kl)
    assert base.marked and base.says.endswith("not served here")
    assert labels(comparison.shown([BASE, SMALL])) == ["base (base)", "small"]


def test_several_bases_have_colours_of_their_own_and_stand_in_the_table() -> None:
    other = replace(SMALL, name="x", parent="you/other")
    shown = comparison.shown([BASE, SMALL, other])
    assert "made from" in rows(shown)[0] and comparison.OWN_BASE in shown
    groups = {point.name: point.group for point in comparison.points([BASE, SMALL, other], lambda row: row.mean_kl)}
    assert groups == {"base (base)": 0, "small": 0, "x": 1, "other (base)": 1}


@pytest.mark.parametrize(
    ("listed", "said", "plots"),
    [
        ([], comparison.NO_MODEL, 0),
        ([Listed("a"), Listed("b")], "says nothing of its models' size or quality", 0),
        ([SMALL], "There is one model", 2),  # its base is known from it
        ([Listed("a", bytes=10), Listed("b", bytes=20)], comparison.NO_PLOT, 0),
    ],
)
def test_where_little_is_known_the_tab_says_so(listed: list[Listed], said: str, plots: int) -> None:
    shown = comparison.shown(listed)
    assert said in "".join(parsed(shown).itertext()) and len(list(parsed(shown).iter("svg"))) == 2 * plots


@pytest.mark.parametrize(
    "row",
    [
        {"id": "x", "bytes": 1, "disk_ratio": 0, "perplexity_ratio": 0, "mean_kl": 0, "parent": "x"},
        {"id": "x", "bytes": 9e17, "disk_ratio": 9e17, "perplexity_ratio": 5e-324, "mean_kl": 9e17, "parent": "y"},
        {"id": "x", "bytes": True, "disk_ratio": float("nan"), "mean_kl": "1", "parameters": [], "parent": 7},
    ],
)
def test_numbers_that_cannot_be_break_no_table_and_no_plot(row: dict[str, Any]) -> None:
    listed = catalogue.read({"data": [row, {"id": "y"}, {"id": "z", "bytes": 1000, "mean_kl": 1e-9, "parent": "y"}]})
    shown = comparison.shown(listed)
    assert len(rows(shown)) == 4 and "nan" not in shown and "inf" not in shown.replace("information", "")


def test_what_a_server_says_is_no_markup() -> None:
    evil = replace(SMALL, name=EVIL, parent=EVIL + "2", state=EVIL)
    error = notes.failure(ServeError(EVIL, EVIL, EVIL))
    done = (Round(1, 1.0, (Answer(0.1, 1.0, 8),)), Round(2, 1.0, (Answer(0.1, 1.0, 8),)))
    shown = comparison.shown([evil, SMALL]) + error + timings.results(EVIL, 8, done)
    shown += timings.progress(EVIL, Progress(asked=3)) + timings.progress(EVIL, Progress(stopped=True, asked=3))
    assert "<img" not in shown and not list(parsed(shown).iter("img"))


# -- plots and tables


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.0313, False, [0, 0.01, 0.02, 0.03]),
        (97, 269, False, [100, 150, 200, 250]),
        (8, 2e5, True, [10, 100, 1e3, 1e4, 1e5]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, expected: list[float]) -> None:
    found = axes.ticks(axes.Scale(low, high, 0, 100, log), 6)
    assert found == pytest.approx(expected) or (log and len(found) <= 6 and set(found) >= {10, 1000})


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1.0, 1e12], [-2.0, 3.0], [0.0, 7.0]])
@pytest.mark.parametrize("from_zero", [True, False])
def test_every_value_is_inside_its_scale(values: list[float], from_zero: bool) -> None:
    scale = axes.scale(values, 0, 100, from_zero=from_zero and min(values) >= 0)
    assert all(0 <= scale(value) <= 100 for value in values) and axes.ticks(scale, 6)


def test_names_of_points_do_not_lie_on_each_other() -> None:
    near = [scatter.Point(100 + at, 0.5 + at / 100, f"variant-{at}", "") for at in range(5)]
    shown = scatter.scatter(near, axes.Axis("x", str), axes.Axis("y", str), "says")
    svg = next(parsed(shown).iter("svg"))
    places = [
        (float(text.attrib["x"]), float(text.attrib["y"]), text.attrib["text-anchor"] == "end")
        for text in svg.iter("text")
        if text.get("class") == "label"
    ]
    assert len(places) == 5
    width = len("variant-0") * axes.LETTER
    starts = [(x - width if ends else x, y) for x, y, ends in places]
    for at, (x, y) in enumerate(starts):
        for other_x, other_y in starts[at + 1 :]:
            assert abs(x - other_x) >= width - 0.2 or abs(y - other_y) >= scatter.LINE - scatter.TOUCH - 0.2


def test_a_name_too_long_for_a_plot_keeps_its_end() -> None:
    assert scatter.short("org/Model-GPTQ-Int4-descent-groups-of-32").endswith("groups-of-32")
    assert scatter.short("org/") == "org" and scatter.short("a") == "a"


def test_a_line_has_every_value_and_is_read_out() -> None:
    shown = lines.line([(1, 5.0), (8, 12.5)], axes.Axis("streams", "{:d}".format), axes.Axis("y", str), str, "says so")
    assert labels(shown) == ["5.0", "12.5"]
    assert [svg.get("aria-label") for svg in parsed(shown).iter("svg")] == ["says so"] * 2
    assert {"1", "8"} <= set(labels(shown, "number"))


def test_a_table_that_is_not_sorted_has_no_buttons() -> None:
    shown = table("A & B", [Head("a")], [[Cell("1", 1)]], sortable=False)
    assert "<button" not in shown and parsed(shown).findtext(".//h2") == "A & B"


# -- bench


def test_what_a_round_took() -> None:
    answers = (Answer(0.2, 1.2, 11), Answer(0.4, 2.4, 11), Answer(0.3, 0.3, 1), Answer(None, 0.1, 0))
    took = Round(2, 4.0, answers)
    assert (took.tokens, took.first, took.slowest_first) == (23, pytest.approx(0.3), 0.4)
    assert took.per_token == pytest.approx(0.15)  # of 0.1 and 0.2; an answer of one token has none
    assert took.tokens_per_second == pytest.approx(23 / 4)
    assert rows(timings.results("m", 11, [took]))[1] == ["2", "4", "23", "300 ms", "400 ms", "150 ms", "5.8"]


def test_a_server_that_does_not_count_tokens_has_no_speeds() -> None:
    took = Round(1, 4.0, (Answer(0.2, 1.2, None),))
    shown = timings.results("m", 11, [took, took])
    assert timings.NOT_COUNTED in shown and rows(shown)[1][-2:] == ["–", "–"]
    assert len(list(parsed(shown).iter("svg"))) == 2  # of the first token alone


@pytest.mark.parametrize(
    ("name", "streams", "tokens", "what"),
    [
        ("", (1,), 8, "no model"),
        ("m", (), 8, "no number of streams"),
        ("m", (64,), 8, "not offered"),
        ("m", (1,), 129, "129 tokens"),
        ("m", (1,), 0, "0 tokens"),
    ],
)
def test_a_load_that_is_not_offered_is_refused(name: str, streams: tuple[int, ...], tokens: int, what: str) -> None:
    with pytest.raises(ServeError, match=what):
        Plan(name, streams, tokens)


def carried_out(run: Load) -> list[Progress]:
    """All progress of a load."""

    async def collect() -> list[Progress]:
        return [at async for at in run.run()]

    return asyncio.run(asyncio.wait_for(collect(), 30))


def test_a_load_asks_what_was_chosen_and_no_more() -> None:
    with fake() as server:
        seen = carried_out(Load(server.url, "key", Plan("steady", (1, 4), 16)))
    assert [request["max_tokens"] for request in server.requests] == [load.WARM_TOKENS] + [16] * 10
    assert all(request["temperature"] == 0 for request in server.requests) and set(server.keys) == {"Bearer key"}
    texts = [request["messages"][0]["content"] for request in server.requests[1:]]
    assert len(set(texts)) == 10  # none is answered from memory of another
    assert [round.streams for round in seen[-1].rounds] == [1, 4]
    assert [(len(round.answers), round.tokens) for round in seen[-1].rounds] == [
        (2, 2 * len(WORDS)),
        (8, 8 * len(WORDS)),
    ]
    assert seen[-1].answered == seen[-1].asked == 10 and not seen[-1].stopped and seen[-1].error is None


def test_streams_are_asked_at_once_and_stop_closes_them_all_and_keeps_complete_rounds() -> None:
    with fake(pause=0.01) as server:
        run = Load(server.url, None, Plan("steady", (1, 8), 16))

        async def collect() -> Progress:
            last = Progress()
            async for at in run.run():
                last = at
                if at.streams == 8:
                    server.words = ["word "] * 100_000
                    await asyncio.to_thread(until, lambda: len(server.requests) == 3 + 8)
                    run.stop()
            return last

        last = asyncio.run(asyncio.wait_for(collect(), 60))
        assert last.stopped and [round.streams for round in last.rounds] == [1]
        until(lambda: len(server.left) == 8)


@pytest.mark.parametrize("name", ["dies", "fails", "aborts", "garbage", "status-429", "status-503"])
def test_an_engine_that_dies_or_refuses_ends_the_load_with_an_error(name: str) -> None:
    with fake(models=[name]) as server:
        *_, last = carried_out(Load(server.url, None, Plan(name, (1, 2), 8)))
    assert last.error is not None and last.rounds == ()
    assert last.error.what in "".join(parsed(timings.progress(name, last)).itertext())


def test_a_load_without_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LONGEST", 0.2)
    monkeypatch.setattr(load, "BEAT", 0.1)
    with fake(models=["silent"]) as server:
        *_, last = carried_out(Load(server.url, None, Plan("silent", (1,), 8)))
    assert last.error is not None and "not done after" in last.error.what


def test_one_load_at_a_time_and_only_who_started_it_stops_it() -> None:
    desk = benching.Desk()
    run = Load("http://127.0.0.1:1", None, Plan("m", (1,), 8))
    with desk.taken(run, "a"):
        with pytest.raises(ServeError, match="another bench is running"), desk.taken(run, "b"):
            pass
        desk.stop("b")
        assert run.news.empty()
        desk.stop("a")
        assert not run.news.empty()
    assert desk.running is None
