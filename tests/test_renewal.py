"""What an edit of the manifest makes anew, and what it keeps: weights, numbers, the gate's lines, report and card."""

from collections.abc import Callable
from pathlib import Path

import pico
import pytest
from huggingface_hub import HfApi

from hubplugin import pipeline, report
from hubplugin.compress import export, stages
from hubplugin.errors import CalibrationError, GateError, ServeError
from hubplugin.evaluation import quality_metrics
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish
from hubplugin.manifest.reading import loading
from hubplugin.plan import planner

MANIFEST = """\
# two variants
model: MODEL
calibrate: {files: [text.txt], samples: 4, sequence_length: 32, seed: 0}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
  Int8:
    - {method: gptq, bits: 8, group_size: 32}
evaluate: {perplexity: {files: [held-out.txt], samples: 4, sequence_length: 32}}
gate: {perplexity_ratio: 3}
publish: {repo: "local/{model}-{variant}", private: true}
"""


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


def nothing(*_: object) -> Generated:
    raise AssertionError("no engine is asked for what it said before")


@pytest.fixture
def home(tmp_path: Path, pico_folder: Path) -> Path:
    """A folder of a base, texts and a manifest."""
    pico.write(tmp_path / "pico")
    (tmp_path / "text.txt").write_text("The hill was steep and the road was long. " * 60)
    (tmp_path / "held-out.txt").write_text("A quiet river ran below the old mill. " * 60)
    return tmp_path


Make = Callable[..., list[report.Report]]


@pytest.fixture
def make(home: Path) -> Make:
    """Run a manifest, with changes of its text."""

    def go(*changes: tuple[str, str], model: str = "./pico", engine: object = dequantized, verb: str = "run") -> object:
        text = MANIFEST.replace("MODEL", model)
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        (home / "m.yaml").write_text(text, encoding="utf-8")
        document = loading.load(home / "m.yaml")
        peek = snapshots.peek(document.manifest.model, document.folder)
        planned = planner.make(document, peek.config, peek.tensors, revision=peek.sha)
        if verb == "publish":
            return publish.publish(document, home / "out")
        does = {"run": pipeline.run, "gate": pipeline.judge}.get(verb)
        if does is None:
            return pipeline.judge(document, planned, home / "out", engine, thorough=False)  # type: ignore[arg-type]
        return does(document, planned, home / "out", engine)  # type: ignore[arg-type]

    return go  # type: ignore[return-value]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The variants that were compressed, in order."""
    seen: list[str] = []
    real = stages.run_pass

    def counted(base: Path, variant: object, *rest: object) -> object:
        seen.append(variant.name)  # type: ignore[attr-defined]
        return real(base, variant, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stages, "run_pass", counted)
    return seen


def times(home: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted((home / "out").rglob("*.safetensors"))}


EDITS = {
    "a comment": ("# two variants", "# two variants, of a hill"),
    "the licence accepted": ("private: true}", "private: true, accept_license: true}"),
    "another repo": ("local/{model}", "someone/{model}"),
    "no repo": ('publish: {repo: "local/{model}-{variant}", private: true}\n', ""),
    "a looser gate": ("perplexity_ratio: 3", "perplexity_ratio: 4"),
    "no gate": ("gate: {perplexity_ratio: 3}\n", ""),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edits_that_change_no_weight_make_only_report_and_card_anew(home, make, passes, capsys, edit):
    make()
    before = times(home)
    capsys.readouterr()
    assert passes == ["Int4", "Int8"]
    made = make(EDITS[edit], engine=nothing)
    assert passes == ["Int4", "Int8"] and times(home) == before
    said = capsys.readouterr().err
    assert "weights kept, report and card written anew" in said and "calibration:" not in said
    for variant in made:
        folder = home / "out" / variant.variant
        assert report.read(folder) == variant and variant.passed
        assert variant.manifest_text == (home / "m.yaml").read_text() == (folder / "manifest.yaml").read_text()
    card = (home / "out" / "Int4" / "README.md").read_text()
    assert made[0].repo is None or made[0].repo in card
    assert ("someone/pico-Int4" in card) == (edit == "another repo")


def test_a_variant_that_is_added_or_removed_or_changed_leaves_the_others(home, make, passes):
    make()
    before = times(home)
    more = ("evaluate:", "  Int4-64:\n    - {method: gptq, bits: 4, group_size: 64}\nevaluate:")
    make(more)
    assert passes == ["Int4", "Int8", "Int4-64"]
    make(("  Int8:\n    - {method: gptq, bits: 8, group_size: 32}\n", ""))
    make(("bits: 8", "bits: 3"))
    assert passes == ["Int4", "Int8", "Int4-64", "Int8"]
    assert {path: when for path, when in times(home).items() if "/Int4/" in path}.items() <= before.items()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("seed: 0", "seed: 1"), "calibration data"),
        (("bits: 4, group_size: 32", "bits: 4, group_size: 64"), "steps"),
    ],
)
def test_what_decides_weights_makes_them_anew_and_is_named(home, make, passes, capsys, change, named):
    make()
    make(change)
    assert passes[2:3] == ["Int4"]
    assert f"Int4: was made from another {named}, is made again" in capsys.readouterr().err


def test_texts_and_bases_are_told_apart_by_their_contents(home, make, passes, capsys):
    """A local base is kept where its files are touched or copied, and noticed where one byte of them differs."""
    make()
    for file in (home / "pico").iterdir():
        file.write_bytes(file.read_bytes())
    make()
    assert len(passes) == 2
    text = home / "text.txt"
    text.write_text(text.read_text().replace("steep", "green"))
    make()
    assert len(passes) == 4 and "another calibration data" in capsys.readouterr().err
    (home / "pico" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert make(engine=nothing)[0].base.licence == "apache-2.0" and len(passes) == 4
    config = home / "pico" / "config.json"
    config.write_text(config.read_text() + "\n")
    make()
    assert len(passes) == 6 and "another base" in capsys.readouterr().err


def test_numbers_are_measured_anew_where_their_text_changed_and_only_then(home, make, passes, monkeypatch):
    first = make()
    other = home / "held-out.txt"
    other.write_text(other.read_text().replace("mill", "tower"))
    second = make(engine=nothing)
    assert passes == ["Int4", "Int8"]
    assert first[0].evaluation.variant.perplexity != second[0].evaluation.variant.perplexity
    assert first[0].made_from == second[0].made_from and first[0].measured_from != second[0].measured_from
    monkeypatch.setattr(quality_metrics, "measure", None)
    assert make(engine=nothing) == second


def test_a_stricter_gate_fails_and_a_looser_one_passes_without_a_block(home, make, passes):
    make()
    with pytest.raises(GateError, match="Int4: quality"):
        make(("perplexity_ratio: 3", "mean_kl: 0.000001"), engine=nothing)
    assert not report.read(home / "out" / "Int4").passed
    assert all(made.passed for made in make(engine=nothing))
    assert passes == ["Int4", "Int8"]


def test_an_engine_that_failed_is_asked_again_and_nothing_else_is_done_again(home, make, passes):
    def broken(*_: object) -> Generated:
        raise ServeError("vLLM", "did not start", "start it")

    with pytest.raises(GateError, match="did not start"):
        make(engine=broken)
    made = make()
    assert all(variant.passed for variant in made) and passes == ["Int4", "Int8"]
    lines = [line.name for line in made[0].gate]
    assert len(lines) == len(set(lines)) and "stored weights are the compressed ones" in lines


def test_a_renewal_that_was_cut_off_anywhere_is_finished_by_the_next_run(home, make, passes, monkeypatch):
    make()
    edit = EDITS["another repo"]
    for name in ("renewal.write_atomically", "writing.report.write", "writing.plots.write", "writing.write_atomically"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(f"hubplugin.{name}", _interrupt)
            make(edit, engine=nothing)
        edit = (edit[0], edit[1].replace("someone", "another"))
    made = make(edit, engine=nothing)
    assert passes == ["Int4", "Int8"] and made[0].repo == "another/pico-Int4"
    assert "another/pico-Int4" in (home / "out" / "Int4" / "README.md").read_text()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_gate_and_card_compress_nothing_and_refuse_what_is_missing_or_other(home, make, passes):
    for verb in ("gate", "card"):
        with pytest.raises(GateError) as refused:
            make(verb=verb)
        assert refused.value.what == "holds no whole variant" and "hubplugin run" in refused.value.fix
    make()
    asked: list[Path] = []

    def noted(folder: Path, *rest: object) -> Generated:
        asked.append(folder)
        return dequantized(folder, *rest)  # type: ignore[arg-type]

    assert all(made.passed for made in make(verb="gate", engine=noted)) and len(asked) == 2
    make(EDITS["another repo"], verb="card", engine=nothing)
    assert report.read(home / "out" / "Int8").repo == "someone/pico-Int8"
    with pytest.raises(GateError, match="was made from another steps"):
        make(("bits: 8", "bits: 3"), verb="card")
    assert passes == ["Int4", "Int8"]


def test_a_gate_asked_for_alone_finds_what_was_damaged_since(home, make):
    make()
    tokenizer = home / "pico" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(GateError, match="was made from another base"):
        make(verb="gate")


def test_a_hub_base_is_not_pulled_for_a_card(hub: HfApi, home, make, passes, monkeypatch):
    make(model="local/pico")
    monkeypatch.setattr(snapshots, "pull", None)
    made = make(EDITS["a comment"], model="local/pico", engine=nothing)
    assert passes == ["Int4", "Int8"] and made[0].base.revision == hub.model_info("local/pico").sha


def test_after_an_edit_the_variants_are_published_once_their_card_says_so(hub: HfApi, home, make, passes):
    make(model="local/pico")
    accepted = EDITS["the licence accepted"]
    with pytest.raises(GateError, match="another version of the manifest"):
        make(accepted, model="local/pico", verb="publish")
    make(accepted, model="local/pico", verb="card", engine=nothing)
    assert all(pushed.changed for pushed in make(accepted, model="local/pico", verb="publish"))
    assert passes == ["Int4", "Int8"]


def test_what_the_report_needs_is_asked_for_before_the_first_block(home, make, passes, monkeypatch):
    def broken(*_: object) -> str:
        raise CalibrationError("versions", "cannot be read", "install it")

    monkeypatch.setattr("hubplugin.report_assembly.versions", broken)
    with pytest.raises(CalibrationError):
        make()
    assert passes == []


def test_a_run_that_is_interrupted_says_what_is_kept(home, make, monkeypatch, capsys):
    add, seen = export.Folder.add, []

    def counted(self: export.Folder, block: object) -> None:
        add(self, block)  # type: ignore[arg-type]
        seen.append(block)
        if len(seen) == 3:  # of four: they take turns
            raise KeyboardInterrupt

    monkeypatch.setattr(export.Folder, "add", counted)
    with pytest.raises(KeyboardInterrupt):
        make()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "kept: Int4 2 of 2 blocks, Int8 1 of 2 blocks; the same command goes on from there"
