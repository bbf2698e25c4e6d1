"""`hubplugin verify --speed`: speed-ups measured again, against the report's on the same machine.

No engine is started: a double of `engine_choice.take_turn` takes the turns.
"""

from pathlib import Path

import pico
import pytest
import verify_helpers
from verify_helpers import copy, failed, in_json, lines_of, verify

from hubplugin import pipeline, report, verification
from hubplugin.errors import ServeError
from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.speed import ceiling
from hubplugin.evaluation.speed.rounds import Answered, Subject, Turn
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.plan import planner
from hubplugin.verification import Outcome

MANIFEST = """\
model: ./base
calibrate: {self: true, samples: 2, sequence_length: 32}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
evaluate:
  perplexity: {self: true, samples: 2, sequence_length: 32, seed: 1}
  speed: {concurrency: [2, 4], prompt_tokens: 8, output_tokens: 4, rounds: 2}
gate: {perplexity_ratio: 1000, top1_agreement: 0}
"""
ASKED = Settings(concurrency=(2, 4), prompt_tokens=8, output_tokens=4, rounds=2)


class Engine:
    """Serves nothing, and says how many times as fast as the base the variant is."""

    def __init__(self, ratio: float, name: str = "engine 1", why: str = "", spread: float = 0.0) -> None:
        self.ratio, self.name, self.why, self.spread = ratio, name, why, spread
        self.turns: list[Subject] = []

    def take(self, subject: Subject, settings: Settings, number: int) -> Turn:
        self.turns.append(subject)
        assert settings == ASKED.model_copy(update={"rounds": settings.rounds})
        if self.why:
            raise ServeError(subject.name, self.why, "another machine")
        faster = 1.0 if subject.name == "base" else self.ratio + number * self.spread
        answered = (Answered(at, 4, 0.1, 0.01, 10.0 * faster) for at in settings.concurrency)
        return Turn(self.name, "float32", 1.0, 100, tuple(answered))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in `base`, and in `out` its variant, 1.5 times as fast."""
    made = tmp_path_factory.mktemp("speed")
    pico.write(made / "base")
    (made / "m.yaml").write_text(MANIFEST, encoding="utf-8")
    asked = loading.load(made / "m.yaml")
    peek = snapshots.peek(asked.manifest.model, asked.folder)
    planned = planner.make(asked, peek.config, peek.tensors, revision=peek.sha)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceiling, "fastest", lambda dtypes, device: ("float32", 1e9))
        pipeline.run(asked, planned, made / "out", verify_helpers.dequantized, Engine(1.5).take)
    return made


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch):
    """Has an engine take the turns of the check."""

    def use(engine: Engine) -> Engine:
        monkeypatch.setattr(ceiling, "fastest", lambda dtypes, device: ("float32", 1e9))
        monkeypatch.setattr(engine_choice, "take_turn", engine.take)
        return engine

    return use


def again(folder: Path, base: Path) -> verification.Verification:
    return verify(folder, base, [verification.SPEED])


def test_a_speed_up_that_is_found_again_holds_at_each_concurrency(place: Path, serving) -> None:
    engine = serving(Engine(1.48))
    found = again(place / "out" / "Int4", place / "base")
    lines = lines_of(found, "speed")
    assert found.holds and [line.what for line in lines] == ["speed-up, 2 at once", "speed-up, 4 at once"]
    assert str(lines[0]) == (
        "passed       speed, speed-up, 2 at once: 1.48 times the base's tokens per second (1.48 to 1.48); "
        "medians may differ by 0.08: what rounds spread over, and 5%"
    )
    assert [one.name for one in engine.turns] == ["Int4", "base", "base", "Int4"]
    variant, base = engine.turns[:2]
    assert (variant.folder, base.folder) == (place / "out" / "Int4", place / "base")
    assert variant.vocabulary == base.vocabulary == 288 and variant.operations == base.operations
    cpu = variant.verdicts[0]
    assert cpu.loads and cpu.features == ("AVX-512",) and base.verdicts[0].features == ()


def test_another_speed_up_is_a_line_that_failed(place: Path, serving) -> None:
    serving(Engine(1.2))
    found = again(place / "out" / "Int4", place / "base")
    assert not found.holds and failed(found)[0].startswith(
        "FAILED       speed, speed-up, 2 at once: claimed 1.50 times the base's tokens per second (1.50 to 1.50), "
        "found 1.20 times"
    )


def test_what_rounds_spread_over_is_allowed(place: Path, serving) -> None:
    serving(Engine(1.2, spread=0.3))  # 1.2 and 1.5: the median is 0.15 from the claim
    assert again(place / "out" / "Int4", place / "base").holds


OTHERS = {
    "processor": (in_json("report.json", "speed", "machine", "processor", value="Other CPU"), "measured on Other CPU"),
    "cores": (in_json("report.json", "speed", "machine", "cores", value=999), "999 cores; this is"),
    "device": (in_json("report.json", "speed", "machine", "accelerators", value=["GPU 9"]), "GPU 9; this is"),
    "engine": (in_json("report.json", "speed", "engine", value="engine 2, float32"), "measured in engine 2, float32"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_on_another_machine_both_numbers_are_shown_and_none_is_judged(
    name: str, place: Path, tmp_path: Path, serving
) -> None:
    serving(Engine(0.7))
    spoil, words = OTHERS[name]
    found = again(copy(place / "out" / "Int4", tmp_path, spoil), place / "base")
    lines = lines_of(found, "speed")
    assert [line.outcome for line in lines] == [Outcome.NOT_CHECKED] * 2
    assert "claimed 1.50 times" in str(lines[0]) and "found 0.70 times" in str(lines[0]) and words in lines[0].detail


def test_a_single_round_is_not_judged(place: Path, tmp_path: Path, serving) -> None:
    engine = serving(Engine(0.7))
    folder = copy(place / "out" / "Int4", tmp_path, in_json("report.json", "speed", "rounds", value=1))
    (line, _) = lines_of(again(folder, place / "base"), "speed")
    assert len(engine.turns) == 2 and line.outcome is Outcome.NOT_CHECKED and "a single round" in line.detail


def test_an_engine_that_cannot_serve_it_here_leaves_the_claim_unchecked(place: Path, serving) -> None:
    serving(Engine(1.5, why="no kernel"))
    (line,) = lines_of(again(place / "out" / "Int4", place / "base"), "speed")
    assert line.outcome is Outcome.NOT_CHECKED and line.detail == "not measured here: no kernel (Int4)"
    assert line.claimed and line.claimed.startswith("1.50 times")


def test_without_its_option_or_its_base_it_is_not_measured(place: Path, serving) -> None:
    engine = serving(Engine(1.5))
    (line,) = lines_of(verify(place / "out" / "Int4", place / "base"), "speed")
    assert line.detail == "measured only with --speed"
    (line,) = lines_of(verify(place / "out" / "Int4", None, [verification.SPEED]), "speed")
    assert line.outcome is Outcome.NOT_CHECKED and "is a local folder" in line.detail and not engine.turns


def test_a_report_that_could_not_measure_it_says_why_and_one_without_speed_has_no_line(
    place: Path, tmp_path: Path, serving
) -> None:
    engine = serving(Engine(1.5))
    made = report.read(place / "out" / "Int4")
    assert made.speed
    left = made.speed.model_copy(update={"not_measured": "no kernel (Int4)", "base": None, "variant": None})
    folder = copy(place / "out" / "Int4", tmp_path)
    report.write(made.model_copy(update={"speed": left}), folder)
    (line,) = lines_of(again(folder, place / "base"), "speed")
    assert line.detail == "the report has none: no kernel (Int4)" and line.outcome is Outcome.NOT_CHECKED
    report.write(made.model_copy(update={"speed": None}), folder)
    assert not lines_of(again(folder, place / "base"), "speed") and not engine.turns
    assert not lines_of(verify(folder, place / "base"), "speed")
