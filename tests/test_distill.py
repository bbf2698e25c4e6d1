"""Distillation on answers: the loss by hand, rows, the cache, sampling, prompts, and training that was interrupted."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from calibration_helpers import source
from interruption_helpers import check_killed, contents, stopped
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hubplugin.checkpoint import resume
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress.calibration import prompts
from hubplugin.compress.calibration.prompts import Prompt
from hubplugin.errors import CalibrationError, CompressError
from hubplugin.manifest.steps.training.distill import Answers, Distill
from hubplugin.recovery import distillation, output_head, student_folder
from hubplugin.recovery.answers import asking, cross_entropy, in_process, learning
from hubplugin.recovery.answers import rows as answer_rows
from hubplugin.recovery.answers.cache import Answer, AnswerCache
from hubplugin.recovery.answers.cross_entropy import CrossEntropy
from hubplugin.recovery.answers.rows import AnswerRows
from hubplugin.recovery.splitting import Split
from hubplugin.recovery.trainable import AllWeights, Student
from hubplugin.recovery.training_setup import TrainingSetup

END = 256  # pico's EOS


def step(**settings: Any) -> Distill:
    return Distill.model_validate({"method": "distill", "student": "x", "answers": {}, "epochs": 12, **settings})


def taught(count: int = 33, prompt: int = 8, longest: int = 40) -> AnswerRows:
    """Rows of one text with answers of different lengths."""
    text = "to be or not to be, that is the question; whether it is nobler in the mind to suffer "
    asked = [Prompt(text=text[place : place + prompt]) for place in range(count)]
    given = [Answer(text[place + prompt : place + prompt + 9 + place % 24], True) for place in range(count)]
    return answer_rows.rows(asked, given, pico.tokenizer(), pico.VOCABULARY, longest)


# -- the loss


class _Logits(nn.Module):
    """A model whose logits are what is trained."""

    head = None

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, **_: Any) -> Any:
        return self


def test_the_loss_by_hand_on_four_tokens() -> None:
    chances = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.25, 0.25, 0.5], [0.9, 0.05, 0.05]])
    model = _Logits((chances.log() + 2.0)[None])
    rows = AnswerRows(torch.tensor([[0, 2, 1, 0]]), torch.tensor([[False, False, True, True]]))
    loss = CrossEntropy(rows, rows, 3, "cpu").learn(model, [0])  # token 1 after the second position, 0 after the third
    assert 2 * loss == pytest.approx(-math.log(0.7) - math.log(0.25), abs=1e-6)
    gradient = 2 * model.logits.grad[0]
    torch.testing.assert_close(gradient[1], torch.tensor([0.1, 0.7 - 1, 0.2]))
    torch.testing.assert_close(gradient[2], torch.tensor([0.25 - 1, 0.25, 0.5]))
    assert not gradient[0].any() and not gradient[3].any(), "a prompt's tokens are not learnt"
    losses, exact = output_head.cross_entropy(model.logits.detach()[0, 1:3], torch.tensor([1, 0]))
    torch.testing.assert_close(losses, -torch.tensor([0.7, 0.25]).log())
    torch.testing.assert_close(exact, gradient[1:3])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", [1, 5, 10**6])
def test_a_head_in_pieces_gives_the_loss_and_gradients_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, tied: bool, positions: int
) -> None:
    monkeypatch.setattr(output_head, "LOGITS", positions * pico.VOCABULARY)
    monkeypatch.setattr(output_head, "LOGITS_BYTES", 7 * pico.VOCABULARY * 4)
    monkeypatch.setattr(cross_entropy, "fast_products", lambda _: contextlib.nullcontext())
    one, other = (pico.model("llama", dtype=torch.float32, tie_word_embeddings=tied) for _ in range(2))
    rows, student = taught(5), Student(AllWeights(one, []))
    assert student.head is one.lm_head
    lesson = CrossEntropy(rows, rows, pico.VOCABULARY, "cpu")
    logits = other(rows.ids.long()).logits[:, :-1][rows.answer[:, 1:]]
    theirs = nn.functional.cross_entropy(logits, rows.ids[:, 1:][rows.answer[:, 1:]].long())
    theirs.backward()
    assert lesson.held_out(student) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert all(weight.grad is None for weight in one.parameters())
    assert lesson.learn(student, range(5)) == pytest.approx(float(theirs.detach()), rel=1e-5)
    for (name, weight), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, expected.grad, msg=lambda said, name=name: f"{name}: {said}")


class _Table(nn.Module):
    """A model whose logits depend on the last token alone, and which counts what it is asked."""

    head = None

    def __init__(self) -> None:
        super().__init__()
        self.table, self.asked = nn.Parameter(torch.arange(25.0).reshape(5, 5) / 10), 0

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        self.asked += input_ids.numel()
        return type("Out", (), {"logits": self.table[input_ids]})()


def test_a_step_is_the_mean_over_answers_tokens_whatever_stands_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.tensor([[1, 2, 3, 0, 0, 0], [1, 4, 2, 2, 3, 0]])
    rows = AnswerRows(ids, torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]]).bool())
    table = _Table()
    logs = table.table.detach().log_softmax(-1)
    by_hand = -sum(float(logs[before, after]) for before, after in [(1, 2), (2, 3), (4, 2), (2, 2), (2, 3)]) / 5
    found = []
    for at_once in (10**6, 1):
        monkeypatch.setattr(distillation, "LOGITS", at_once)
        lesson = CrossEntropy(rows, rows, 5, "cpu")
        assert lesson.learn(table, [0, 1]) == pytest.approx(by_hand, rel=1e-6)
        assert lesson.held_out(table) == pytest.approx(by_hand, rel=1e-6)
        assert table.table.grad is not None
        found.append(table.table.grad.clone())
        table.table.grad = None
    torch.testing.assert_close(*found)
    assert table.asked == 4 * 2 * 5, "no column behind the last answer is computed"


def test_filling_up_changes_no_answer_and_blocks_one_by_one_give_the_same_loss(pico_folder: Path) -> None:
    rows = taught()
    setup = TrainingSetup(pico_folder, pico_folder, Split(rows.ids, rows.ids), Reader(pico_folder).headers, "cpu")
    model = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
    alone, count = 0.0, 0
    for ids, marks in zip(rows.ids, rows.answer, strict=True):
        length = int(marks.nonzero().max()) + 1
        with torch.no_grad():
            logs = model(ids[None, :length].long()).logits[0].log_softmax(-1)
        places = marks[:length].nonzero().flatten()
        alone -= float(logs[places - 1].gather(1, ids[places].long()[:, None]).sum())
        count += len(places)
    assert learning.stored_loss(setup, rows, {}) == pytest.approx(alone / count, rel=1e-5)
    lesson = CrossEntropy(rows, rows, pico.VOCABULARY, "cpu")
    student = Student(AllWeights(setup.model(pico_folder).load_all(), []))
    assert lesson.held_out(student) == pytest.approx(alone / count, rel=1e-5)


# -- rows


def test_rows_hold_the_template_the_answer_and_the_end_of_a_turn() -> None:
    tokenizer = pico.tokenizer()
    asked = [Prompt(turns=(("user", "hi"),)), Prompt(text="ab"), Prompt(text="abc"), Prompt(text="x" * 30)]
    given = [Answer("yes", True), Answer("cd", False), Answer("   ", True), Answer("much", True)]
    rows = answer_rows.rows(asked, given, tokenizer, pico.VOCABULARY, 24)
    begun = tokenizer("<|user|>hi<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
    said = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert rows.ids[0].tolist()[: len(begun) + 4] == [*begun, *said, END]
    assert rows.answer[0].nonzero().flatten().tolist() == list(range(len(begun), len(begun) + 4))
    assert rows.answer[1].nonzero().flatten().tolist() == [2, 3], "an answer that was cut off gets no end"
    assert rows.left_out == 2 and len(rows.ids) == 2, "no words, and a prompt that leaves no room"
    cut = answer_rows.rows(asked[1:2] * 2, [Answer("cdefgh", True)] * 2, tokenizer, None, 5)
    assert cut.ids.shape == (2, 5) and not (cut.ids == END).any()


def test_rows_refuse_what_cannot_be_learnt() -> None:
    tokenizer = pico.tokenizer()
    with pytest.raises(CalibrationError, match="1 of 2 answers"):
        answer_rows.rows(
            [Prompt(text="a"), Prompt(text="b")], [Answer("c", True), Answer("", True)], tokenizer, None, 9
        )
    with pytest.raises(CalibrationError, match="embedding has 99 rows"):
        answer_rows.rows([Prompt(text="a")] * 2, [Answer("c", True)] * 2, tokenizer, 99, 9)
    tokenizer.chat_template = None
    with pytest.raises(CalibrationError, match="no chat template"):
        answer_rows.rows([Prompt(turns=(("user", "a"),))] * 2, [Answer("c", True)] * 2, tokenizer, None, 99)


# -- prompts


def test_prompts_are_conversations_up_to_the_last_question(tmp_path: Path, pico_folder: Path) -> None:
    turns = [("system", "s"), ("user", "one"), ("assistant", "1"), ("user", "two"), ("assistant", "2")]
    talk = {"messages": [{"role": role, "content": content} for role, content in turns]}
    short = {"messages": [{"role": "user", "content": "only"}]}
    lines = [talk, short, talk, {"messages": [{"role": "assistant", "content": "nobody asked"}]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {"files": ["a.jsonl"], "samples": 2, "sequence_length": 64}

    def read(**more: Any) -> prompts.Prompts:
        return prompts.read(source(**{**settings, **more}), pico.tokenizer(), tmp_path, pico_folder, 8)

    found = read(skip=1)
    assert {prompt.turns for prompt in found.prompts} == {tuple(turns[:4]), (("user", "only"),)}, "each once"
    assert found.texts is None and "1 of 4 rows left out" in found.description
    with pytest.raises(CalibrationError, match="no turn of a user"):
        read()
    with pytest.raises(CalibrationError, match="holds 2 different questions, 3 are needed"):
        read(skip=1, samples=3)
    (tmp_path / "a.jsonl").write_text(json.dumps({**short, "tools": [{"name": "f", "parameters": {}}]}) + "\n")
    with pytest.raises(CalibrationError, match="held with tools"):
        read()


def test_prompts_of_texts_are_their_beginnings(tmp_path: Path, pico_folder: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{number:04d}" for number in range(200)))
    given = source(files=["a.txt"], samples=10, sequence_length=32)
    found = prompts.read(given, pico.tokenizer(), tmp_path, pico_folder, 8)
    assert len(found.prompts) == 10 and all(len(prompt.text) == 8 for prompt in found.prompts)
    assert found.texts is not None and found.texts.sequences == 10


# -- a teacher in this process


def test_without_temperature_it_answers_as_transformers_does(pico_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico_folder, dtype=torch.float32)
    asked = pico.tokens(3, 11).long()
    whole = model.generate(asked, max_new_tokens=9, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 11:]
    settings = Answers(temperature=0, max_tokens=9)
    teacher = in_process.InProcess(pico_folder, "teacher", settings, 64)
    found = in_process.continuations(teacher._model, asked, torch.zeros(3, 9), 0.0, frozenset())
    assert found == whole.tolist()
    end = found[1][4]
    cut = in_process.continuations(teacher._model, asked, torch.zeros(3, 9), 0.0, frozenset([end]))
    assert cut[1] == found[1][: found[1].index(end) + 1]


def test_draws_choose_from_cumulated_probabilities() -> None:
    chances = torch.tensor([[0.2, 0.5, 0.3]])
    for draw, token in ((0.0, 0), (0.19, 0), (0.21, 1), (0.69, 1), (0.71, 2), (0.9999999, 2)):
        assert int(in_process._chosen(chances.log(), torch.tensor([[draw]], dtype=torch.float64), 1.0)) == token
    cold = torch.tensor([[0.04, 0.25, 0.09]])  # squared: temperature 1/2
    for draw, token in ((0.1, 0), (0.12, 1), (0.75, 1), (0.78, 2)):
        draws = torch.tensor([[draw]], dtype=torch.float64)
        assert int(in_process._chosen(chances.log(), draws, 0.5)) == token
        assert int(in_process._chosen(cold.log(), draws, 1.0)) == token


@pytest.fixture(scope="module")
def asked() -> list[Prompt]:
    texts = [Prompt(text=f"tell me about number {number:03d}") for number in range(5)]
    return [*texts, Prompt(turns=(("user", "hi"),)), Prompt(text="short"), Prompt(text="other")]


def test_an_interrupted_teacher_gives_the_same_answers_and_none_twice(
    pico_folder: Path, tmp_path: Path, asked: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, sampled, sample = Answers(max_tokens=12), [], in_process.continuations

    def teacher() -> in_process.InProcess:
        return in_process.InProcess(pico_folder, "teacher", settings, 64)

    def watched(model: Any, ids: Tensor, *others: Any) -> list[list[int]]:
        sampled.append(len(ids))
        return sample(model, ids, *others)

    monkeypatch.setattr(in_process, "continuations", watched)
    whole = asking.ask(asked, settings, "id", tmp_path / "whole.jsonl", teacher)
    assert sum(sampled) == len(asked) and len({answer.text for answer in whole}) == len(asked)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "part.jsonl").write_bytes(b"".join(lines[:4]) + lines[4][:-7])  # as kill -9 may leave it
    assert asking.ask(asked, settings, "id", tmp_path / "part.jsonl", teacher) == whole
    assert sorted((tmp_path / "part.jsonl").read_bytes().splitlines()) == sorted(b"".join(lines).splitlines())
    sampled.clear()
    assert asking.ask(asked, settings, "id", tmp_path / "part.jsonl", teacher) == whole and not sampled
    for other in ("other", settings.model_copy(update={"seed": 1}), settings.model_copy(update={"temperature": 0.5})):
        sampled.clear()
        given = (settings, "other") if isinstance(other, str) else (other, "id")
        asking.ask(asked[:1], *given, tmp_path / "part.jsonl", teacher)
        assert sampled == [1], "another teacher, seed or temperature is asked again"


def test_a_prompt_without_room_for_an_answer_is_refused(pico_folder: Path, asked: list[Prompt]) -> None:
    teacher = in_process.InProcess(pico_folder, "teacher", Answers(), 20)
    with pytest.raises(CalibrationError, match="leaves no room for an answer in 20"):
        list(teacher.answers(asked, [0]))


def test_the_cache_drops_what_is_half_written_and_adds_nothing_twice(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "a" / "b.jsonl")
    cache.add([("k", Answer("ü\n\u2028x", True)), ("l", Answer("", False))])
    cache.add([("k", Answer("other", True))])
    again = AnswerCache(tmp_path / "a" / "b.jsonl")
    assert again["k"] == Answer("ü\n\u2028x", True) and again["l"] == Answer("", False)
    size = (tmp_path / "a" / "b.jsonl").stat().st_size
    with (tmp_path / "a" / "b.jsonl").open("ab") as file:
        file.write(b'{"key": "m", "text": "ha')
    assert "m" not in AnswerCache(tmp_path / "a" / "b.jsonl")
    assert (tmp_path / "a" / "b.jsonl").stat().st_size == size


# -- training


def test_training_lowers_the_held_out_loss_and_reports_what_the_folder_has(pico_folder: Path, tmp_path: Path) -> None:
    rows = taught()
    done = learning.run(pico_folder, tmp_path / "out", rows, step(learning_rate=1e-2))
    assert done.after < done.before and done.measured == "cross-entropy"
    held = rows.pick(torch.arange(33) % 8 == 7)
    setup = TrainingSetup(tmp_path / "out", tmp_path / "out", Split(rows.ids, rows.ids), {}, "cpu")
    assert learning.stored_loss(setup, held, {}) == pytest.approx(done.after, rel=1e-6)
    assert done.tokens + done.held_out_tokens == int(rows.answer.sum()) and done.held_out_tokens == int(
        held.answer.sum()
    )
    assert [step for step, _ in done.curve] == sorted(step for step, _ in done.curve) and done.curve[-1][
        0
    ] == done.steps
    assert pico.headers(tmp_path / "out") == pico.headers(pico_folder)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (pico_folder / "tokenizer.json").read_bytes()


def test_what_does_not_help_is_not_written(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(learning, "stored_loss", lambda *given: next(losses))
    done = learning.run(pico_folder, tmp_path / "out", taught(), step(epochs=1))
    assert done.after == done.before == 1.0
    weights = "model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (pico_folder / weights).read_bytes()


@pytest.mark.parametrize("settings", [{}, {"lora": 4}], ids=["all weights", "adapters"])
@pytest.mark.parametrize(
    ("place", "name", "calls"),
    [(distillation.Distillation, "_learn", 4), (distillation.Distillation, "_judge", 2), (student_folder, "write", 0)],
)
def test_a_stopped_training_goes_on_to_the_same_bytes(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    place: Any, name: str, calls: int, settings: dict[str, Any],
) -> None:  # fmt: skip
    rows = taught()
    whole = learning.run(pico_folder, tmp_path / "whole", rows, step(**settings))
    assert whole.steps >= 6
    with stopped(calls, place, name, monkeypatch):
        learning.run(pico_folder, tmp_path / "out", rows, step(**settings))
    other = AnswerRows(rows.ids, rows.answer.roll(1, 0))
    with pytest.raises(CompressError, match="another answers"):
        learning.run(pico_folder, tmp_path / "out", other, step(**settings))
    again = learning.run(pico_folder, tmp_path / "out", rows, step(**settings))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert again.model_copy(update={"seconds": whole.seconds}) == whole
    assert learning.run(pico_folder, tmp_path / "out", rows, step(**settings)) == again, "a finished folder is kept"


def learn(student: Path, out: Path) -> None:
    learning.run(student, out, taught(), step())


@pytest.mark.slow
def test_kills_at_any_moment_end_in_the_same_bytes(pico_folder: Path, tmp_path: Path) -> None:
    check_killed(learn, (pico_folder,), tmp_path)
    assert [path.name for path in (tmp_path / "out" / resume.TRAINING).glob("*.safetensors")] == ["done.safetensors"]
