"""`hubplugin verify --quality` of variants that were evaluated on text files: which files hold the texts, and whether
they are the ones that were evaluated."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pico
import pytest
import verify_helpers
from verify_helpers import failed, lines_of

from hubplugin import api, cli, report, verification
from hubplugin.errors import CalibrationError, HubPluginError
from hubplugin.verification import Outcome, Verification

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 2, sequence_length: 32}}
variants:
  Int4:
    - {{method: gptq, bits: 4, group_size: 32}}
evaluate:
  perplexity:
    - {{files: [texts/river.txt, texts/hill.txt], samples: 4, sequence_length: 32}}
    - {{self: true, samples: 2, sequence_length: 32, seed: 1}}
    - {{files: [texts/hill.txt], samples: 2, sequence_length: 32}}
gate: {{perplexity_ratio: 1000, top1_agreement: 0}}
"""
NAMES = ("texts/river.txt", "texts/hill.txt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in `base`, texts in `texts`, and a variant in `out`."""
    made = tmp_path_factory.mktemp("texts")
    pico.write(made / "base")
    (made / "texts").mkdir()
    (made / "texts" / "river.txt").write_text("A quiet river ran. " * 60)
    (made / "texts" / "hill.txt").write_text("The hill was steep. " * 60)
    verify_helpers.make(made, "./base", MANIFEST)
    return made


def verify(
    place: Path, *texts: Path, folder: Path | None = None, options: Sequence[str] = ("quality",)
) -> Verification:
    return verification.verify(str(folder or place / "out" / "Int4"), str(place / "base"), options, texts)


def outcomes(found: Verification, end: str) -> set[Outcome]:
    """Of the lines about quality whose subject ends so."""
    return {line.outcome for line in lines_of(found, "quality") if line.what.endswith(end)}


def test_texts_that_are_given_are_measured_again(place: Path) -> None:
    found = verify(place, *(place / name for name in NAMES))
    lines = lines_of(found, "quality")
    assert found.holds and {line.outcome for line in lines} == {Outcome.PASSED}
    said = [line.what for line in lines]
    assert len(said) == len(set(said)) == 30
    assert said[:2] == ["tokens", "perplexity"]
    assert {"tokens on text 2", "mean KL on text 2", "perplexity of the base on text 3"} <= set(said)


def test_texts_that_are_not_at_hand_are_asked_for(place: Path) -> None:
    found = verify(place)
    assert found.holds and outcomes(found, "on text 2") == {Outcome.PASSED}
    first, *_, last = lines_of(found, "quality")
    assert first.outcome is last.outcome is Outcome.NOT_CHECKED and first.claimed
    asked = "texts/river.txt is not here; name each with --text, in this order: texts/river.txt, texts/hill.txt"
    assert (first.what, first.detail) == ("tokens", asked)
    assert last.what == "tokens on text 3" and "texts/hill.txt is not here" in last.detail


def test_texts_beside_the_manifest_are_taken_without_asking(place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(place / "out" / "Int4", tmp_path / "Int4")
    shutil.copytree(place / "texts", folder / "texts")
    found = verify(place, folder=folder)
    assert found.holds and {line.outcome for line in lines_of(found, "quality")} == {Outcome.PASSED}


def test_another_text_is_not_measured(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("Nobody was at home. " * 60)
    found = verify(place, tmp_path / "other.txt", place / NAMES[1])
    first = lines_of(found, "quality")[0]
    assert found.holds and first.outcome is Outcome.NOT_CHECKED
    assert "made anew they have the sha256" in first.detail and "another text" in first.detail
    assert outcomes(found, "on text 3") == {Outcome.PASSED}
    swapped = verify(place, *(place / name for name in reversed(NAMES)))
    assert lines_of(swapped, "quality")[0].outcome is Outcome.NOT_CHECKED


@pytest.mark.parametrize(("name", "text"), [("short.txt", "A hill."), ("text.pdf", "A quiet river ran. " * 60)])
def test_a_text_that_cannot_be_used_says_why(name: str, text: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    found = verify(place, place / NAMES[0], tmp_path / name)
    last = lines_of(found, "quality")[-1]
    assert last.outcome is Outcome.NOT_CHECKED and name in last.detail and last.what == "tokens on text 3"


def test_numbers_of_a_further_text_that_are_false_fail(place: Path, tmp_path: Path) -> None:
    def spoil(folder: Path) -> None:
        made = report.read(folder)
        first, second = made.evaluation.further
        better = second.model_copy(update={"variant": second.variant.model_copy(update={"perplexity": 1.0})})
        evaluation = made.evaluation.model_copy(update={"further": (first, better)})
        report.write(made.model_copy(update={"evaluation": evaluation}), folder)

    folder = verify_helpers.copy(place / "out" / "Int4", tmp_path, spoil)
    said = failed(verify(place, *(place / name for name in NAMES), folder=folder), "card's lines", "front matter")
    assert [line.split(":")[0] for line in said] == [
        "FAILED       quality, perplexity on text 3",
        "FAILED       quality, perplexity ratio on text 3",
    ]


def test_a_repos_manifest_opens_no_file_outside_it(place: Path) -> None:
    subject = verification.subject.open_subject(str(place / "out" / "Int4"), str(place / "base"))
    source = verification.texts.evaluated(subject)[0].model_copy(update={"files": (str(place / NAMES[0]),)})
    assert verification.texts.placed(subject, source).files == source.files
    from_hub = replace(subject, files=replace(subject.files, sha="0" * 40))
    for name in (str(place / NAMES[0]), "../../texts/river.txt"):
        with pytest.raises(CalibrationError, match="is not here"):
            verification.texts.placed(from_hub, source.model_copy(update={"files": (name,)}))


def test_texts_that_fit_no_manifest_are_an_error(place: Path, tmp_path: Path) -> None:
    river, hill = (place / name for name in NAMES)
    for texts, options, what, fix in (
        ((river,), ("quality",), "1 file is given, and the manifest evaluates 2", "texts/river.txt, texts/hill.txt"),
        ((river, hill, hill), ("quality",), "3 files are given, and the manifest evaluates 2", "in this order"),
        ((river, place / "none.txt"), ("quality",), "there is no such file", "name a file"),
        ((river, place), ("quality",), "there is no such file", "name a file"),
        ((river, hill), (), "only measuring quality again reads texts", "add --quality"),
    ):
        with pytest.raises(HubPluginError) as error:
            verify(place, *texts, options=options)
        assert what in error.value.what and fix in error.value.fix and "--text" in error.value.where
    foreign = verify_helpers.foreign(place / "out" / "Int4", tmp_path, "other")
    with pytest.raises(HubPluginError, match="evaluates no text files"):
        verify(place, river, folder=foreign)


def test_the_verb_and_the_function_take_texts(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    words = ["verify", "out/Int4", "--base", "base", "--quality"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--text", NAMES[0], "--text", NAMES[1]])
    assert ended.value.code == 0 and "passed       quality, mean KL on text 3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--text", NAMES[0]])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-3:]
    assert [line.split(":")[0] for line in error] == ["where", "what", "fix"]
    with pytest.raises(HubPluginError, match="1 file is given"):
        api.verify("out/Int4", base="base", quality=True, texts=NAMES[0])
