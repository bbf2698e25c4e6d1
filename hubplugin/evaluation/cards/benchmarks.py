"""report -> `.eval_results/*.yaml`: scores of benchmarks that the Hub has leaderboards for, in its own format.

https://huggingface.co/docs/hub/eval-results. The Hub keeps a list of such benchmarks; the rows are those whose names on
it were seen in use. A score of some of the questions is none of the benchmark's. Knows reports; asks no Hub.
"""

from typing import Any

import yaml

from hubplugin.report import Report

# lm-eval's name -> the Hub's dataset, and the benchmark's name in it
REGISTERED = {
    "gsm8k": ("openai/gsm8k", "gsm8k"),
    "mmlu_pro": ("TIGER-Lab/MMLU-Pro", "mmlu_pro"),
    "gpqa_diamond_zeroshot": ("Idavidrein/gpqa", "diamond"),
    "gpqa_diamond_cot_zeroshot": ("Idavidrein/gpqa", "diamond"),
}


def entries(report: Report) -> list[dict[str, Any]]:
    """An entry for each benchmark, its score in percent; none where the repo's main branch is not what is described."""
    if report.tasks is None or report.repo is None or report.branch is not None:
        return []
    found = []
    for result in report.tasks.results:
        if result.name not in REGISTERED or result.questions != result.of:
            continue
        dataset, task = REGISTERED[result.name]
        shots = "" if result.fewshot is None else f", {result.fewshot} examples"
        found.append(
            {
                "dataset": {"id": dataset, "task_id": task},
                "value": round(100 * result.variant.value, 2),
                "date": report.created,
                "source": {"url": f"https://huggingface.co/{report.repo}", "name": "Model Card"},
                "notes": f"{report.tasks.harness}, {result.name}, {result.metric}{shots}",
            }
        )
    return found


def render(report: Report) -> str | None:
    """The file's text; None where there is nothing to say."""
    found = entries(report)
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True) if found else None
