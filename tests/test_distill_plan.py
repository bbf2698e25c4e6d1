"""What a distill step may be given: settings, students, teachers, tokens, and what the plan says of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pico
import pytest
from pydantic import ValidationError

from hubplugin import preparation
from hubplugin.errors import HubError, PlanError
from hubplugin.manifest.steps.training.distill import Answers, Distill
from hubplugin.plan import table
from hubplugin.plan.checks.training import tokenizers
from hubplugin.plan.draft import Plan, as_json

PRUNE = {"method": "prune", "ffn": 0.25}
SHORT = {"self": True, "samples": 4, "sequence_length": 64}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    pico.write(folder / "base", hidden_size=96, num_attention_heads=3)
    pico.write(folder / "small")
    pico.write(folder / "deeper", hidden_size=96, num_attention_heads=3, num_hidden_layers=3)
    pico.write(folder / "qwen", "qwen3", hidden_size=96, num_attention_heads=3)
    pico.write(folder / "more-rows", vocab_size=320)
    shutil.copytree(folder / "small", folder / "alien")
    found = json.loads((folder / "alien" / "tokenizer.json").read_text())
    vocabulary = found["model"]["vocab"]
    first, second = list(vocabulary)[5], list(vocabulary)[9]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "alien" / "tokenizer.json").write_text(json.dumps(found))
    shutil.copytree(folder / "small", folder / "bare")
    (folder / "bare" / "tokenizer.json").rename(folder / "bare" / "tokenizer.model")
    return folder


def plan(place: Path, *steps: dict[str, Any], **changes: Any) -> Plan:
    """The plan of one variant of these steps."""
    named = [
        {key: str(place / value) if key in ("student", "teacher") else value for key, value in step.items()}
        for step in steps
    ]
    manifest = {"model": str(place / "base"), "calibrate": SHORT, "variants": {"V": named}, **changes}
    return preparation.planned(preparation.document(manifest))


def distill(**settings: Any) -> dict[str, Any]:
    return {"method": "distill", **settings}


REFUSED: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "itself": ([distill()], "the base would learn from itself", "name a student"),
    "itself by name": ([distill(teacher="base")], "the base would learn from itself", "name a student"),
    "student as teacher": ([distill(student="small", teacher="small")], "would learn from itself", "name a student"),
    "other tokens": ([distill(student="alien")], "2 differ, the first is", "base's own family"),
    "a teacher's other tokens": ([distill(teacher="alien")], "2 differ", "answers: {}"),
    "no tokens": ([distill(student="bare")], "has no tokenizer.json", "save_pretrained"),
    "other rows": ([distill(student="more-rows")], "has 320 rows, the base's 288", "base's own vocabulary"),
    "other widths": ([distill(student="small", blocks=1)], "a hidden size of 64, the teacher 96", "leave blocks out"),
    "other depths": ([distill(teacher="deeper", blocks=1)], "a number of layers of 2, the teacher 3", "leave blocks"),
    "other family": ([distill(teacher="qwen", blocks=1)], "the family LlamaForCausalLM", "leave blocks out"),
    "two students": ([PRUNE, distill(student="small")], "the prune step before it makes the student", "remove student"),
    "recovered too": ([PRUNE, {"method": "recover"}, distill()], "undo the other's work", "keep one"),
    "codes": ([{"method": "gptq", "group_size": 32}, distill(student="small")], "stands after gptq", "put it before"),
    "pruned after": ([distill(student="small"), PRUNE], "take away what was just trained", "put it first"),
    "one text": ([distill(student="small", data={**SHORT, "samples": 1})], "leaves none to hold out", "2 or more"),
    "no room": ([distill(student="small", answers={"prompt_tokens": 64})], "leave nothing of sequences", "use fewer"),
    "tuned by blocks": (
        [distill(student="small"), {"method": "gptq", "group_size": 32}, {"method": "tune"}],
        "a hidden size of 64, the base 96",
        "set blocks: 0",
    ),
    "a budget": (
        [distill(student="small"), {"method": "gptq", "budget": {"bits_per_weight": 4.5}, "group_size": 32}],
        "spent by measurements on the base",
        "remove budget",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_with_what_does(case: str, place: Path) -> None:
    steps, what, fix = REFUSED[case]
    with pytest.raises(PlanError) as refusal:
        plan(place, *steps)
    assert what in refusal.value.what and fix in refusal.value.fix and "variants.V" in refusal.value.where


def test_a_student_that_is_not_there_is_named(place: Path) -> None:
    with pytest.raises(HubError, match="there is no folder"):
        plan(place, distill(student="nowhere"))


@pytest.mark.parametrize(
    "step",
    [
        distill(student="small"),
        distill(teacher="deeper"),
        distill(teacher="alien", answers={"prompt_tokens": 8}),  # answers are text, whatever the teacher's tokens
        distill(answers={"endpoint": "http://127.0.0.1:9", "model": "m", "prompt_tokens": 8}),
    ],
)
def test_what_makes_sense_is_planned(step: dict[str, Any], place: Path) -> None:
    made = plan(place, step)
    variant = made.variants[0]
    assert variant.trains_first and not variant.passes and variant.dims.layers == 2
    assert "named" not in as_json(made) and json.dumps(as_json(made))


def test_a_student_decides_shape_and_size_and_what_follows(place: Path) -> None:
    made = plan(place, distill(student="small"), {"method": "gptq", "group_size": 32})
    variant = made.variants[0]
    assert variant.dims.hidden == 64 and made.base.dims.hidden == 96 and len(variant.passes) == 1
    assert variant.bytes < made.bytes and variant.widths == {}
    assert {linear.name for linear in variant.quantized} == {linear.name for linear in variant.linears}
    larger = plan(place, distill(student="small", teacher="deeper")).variants[0]
    assert larger.memory.peak > plan(place, distill(student="small")).variants[0].memory.peak or larger.seconds > 0


FAULTS: dict[str, dict[str, Any]] = {
    "needs the name of a model": {"endpoint": "http://127.0.0.1"},
    "is no http URL": {"endpoint": "ftp://x", "model": "m"},
    "carries a password": {"endpoint": "http://user:secret@x", "model": "m"},
    "without encryption": {"endpoint": "http://203.0.113.7", "model": "m", "key": "TEACHER_KEY"},
    "set for teachers alone": {"endpoint": "https://x", "model": "m", "key": "HF_TOKEN"},
    "belongs to an endpoint": {"key": "TEACHER_KEY"},
}


@pytest.mark.parametrize("what", FAULTS)
def test_settings_of_answers_are_checked(what: str) -> None:
    with pytest.raises(ValidationError, match=what) as refusal:
        Answers.model_validate(FAULTS[what])
    assert "secret" not in str(refusal.value.errors(include_input=False))


@pytest.mark.parametrize("key", ["http://127.0.0.1:8000", "http://localhost/v1", "http://[::1]:80", "https://x.org/v1"])
def test_a_key_may_go_to_this_machine_and_over_https(key: str) -> None:
    assert Answers(endpoint=key, model="m", key="TEACHER_KEY").key


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"answers": {}, "blocks": 1}, "no hidden states"),
        ({"answers": {}, "top_k": 5}, "no others' probabilities"),
        ({"teacher": "t", "answers": {"endpoint": "https://x", "model": "m"}}, "the model of the endpoint"),
        ({"epochs": 0}, "nothing is trained"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        Distill.model_validate({"method": "distill", **settings})


def test_vocabularies_by_hand() -> None:
    def read(vocabulary: Any, *added: tuple[str, int, bool]) -> tokenizers.Vocabulary:
        tokens = [{"content": content, "id": number, "special": special} for content, number, special in added]
        return tokenizers.read(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": tokens}), "m", "here")

    one = read({"a": 0, "b": 1}, ("<s>", 2, True))
    read([["a", -1.0], ["b", -2.0]], ("<s>", 2, True)).check_same(one, "here", "fix")
    for other, what in (
        (read({"a": 0, "c": 1}, ("<s>", 2, True)), "2 differ, the first is 'b' (id 1 here, none there)"),
        (read({"a": 0, "b": 1}, ("<s>", 3, True)), "1 differ, the first is '<s>' (id 2 here, 3 there)"),
        (read({"a": 0, "b": 1}, ("<s>", 2, False)), "'<s>' is special in one of them only"),
    ):
        with pytest.raises(PlanError) as refusal:
            one.check_same(other, "here", "fix")
        assert what in refusal.value.what
    with pytest.raises(PlanError, match="holds no vocabulary"):
        tokenizers.read("[]", "m", "here")


def test_the_table_says_that_a_variant_is_distilled(place: Path) -> None:
    said = table.render(plan(place, PRUNE, distill(epochs=1)))
    assert "distilled" in said and "recovered" not in said


@pytest.mark.parametrize("method", ["eora", "lora"])
def test_an_adapter_brings_nothing_nearer_to_a_teacher(place: Path, method: str) -> None:
    steps = [distill(student=str(place / "small")), {"method": "gptq", "bits": 4, "group_size": 32}]
    variants = {"V": steps, "A": [{"method": method, "of": "V", "rank": 4}]}
    with pytest.raises(PlanError, match="V learnt from a teacher") as caught:
        plan(place, variants=variants)
    assert "without distill" in caught.value.fix
