"""Evaluation on several texts, and in bfloat16: manifest, run, report, gate and card."""

import json
from collections.abc import Callable
from pathlib import Path

import card_helpers
import pico
import pytest
import torch
from gate_helpers import candidate
from huggingface_hub import ModelCard

from hubplugin import pipeline, provenance, report
from hubplugin.errors import ManifestError, PlanError
from hubplugin.evaluation import gate, quality_metrics
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.job import Job
from hubplugin.manifest.metrics import Thresholds
from hubplugin.manifest.reading import loading
from hubplugin.manifest.schema import Document
from hubplugin.model.architectures import families
from hubplugin.plan import planner
from hubplugin.plan.draft import Plan
from serve import cpu_features

MANIFEST = """\
model: ./pico
calibrate: {files: [text.txt], samples: 4, sequence_length: 32}
variants:
  Int8: [{method: gptq, bits: 8, group_size: 32}]
evaluate: {perplexity: TEXTS}
gate: {perplexity_ratio: 3}
"""
RIVER = "{files: [river.txt], samples: 4, sequence_length: 32}"
HILL = "{files: [hill.txt], samples: 3, sequence_length: 48}"


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Document]:
    """A manifest that is evaluated on these texts, beside its base."""
    pico.write(tmp_path / "pico")
    for name, text in (("text", "The hill was steep. "), ("river", "A quiet river ran. "), ("hill", "It is a hill. ")):
        (tmp_path / f"{name}.txt").write_text(text * 120)

    def go(texts: str) -> Document:
        (tmp_path / "m.yaml").write_text(MANIFEST.replace("TEXTS", texts))
        return loading.load(tmp_path / "m.yaml")

    return go


def planned(document: Document) -> Plan:
    peek = snapshots.peek(document.manifest.model, document.folder)
    return planner.make(document, peek.config, peek.tensors, revision=peek.sha)


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


def test_every_text_has_its_numbers_in_the_report(load, tmp_path: Path) -> None:
    document = load(f"[{RIVER}, {HILL}]")
    (made,) = pipeline.run(document, planned(document), tmp_path / "out", dequantized)
    main = made.evaluation
    assert main is not None and len(main.further) == 1
    assert [one.tokens.source.split(";")[0] for one in main.on_all_texts] == ["files river.txt", "files hill.txt"]
    assert [one.predicted_tokens for one in main.on_all_texts] == [4 * 31, 3 * 47]
    assert len({one.base.perplexity for one in main.on_all_texts}) == 2
    assert all(one.variant.mean_kl and one.variant.flips is not None for one in main.on_all_texts)
    assert report.read(tmp_path / "out" / "Int8") == made
    document = load(RIVER)
    (alone,) = pipeline.run(document, planned(document), tmp_path / "out", dequantized)  # weights stay
    assert alone.evaluation == main.model_copy(update={"further": ()}), "one text is measured as it is among others"


def test_another_second_text_is_measured_anew(load, tmp_path: Path) -> None:
    def digests(texts: str) -> dict[str, str]:
        document = load(texts)
        return provenance.of_numbers(Job(document, planned(document))).digests

    first = digests(f"[{RIVER}, {HILL}]")
    assert digests(f"[{RIVER}, {HILL}]") == first
    assert digests(RIVER) == digests(f"[{RIVER}]") != first
    assert digests(f"[{HILL}, {RIVER}]") != first
    (tmp_path / "hill.txt").write_text("It was a hill. " * 120)
    assert digests(f"[{RIVER}, {HILL}]") != first


@pytest.mark.parametrize(
    ("texts", "where", "fix"),
    [
        ("[]", "evaluate.perplexity", "add one"),
        (f"[{RIVER}, {RIVER}]", "evaluate.perplexity", "remove it"),
        (f"[{RIVER}, {{fils: [a.txt]}}]", "evaluate.perplexity[1].fils", "did you mean `files`?"),
        (f"[{RIVER}, {{files: [a.txt], samples: 0}}]", "evaluate.perplexity[1].samples", "from 1 to 65536"),
        (f"[{RIVER}, {{}}]", "evaluate.perplexity[1]", "{self: true}"),
        (f"[{RIVER}, river.txt]", "evaluate.perplexity[1]", "source of evaluation tokens"),
        ("[[]]", "evaluate.perplexity[0]", "source of evaluation tokens"),
        ("river.txt", "evaluate.perplexity", "source of evaluation tokens"),
        ("", "evaluate.perplexity", "source of evaluation tokens"),
        (f"{RIVER}, dtype: float16", "evaluate.dtype", "'float32' or 'bfloat16'"),
    ],
)
def test_what_is_no_list_of_sources_is_refused_in_its_place(load, texts: str, where: str, fix: str) -> None:
    with pytest.raises(ManifestError) as caught:
        load(texts)
    assert caught.value.where.endswith(f": {where}")
    assert fix in caught.value.fix, (caught.value.what, caught.value.fix)


def test_plan_checks_every_source(load) -> None:
    for second, key in (
        ("{self: true, sequence_length: 9999, seed: 3}", "sequence_length"),
        ("{self: true, sequence_length: 64}", "seed"),
    ):
        document = load(f"[{RIVER}, {second}]")
        if key == "seed":
            text = document.text.replace("files: [text.txt]", "self: true")
            Path(document.path).write_text(text)
            document = loading.load(document.path)
        with pytest.raises(PlanError) as caught:
            planned(document)
        assert caught.value.where.endswith(f"evaluate.perplexity[1].{key}")


def on_two_texts() -> report.Evaluation:
    """The second text's perplexity is worse, and its source has characters of Markdown."""
    main = card_helpers.report().evaluation
    assert main is not None
    worse = main.variant.model_copy(update={"perplexity": 40.92, "mean_kl": 0.2523})
    source = main.tokens.model_copy(update={"source": "files other.txt"})
    return main.model_copy(update={"further": (main.model_copy(update={"variant": worse, "tokens": source}),)})


def test_thresholds_hold_on_every_text_and_the_line_names_it() -> None:
    line = gate.quality(candidate(evaluation=on_two_texts(), thresholds=Thresholds(perplexity_ratio=1.2)))
    assert not line.passed
    assert line.detail == (
        "text 1, files heldout.txt: perplexity ratio 1.1667, allowed 1.2; "
        "text 2, files other.txt: perplexity ratio 2.0000, allowed 1.2"
    )
    assert gate.quality(candidate(evaluation=on_two_texts(), thresholds=Thresholds(perplexity_ratio=2))).passed


def test_a_card_has_a_table_for_every_text() -> None:
    text = card.render(card_helpers.report(evaluation=on_two_texts()))
    quality = text.split("## Quality")[1].split("\n## ")[0]
    assert quality.count("| | base | this model |") == 2
    assert quality.index("files heldout.txt") < quality.index("40.92") < quality.index("files other.txt")
    assert "\n\n\n" not in quality
    names = [result.dataset_name for result in ModelCard(text).data.eval_results]
    assert set(names) == {"files heldout.txt", "files other.txt"}


def test_reports_of_before_are_read(tmp_path: Path) -> None:
    old = card_helpers.report().model_dump(mode="json")
    for key in ("floor", "further"):
        del old["evaluation"][key]
    for who in ("base", "variant"):
        for key in ("mean_kl_stderr", "flips", "acceptance_rate"):
            del old["evaluation"][who][key]
    (tmp_path / report.FILE_NAME).write_text(json.dumps(old))
    read = report.read(tmp_path)
    assert read == card_helpers.report() and "flips" not in card.render(read)


def test_bfloat16_has_its_floor_beside_it(pico_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature: True)  # emulated, for a model of this size
    row, ids = families.FAMILIES["llama"], pico.tokens(10, 40, seed=9)
    described = report.Tokens(source="test", sequences=10, tokens_per_sequence=40, seed=9, sha256="")
    base = quality_metrics.reference(pico_folder, row, ids, described, torch.bfloat16)
    assert base.hidden.dtype == torch.bfloat16
    found = quality_metrics.measure(pico_folder, row, base, kl=True)
    assert found.variant.mean_kl == 0, "a copy of the base is the base in any precision"
    assert found.floor is not None and 1e-8 < (found.floor.mean_kl or 0) < 1e-2
    assert "bfloat16 on the dequantized folder" in found.protocol
    assert "floor of bfloat16 is that of the first 4 windows" in found.protocol
    assert "bfloat16 alone: mean KL" in capsys.readouterr().err
    text = card.render(card_helpers.report(evaluation=found))
    assert "mean KL(base in float32 ‖ base in this precision)" in text


def test_where_bfloat16_would_be_emulated_evaluation_stays_in_float32(pico_folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cpu_features, "has", lambda feature: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    row, ids = families.FAMILIES["llama"], pico.tokens(2, 40, seed=9)
    described = report.Tokens(source="test", sequences=2, tokens_per_sequence=40, seed=9, sha256="")
    base = quality_metrics.reference(pico_folder, row, ids, described, torch.bfloat16)
    assert base.hidden.dtype == torch.float32 and base.floor is None
    assert quality_metrics.measure(pico_folder, row, base, kl=False).protocol.count("float32") == 1
    assert (
        "note: this CPU multiplies bfloat16 no faster than float32, evaluation stays in float32"
        in capsys.readouterr().err
    )
