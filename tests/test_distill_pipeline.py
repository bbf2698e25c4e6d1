"""`hubplugin run` with students and teachers: what is made, reported, said on cards, verified, and asked only once."""

import json
import re
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from hubplugin import cli, report
from hubplugin.errors import HubError
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub.publishing import publish
from hubplugin.manifest.publish import Publish
from hubplugin.recovery.answers import in_process
from hubplugin.report import Report
from hubplugin.verification import verify

MANIFEST = """\
model: {place}/teacher
calibrate: {{self: true, samples: 16, sequence_length: 48, seed: 0}}
variants:
  White-Int4:
    - {{method: distill, student: {place}/student, epochs: {epochs}}}
    - {{method: gptq, bits: 4, group_size: 32}}
  Low: [{{method: distill, student: {place}/student, lora: 4}}, {{method: lowrank, ratio: 0.2}}]
  Tuned:
    - {{method: distill, student: {place}/student}}
    - {{method: gptq, bits: 4, group_size: 32}}
    - {{method: tune, blocks: 0}}
  Taller: [{{method: distill, teacher: {place}/other, data: {{self: true, samples: 8, sequence_length: 48, seed: 7}}}}]
  Pruned: [{{method: prune, ffn: 0.25}}, {{method: distill, blocks: 1}}]
  Black:
    - method: distill
      student: {place}/student
      epochs: {epochs}
      answers: {{max_tokens: 16, prompt_tokens: 8}}
      data: {{files: [{place}/talks.jsonl], samples: 9, sequence_length: 64}}
evaluate: {{perplexity: {{self: true, samples: 4, sequence_length: 48, seed: 1}}, kl: true}}
gate: {{mean_kl: 99, top1_agreement: 0, perplexity_ratio: 9999}}
"""
LEARNT = ("White-Int4", "Taller", "Pruned", "Black")
VARIANTS = (*LEARNT, "Low", "Tuned")


def run(folder: Path, epochs: int = 2) -> None:
    (folder / "m.yaml").write_text(MANIFEST.format(place=folder, epochs=epochs))

    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("hubplugin.evaluation.engine_choice.generate", generate)
        with pytest.raises(SystemExit) as done:
            cli.main(["run", str(folder / "m.yaml"), "--out", str(folder / "out")])
    assert done.value.code == 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All variants of the manifest, made once."""
    folder = tmp_path_factory.mktemp("distilled")
    pico.write(folder / "teacher", hidden_size=96, num_attention_heads=3, seed=0)
    pico.write(folder / "student", seed=1)
    (folder / "student" / "README.md").write_text("---\nlicense: mit\nlanguage: [de]\n---\n")
    pico.write(folder / "other", hidden_size=96, num_attention_heads=3, num_hidden_layers=3, seed=2)
    talks = [{"messages": [{"role": "user", "content": f"what is {number}"}]} for number in range(9)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    run(folder)
    return folder


def read(place: Path, name: str) -> Report:
    return report.read(place / "out" / name)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_passes_its_gate_and_is_verified(name: str, place: Path) -> None:
    made = read(place, name)
    assert made.passed and made.distillation is not None and made.recovery is None
    assert not list((place / "out" / name).glob(".*"))
    base = place / "teacher"
    checked = verify(str(place / "out" / name), str(base))
    assert checked.holds, [line for line in checked.lines if line.outcome == "failed"]
    if name in ("Taller", "Pruned", "Black"):  # dense, as transformers loads any
        AutoModelForCausalLM.from_pretrained(place / "out" / name)


def test_a_student_keeps_its_own_shape_and_files(place: Path) -> None:
    for name in ("White-Int4", "Black"):
        made, folder = read(place, name), place / "out" / name
        assert json.loads((folder / "config.json").read_text())["hidden_size"] == 64
        assert made.base.repo == "teacher" and made.distillation is not None
        assert made.distillation.student is not None and made.distillation.student.repo == "student"
        assert made.sizes_base.parameters > made.sizes.parameters
    assert pico.headers(place / "out" / "Black") == pico.headers(place / "student")


def test_the_report_says_who_learnt_what_from_whom(place: Path) -> None:
    white, taller, pruned, black = (read(place, name).distillation for name in LEARNT)
    assert white and taller and pruned and black
    assert (white.teacher and white.teacher.repo) == "teacher" and white.measured == "KL" and white.answers is None
    assert (taller.teacher and taller.teacher.repo) == "other" and taller.student is None
    assert taller.data is not None and taller.data.source == "samples of the teacher itself"
    assert pruned.student is None and len(pruned.blocks) == 2 and pruned.after <= pruned.before
    assert black.measured == "cross-entropy" and black.answers is not None
    assert (black.answers.asked, black.answers.by, black.answers.max_tokens) == (9, "teacher", 16)
    for each in (white, taller, pruned, black):
        assert each.curve and each.curve[-1][0] == each.steps and each.after <= each.before
        assert each.tokens > 0 and each.held_out_tokens > 0


def test_the_samples_of_another_teacher_are_its_own(place: Path) -> None:
    taller, white = read(place, "Taller").distillation, read(place, "White-Int4").distillation
    assert taller and taller.data and white
    assert taller.data.sequences == 8 and taller.data.sha256 != read(place, "Taller").calibration.sha256


def test_the_divergence_of_the_report_is_that_of_the_folder(place: Path) -> None:
    made = read(place, "Taller")
    assert made.distillation is not None and made.evaluation is not None
    assert made.evaluation.variant.mean_kl is not None and made.evaluation.variant.mean_kl > 0
    ids = pico.tokens(2, 32).long()
    models = [
        AutoModelForCausalLM.from_pretrained(place / one, dtype=torch.float32) for one in ("out/Taller", "teacher")
    ]
    with torch.no_grad():
        one, other = (model(ids).logits for model in models)
    assert not one.equal(other), "all weights were trained"


def test_the_card_names_student_and_teacher(place: Path) -> None:
    card = (place / "out" / "Black" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit" and front["language"] == ["de"], "those of the model whose weights they are"
    assert "distillation" in front["tags"] and "base_model" not in front, "a folder is no repo"
    assert "`student`, distilled from the answers of `teacher`." in card
    assert "no weight is the base's" in card and "- Student: `student`" in card
    assert "The base's licence holds: apache-2.0." in card and "The student's licence holds: mit." in card
    found = re.search(r"\| after (\d+) steps \| ([\d.]+) \|", card)
    made = read(place, "Black").distillation
    assert found and made and float(found[2]) == pytest.approx(made.curve[0][1], rel=1e-3)
    taller = (place / "out" / "Taller" / "README.md").read_text()
    assert "`teacher`, distilled from `other`." in taller and "no weight is the base's" not in taller
    on_hub = read(place, "Black")
    made = on_hub.distillation
    assert made is not None and made.student is not None
    student = made.student.model_copy(update={"repo": "o/student", "on_hub": True})
    from hubplugin.evaluation.cards.card_metadata import metadata

    named = metadata(on_hub.model_copy(update={"distillation": made.model_copy(update={"student": student})}))
    assert (named["base_model"], named["base_model_relation"]) == ("o/student", "finetune")


def test_the_licences_of_student_and_teacher_hold_too(place: Path) -> None:
    made = read(place, "Taller").distillation
    assert made is not None and made.teacher is not None
    closed = made.teacher.model_copy(update={"licence": "cc-by-nc-nd-4.0"})
    changed = read(place, "Taller").model_copy(update={"distillation": made.model_copy(update={"teacher": closed})})
    assert [origin.repo for origin in changed.origins] == ["teacher", "other"]
    with pytest.raises(HubError, match="no-derivatives"):
        for origin in changed.origins:
            publish.check_base(origin, Publish(repo="o/{variant}"))


def test_answers_are_kept_for_later_runs_and_asked_again_by_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = (place / "out" / ".answers" / "Black.jsonl").read_bytes()
    assert kept.count(b"\n") == 9
    before = read(place, "Black")

    def refuse(*given: Any, **named: Any) -> Any:
        raise AssertionError("asked again")

    monkeypatch.setattr(in_process, "continuations", refuse)
    run(place, epochs=30)
    after = read(place, "Black")
    assert after.distillation and before.distillation and after.distillation.steps > before.distillation.steps
    assert after.distillation.answers == before.distillation.answers
    assert (place / "out" / ".answers" / "Black.jsonl").read_bytes() == kept
    assert read(place, "Pruned").created == before.created or read(place, "Pruned").passed


def test_another_student_is_made_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(place, epochs=30)
    assert capsys.readouterr().err.count("already made from this manifest") == len(VARIANTS)
    pico.write(place / "student", seed=4)
    run(place, epochs=30)
    said = capsys.readouterr().err
    for name in ("White-Int4", "Black", "Low", "Tuned"):
        assert f"{name}: was made from another student, is made again" in said
    assert said.count("already made from this manifest") == 2
