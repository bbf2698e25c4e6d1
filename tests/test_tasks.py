"""Tasks through lm-eval: statistics by hand, its own numbers, local files, gates, cards, and what is refused."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico
import pytest
import yaml
from card_helpers import report
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from hubplugin import api, writing
from hubplugin import report as reports
from hubplugin.checkpoint.model_folder import PUSHED, SCORES_FILE, publishable
from hubplugin.errors import GateError, HubPluginError, ManifestError, PlanError
from hubplugin.evaluation.cards import benchmarks, card
from hubplugin.evaluation.cards.card_metadata import metadata
from hubplugin.evaluation.gate.tasks import judge_tasks
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.evaluation.tasks import compared, harness, paired, surroundings
from hubplugin.evaluation.tasks.harness import Answers
from hubplugin.manifest.metrics import Thresholds
from hubplugin.manifest.reading import loading, task_file
from hubplugin.manifest.tasks import Tasks as Asked
from hubplugin.plan.checks import tasks as checks
from hubplugin.task_record import Score, TaskResult, Tasks

pytest.importorskip("lm_eval")

QUESTIONS = 24
TASK = """\
task: successor
dataset_path: json
dataset_kwargs: {data_files: {test: successor.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.5}
"""
MANIFEST = """\
model: {base}
calibrate: {{self: true, samples: 4, sequence_length: 64}}
variants:
  Int4: [{{method: gptq, bits: 4, group_size: 32}}]
evaluate:
  perplexity: {{self: true, samples: 2, sequence_length: 64, seed: 1}}
  tasks: {tasks}
gate: {{top1_agreement: 0.01, mean_kl: 100{gate}}}
"""


def write_task(folder: Path, text: str = TASK) -> Path:
    rows = [
        {"question": f"After {i} comes", "choices": [f"{i + 1}", f"{i + 7}", f"{i - 1}"], "answer": i % 3}
        for i in range(QUESTIONS)
    ]
    (folder / "successor.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "successor.yaml").write_text(text)
    return folder / "successor.yaml"


def own(path: Path) -> dict[str, task_file.TaskFile]:
    return task_file.of([path.name], path.parent)


def write_manifest(folder: Path, base: Path, tasks: str = "[./successor.yaml]", gate: str = "") -> Path:
    (folder / "m.yaml").write_text(MANIFEST.format(base=base, tasks=tasks, gate=gate))
    return folder / "m.yaml"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico.write(tmp_path_factory.mktemp("tasks") / "pico")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No vLLM, no network: whoever asks for an address fails."""

    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    monkeypatch.setattr("hubplugin.evaluation.engine_choice.generate", generate)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_args, **_more: pytest.fail("the network is asked"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


# statistics


def test_a_mean_difference_by_hand() -> None:
    found = paired.difference([1.0, 2.0, 3.0, 4.0], [1.5, 2.0, 2.0, 6.5])
    assert found is not None and found.mean == 0.5  # of 0.5, 0, -1, 2.5
    sample_variance = (0**2 + 0.5**2 + 1.5**2 + 2.0**2) / 3
    assert found.stderr == pytest.approx(math.sqrt(sample_variance / 4))
    z = 0.5 / found.stderr
    assert found.p_value == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_right_and_wrong_by_mcnemars_exact_test() -> None:
    first, second = [1, 1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1, 0]
    found = paired.difference(first, second)  # five lost, one gained: 2 (C(6,0) + C(6,1)) / 2^6
    assert found is not None and found.mean == -0.5 and found.p_value == pytest.approx(14 / 64)
    unlike = paired.difference([1] * 10, [0] * 10)
    assert unlike is not None and unlike.p_value == pytest.approx(2 / 2**10)


def test_what_equals_does_not_differ_and_too_few_say_nothing() -> None:
    for values in ([1, 0, 1], [0.5, 0.25, 3.0]):
        assert paired.difference(values, values) == paired.Difference(0, 0, 1.0)
    assert paired.difference([1], [0]) is None
    with pytest.raises(ValueError, match="no pairs"):
        paired.difference([1, 0], [1])


# lm-eval's numbers


def test_scores_are_those_of_the_harness(
    base: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write_task(tmp_path)
    found = harness.ask(base, Asked(names=(path.name,), fewshot=2, limit=20), own(path))[path.name]
    dense = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    model = HFLM(pretrained=dense, tokenizer=AutoTokenizer.from_pretrained(base), device="cpu")
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # ours needs no such help
    given = [task_file.read(path).config]
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    their = lm_eval.simple_evaluate(model, tasks=given, task_manager=manager, num_fewshot=2, limit=20)
    assert their is not None
    numbers = their["results"]["successor"]
    assert (found.metric, found.value) == ("acc_norm", numbers["acc_norm,none"])
    assert found.stderr == pytest.approx(numbers["acc_norm_stderr,none"])
    assert (found.questions, found.of, found.fewshot, found.version) == (20, QUESTIONS, 2, "2.5")
    assert sum(found.values) / 20 == pytest.approx(found.value) and 0 < found.value < 1


def test_a_groups_questions_count_alike_and_a_metric_that_is_no_mean_has_no_pairs() -> None:
    def samples(*values: float) -> list[dict[str, Any]]:
        return [{"doc_id": at, "filter": "none", "acc": value} for at, value in enumerate(values)]

    group = {
        "samples": {"a": samples(1, 0, 1), "b": samples(0)},
        "results": {"a": {"acc,none": 2 / 3}, "b": {"acc,none": 0.0}},
        "n-samples": {"a": {"original": 9, "effective": 3}, "b": {"original": 1, "effective": 1}},
        "n-shot": {"a": 0, "b": 5},
        "versions": {"a": 1, "b": 2},
        "higher_is_better": {"a": {"acc": True}, "b": {"acc": True}},
    }
    found = harness.read(group)
    assert (found.value, found.values, found.fewshot, found.version) == (0.5, (1, 0, 1, 0), None, "1, 2")
    assert (found.questions, found.of) == (4, 10)
    alone: dict[str, Any] = {key: {"a": value["a"]} for key, value in group.items()}
    alone["results"]["a"] = {"acc,none": 17.0, "acc_stderr,none": "N/A"}
    found = harness.read(alone)
    assert (found.value, found.values, found.stderr) == (17.0, (), None)


# a run


def test_a_run_asks_once_says_it_on_the_card_and_keeps_it(
    base: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(tmp_path)
    manifest = write_manifest(tmp_path, base, gate=", tasks: {./successor.yaml: 0.01}")
    (made,) = api.run(manifest, out=tmp_path / "out")
    assert made.passed and made.tasks is not None
    (result,) = made.tasks.results
    assert result.sha256 == task_file.read(tmp_path / "successor.yaml").sha256
    assert result.questions == result.of == QUESTIONS and result.difference is not None
    assert result.difference.value == pytest.approx(result.variant.value - result.base.value)
    text = card.render(made)
    assert f"| {QUESTIONS} | {result.base.value:.4f} ± " in text and result.sha256 in text
    assert reports.read(tmp_path / "out" / "Int4") == made

    asked: list[Path] = []
    monkeypatch.setattr(harness, "ask", lambda folder, *_: asked.append(folder) or pytest.fail("asked again"))
    assert api.run(manifest, out=tmp_path / "out") == [made] and not asked
    write_task(tmp_path, TASK.replace("2.5", "2.6"))
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        api.run(manifest, out=tmp_path / "out")


def test_a_base_beside_itself_has_lost_nothing(base: Path, tmp_path: Path, offline: None) -> None:
    path = write_task(tmp_path)
    asked = Asked(names=(path.name,), limit=10)
    answers = harness.ask(base, asked, own(path))
    (result,) = compared.compared(asked, answers, answers, own(path)).results
    assert (result.recovery, result.difference, result.p_value) == (1.0, Score(value=0, stderr=0), 1.0)


# gate, card, scores


def tasks(name: str = "arc_easy", variant: float = 0.58, **more: Any) -> Tasks:
    fields: dict[str, Any] = {
        "name": name, "metric": "acc_norm", "higher_is_better": True, "questions": 500, "of": 2376, "fewshot": 0,
        "version": "1.0", "base": Score(value=0.6, stderr=0.021), "variant": Score(value=variant, stderr=0.022),
        "difference": Score(value=variant - 0.6, stderr=0.009), "p_value": 0.0271, **more,
    }  # fmt: skip
    return Tasks(harness="lm-eval 0.4.13", limit=500, protocol="as ever", results=(TaskResult(**fields),))


@pytest.mark.parametrize(
    ("measured", "passed", "said"),
    [
        (tasks(variant=0.59), True, "recovery 0.9833, at least 0.97"),
        (tasks(), False, "recovery 0.9667, at least 0.97"),
        (tasks(base=Score(value=0.0, stderr=0.0)), False, "not measured"),
        (tasks(base=Score(value=2.0, stderr=None), variant=2.05, higher_is_better=False), True, "recovery 0.9756"),
        (None, False, "not measured"),
    ],
)
def test_the_gate_holds_the_recovery(measured: Tasks | None, passed: bool, said: str) -> None:
    line = judge_tasks(measured, Thresholds(tasks={"arc_easy": 0.97}))
    assert line is not None and line.passed == passed and said in line.detail
    assert judge_tasks(measured, Thresholds()) is None


def test_a_failed_task_is_a_failed_gate(base: Path, tmp_path: Path, offline: None) -> None:
    write_task(tmp_path)
    manifest = write_manifest(tmp_path, base, gate=", tasks: {./successor.yaml: 2.0}")
    with pytest.raises(GateError, match="Int4"):
        api.run(manifest, out=tmp_path / "out")
    lines = {line.name: line for line in reports.read(tmp_path / "out" / "Int4").gate}
    assert not lines["tasks"].passed


def test_every_number_of_a_task_is_on_the_card() -> None:
    made = report(tasks=tasks())
    row = r"| arc\_easy | acc\_norm | 500 of 2,376 | 0.6000 ± 0.0210 | 0.5800 ± 0.0220 | 96.67 % | -0.0200 ± 0.0090 |"
    text = card.render(made)
    assert f"{row} 0.0271 |" in text and "96.67 % of the base's score in arc" in text
    (entry,) = [one for one in metadata(made)["model-index"][0]["results"] if one["dataset"]["name"] == "arc_easy"]
    assert entry["metrics"][0]["value"] == 0.58
    assert "## Tasks" not in card.render(report())


def test_a_benchmarks_score_is_in_the_hubs_own_format_and_published(tmp_path: Path) -> None:
    whole = {"questions": 12032, "of": 12032, "metric": "exact_match, custom-extract"}
    made = report(tasks=tasks("mmlu_pro", 0.4567, **whole))
    (tmp_path / "model.safetensors").write_bytes(b"")
    writing.write(made, tmp_path)
    assert SCORES_FILE in publishable(tmp_path, PUSHED) and writing.written(made, tmp_path)
    entry = EvalResultEntry(
        dataset_id="TIGER-Lab/MMLU-Pro",
        task_id="mmlu_pro",
        value=45.67,
        date=made.created,
        source_url=f"https://huggingface.co/{made.repo}",
        source_name="Model Card",
        notes="lm-eval 0.4.13, mmlu_pro, exact_match, custom-extract, 0 examples",
    )
    assert yaml.safe_load((tmp_path / SCORES_FILE).read_text()) == eval_result_entries_to_yaml([entry])
    for other in (
        {"tasks": tasks("mmlu_pro", 0.4567)},  # of some of the questions
        {"tasks": tasks("arc_easy", **whole)},
        {"branch": "small"},
        {"repo": None},
    ):
        assert benchmarks.render(made.model_copy(update=other)) is None
    writing.write(report(), tmp_path)
    assert not (tmp_path / ".eval_results").exists()


# what is refused


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("task: [a]\n", "is no task"),
        ("- a\n", "is no task"),
        (TASK + "process_docs: !function utils.process\n", "could not determine a constructor"),
        (TASK.replace("metric: acc,", "metric: ./mine.py,"), "mine.py is no metric of lm-eval's own"),
        (TASK.replace("metric: acc,", "metric: acc, hf_evaluate: true,"), "is no metric of lm-eval's own"),
        (TASK + "use_prompt: promptsource:x\n", "prompt of another package"),
        (TASK + "include: other.yaml\n", "includes another file"),
        (TASK + "unsafe_code: true\n", "runs what the model writes"),
        (TASK.replace("{data_files: {test: successor.jsonl}}", "{trust_remote_code: true}"), "code of the data's own"),
        (TASK.replace("{data_files: {test: successor.jsonl}}", "{}"), "names no data_files"),
        (TASK.replace("successor.jsonl", "gone.jsonl"), "gone.jsonl is not there"),
    ],
)
def test_a_task_file_that_is_none_is_refused(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=what) as refusal:
        task_file.read(write_task(tmp_path, text))
    assert str(tmp_path / "successor.yaml") in refusal.value.where and refusal.value.fix


def test_templates_of_a_task_file_reach_no_python(base: Path, tmp_path: Path, offline: None) -> None:
    path = write_task(tmp_path, TASK.replace('"{{question}}"', '"{{question.__class__.__name__}}"'))
    with pytest.raises(HubPluginError, match="SecurityError"):
        harness.ask(base, Asked(names=(path.name,)), own(path))


def test_metrics_that_a_task_file_may_name_are_the_harness_own() -> None:
    import lm_eval.api.metrics  # noqa: F401  registers them
    from lm_eval.api.registry import metric_registry

    assert [name for name in task_file.METRICS if name not in metric_registry] == []


def test_the_callers_generators_stay_where_they_are() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    with surroundings.seeded():
        within = random.random()
    assert random.random() == expected and within == random.Random(0).random()


def test_a_damaged_task_is_said_by_its_name_before_any_work(base: Path, tmp_path: Path, offline: None) -> None:
    path = write_task(tmp_path, TASK.replace('"{{question}}"', '"{{question.nothing.here}}"'))
    with pytest.raises(HubPluginError, match="lm-eval could not ask it") as refusal:
        harness.ask(base, Asked(names=(path.name,)), own(path))
    assert refusal.value.where == "evaluate.tasks: successor.yaml"
    with pytest.raises(HubPluginError, match="lm-eval could not ask it"):
        api.run(write_manifest(tmp_path, base), out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


@pytest.mark.parametrize(
    ("tasks", "gate", "where", "what"),
    [
        ("[./successor.yaml]", ", tasks: {arc_easy: 0.9}", "gate.tasks.arc_easy", "no task of this name is asked"),
        ("[./successor.yaml]", ", tasks: {./successor.yaml: 0}", "gate.tasks", "0 is not what it takes"),
        ("[]", "", "evaluate.tasks.names", "names no task"),
        ("[a, a]", "", "evaluate.tasks.names", "names a twice"),
        ("{names: [a], shots: 2}", "", "evaluate.tasks.shots", "shots"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    tasks: str, gate: str, where: str, what: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ManifestError, match=what) as refusal:
        loading.load(write_manifest(tmp_path, base, tasks, gate))
    assert where in refusal.value.where


def test_a_task_that_does_not_exist_is_refused_by_the_plan_with_its_neighbours(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    class Index:  # its own takes half a minute to make
        all_tasks = ("arc_easy", "arc_challenge", "mmlu", "winogrande")

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Index)
    with pytest.raises(PlanError, match="no task arc_eazy") as refusal:
        api.plan(write_manifest(tmp_path, base, "[arc_easy, mmlu, arc_eazy]"))
    assert "arc_easy" in refusal.value.fix


def test_names_that_files_of_the_harness_spell_out_need_no_index(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_refuse", lambda where, names: pytest.fail(f"{names} not found"))
    asked = "[arc_easy, hellaswag, mmlu, gsm8k, mmlu_pro, gpqa_diamond_zeroshot, winogrande, piqa]"
    checks.check_tasks(loading.load(write_manifest(tmp_path, base, asked)))


def test_without_the_harness_the_plan_says_how_to_get_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match="not installed") as refusal:
        api.plan(write_manifest(tmp_path, base, "[arc_easy]"))
    assert refusal.value.fix == "pip install 'hubplugin[tasks]'"


def test_answers_to_other_questions_are_not_compared() -> None:
    def result(base: Answers, variant: Answers) -> TaskResult:
        return compared.compared(Asked(names=("a",)), {"a": base}, {"a": variant}, {}).results[0]

    no_mean = Answers("acc", True, 0.5, None, (), "q", 3, 3, 0, "1")
    found = result(no_mean, no_mean)
    assert found.difference is None and found.p_value is None and found.recovery == 1
    whole = replace(no_mean, values=(1, 0))
    assert result(whole, whole).difference == Score(value=0, stderr=0)
    assert result(whole, replace(whole, asked="other questions")).difference is None
