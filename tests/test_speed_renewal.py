"""When speed is measured in a run, and measured again: its settings are its own, and no engine ends a run."""

from pathlib import Path

import pytest
from speed_helpers import Run, runner

from hubplugin.compress import stages
from hubplugin.errors import GateError, ServeError
from hubplugin.evaluation import quality_metrics
from hubplugin.evaluation.speed.rounds import Answered, Subject, Turn
from hubplugin.manifest.speed import Speed as Settings


class Engine:
    """Serves nothing and says that the variant is 1.5 times as fast; or that it cannot be served."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.fails = False

    def take(self, subject: Subject, settings: Settings, number: int) -> Turn:
        self.turns.append(subject.name)
        if self.fails:
            raise ServeError(subject.name, "no kernel", "another machine")
        assert (subject.folder / "config.json").is_file() and subject.verdicts and subject.vocabulary == 288
        rate = 10.0 if subject.name == "base" else 15.0
        return Turn("engine 1", "float32", 1.0, 100, (Answered(2, 4, 0.1, 0.01, rate),))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compressed and evaluated, in order."""
    done: list[str] = []
    compressed, evaluated = stages.run_pass, quality_metrics.measure

    def counted_pass(*given: object) -> object:
        done.append("weights")
        return compressed(*given)  # type: ignore[arg-type]

    def counted_measure(*given: object) -> object:
        done.append("quality")
        return evaluated(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "run_pass", counted_pass)
    monkeypatch.setattr(quality_metrics, "measure", counted_measure)
    return done


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Run:
    return runner(tmp_path, monkeypatch, engine.take)


TWICE = {"rounds": 2}


def test_an_edit_of_speed_settings_measures_speed_again_and_nothing_else(
    make: Run, engine: Engine, work: list[str]
) -> None:
    first = make(TWICE)
    assert work == ["weights", "quality"] and engine.turns == ["Thin", "base", "base", "Thin"]
    assert first.speed and first.speed.variant and first.speed.variant.loads[0].speedup
    assert first.speed.variant.loads[0].speedup.median == 1.5 and "speed" in first.seconds
    assert make(TWICE) == first and len(engine.turns) == 4
    again = make({"rounds": 1})
    assert again.speed and again.speed.rounds == 1 and engine.turns[4:] == ["Thin", "base"]
    assert work == ["weights", "quality"] and again.measured_from == first.measured_from
    assert again.evaluation == first.evaluation
    without = make()
    assert without.speed is None and len(engine.turns) == 6 and work == ["weights", "quality"]
    later = make(TWICE)
    assert later.speed and later.evaluation == first.evaluation and work == ["weights", "quality"]


def test_a_manifest_without_speed_starts_no_engine(make: Run, engine: Engine) -> None:
    made = make()
    assert made.speed is None and "speed" not in made.seconds and engine.turns == []
    assert made.sizes.components and made.sizes_base.flops_per_token > made.sizes.flops_per_token


def test_a_threshold_is_judged_by_the_numbers_at_hand(make: Run, engine: Engine) -> None:
    made = make(TWICE, tokens_per_second=1.2)
    assert [line.passed for line in made.gate if line.name == "speed"] == [True]
    with pytest.raises(GateError, match=r"speed \(1.50 times"):
        make(TWICE, tokens_per_second=1.6)
    assert len(engine.turns) == 4
    assert not [line for line in make(TWICE).gate if line.name == "speed"]


def test_an_engine_that_cannot_serve_it_ends_no_run_and_is_asked_again(
    make: Run, engine: Engine, work: list[str]
) -> None:
    engine.fails = True
    made = make(TWICE)
    assert made.speed and made.speed.not_measured == "no kernel (Thin)" and made.speed.variant is None
    assert made.passed and engine.turns == ["Thin"]
    engine.fails = False
    again = make(TWICE)
    assert again.speed and again.speed.variant and not again.speed.not_measured and work == ["weights", "quality"]
