"""The pruning benchmark's bookkeeping: what is run again, one way of measuring, what page and plots say."""

import json
import math
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pico
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import pruning
import pruning_ours
import pruning_page
import pruning_plots
import pruning_quality
import pruning_recovery_page
import pruning_speed_page
from pruning_rivals import RIVALS, parts

from hubplugin import disk, report
from hubplugin.evaluation import quality_metrics
from hubplugin.model import kl_divergence
from hubplugin.model.architectures import families

IDS = pico.tokens(4, 24)


def test_a_folder_is_plain_where_all_layers_are_alike(tmp_path: Path) -> None:
    model = pico.model("llama", dtype=torch.float32)
    model.save_pretrained(tmp_path / "alike")
    parts.cut_ffn(model.model.layers[1], torch.arange(96))
    model.save_pretrained(tmp_path / "unlike")
    assert pruning.same_shapes(tmp_path / "alike") and not pruning.same_shapes(tmp_path / "unlike")


def reference(folder: Path) -> quality_metrics.Reference:
    described = report.Tokens(source="ids", sequences=6, tokens_per_sequence=40, seed=2, sha256="0" * 64)
    return quality_metrics.reference(folder, families.FAMILIES["llama"], pico.tokens(6, 40, 2), described)


def test_a_module_and_its_folder_are_measured_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_divergence, "LOGITS", 5000)  # several pieces, which need not be the same in both ways
    base = reference(pico.write(tmp_path / "base"))
    dense = pruning_quality.measure(pruning.load(tmp_path / "base"), base)
    assert dense.perplexity == pytest.approx(base.quality.perplexity, rel=1e-5)
    assert dense.perplexity_stderr == pytest.approx(base.quality.perplexity_stderr, rel=1e-4)
    assert dense.mean_kl == pytest.approx(0, abs=1e-8) and dense.top1_agreement == 1
    moved = pico.write(tmp_path / "moved", seed=0)
    model = pruning.load(moved)
    model.model.layers[1].mlp.down_proj.weight *= 0.5  # exact in bfloat16
    model.save_pretrained(moved)
    expected = quality_metrics.measure(moved, families.FAMILIES["llama"], base, kl=True).variant.model_dump()
    found = pruning_quality.measure(model, base).model_dump()
    assert expected["mean_kl"] > 1e-3
    assert found == pytest.approx(expected, rel=1e-3)


def test_what_rivals_may_keep_is_what_ours_keeps_or_more(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", intermediate_size=512)
    dense = pruning_ours.dense(base, tmp_path).linear_parameters
    for ratio in (0.1, 0.2, 0.3, 0.5):
        assert pruning_ours.least(base, ratio, tmp_path, 1) == math.ceil(round(dense * (1 - ratio), 6))
        assert pruning_ours.least(base, ratio, tmp_path, dense - 5) == dense - 5
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_rival_is_held_to_the_one_of_ours_that_is_like_it(tmp_path: Path) -> None:
    made = bench(tmp_path)
    dense = pruning_ours.dense(made.base, tmp_path).linear_parameters
    for method, less in (("ours", 1), ("ours-per-layer", 2)):
        disk.write_atomically(
            pruning.path_of(made.results, method, 0.2), json.dumps({"linear_parameters": dense - less})
        )
    for method, rival in RIVALS.items():
        assert pruning._asked(made, method, 0.2)["keep"] == dense - (1 if rival.alike else 2)
    assert {method for method, rival in RIVALS.items() if rival.alike} == {
        *("magnitude", "wanda-sp", "llm-pruner-uniform", "shortgpt", "greedy-layers")
    }


def bench(folder: Path) -> pruning.Bench:
    base = pico.write(folder / "base", intermediate_size=512)
    described = report.Tokens(source="ids", sequences=4, tokens_per_sequence=24, seed=1, sha256="1" * 64)
    (folder / "results").mkdir()
    row = families.FAMILIES["llama"]
    return pruning.Bench(base, folder, folder / "results", row, reference(base), IDS, described, {"self": True}, {})


def test_a_result_is_made_once_and_again_where_what_it_is_made_from_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench(tmp_path)
    path = pruning.path_of(made.results, "magnitude", 0.3)
    pruning.run(made, ["magnitude"], [0.3], force=False)
    first = path.read_text(encoding="utf-8")
    monkeypatch.setattr(pruning, "rival", lambda *_: pytest.fail("run again"))
    pruning.run(made, ["magnitude"], [0.3], force=False)
    assert path.read_text(encoding="utf-8") == first
    monkeypatch.setattr(pruning_ours, "least", lambda *_: 10**5)
    with pytest.raises(pytest.fail.Exception, match="run again"):
        pruning.run(made, ["magnitude"], [0.3], force=False)
    assert [each.name for each in made.results.iterdir()] == ["magnitude.30.json"]
    found = pruning_page.results(made.results)
    assert found[0]["linear_parameters"] >= found[0]["made_from"]["keep"]
    assert [each["setting"] for each in found[0]["tried"]] == [{"heads": True}, {"heads": False}]
    assert found[0]["plain"]
    assert "nan" not in pruning_page.render(found, [], []).lower()


def made_up(method: str, ratio: float | None, kept: int, perplexity: float, kl: float, **more: Any) -> dict[str, Any]:
    """One result as pruning.py writes it."""
    tokens = {"source": "ids; in order", "sequences": 4, "tokens_per_sequence": 24, "seed": 1, "sha256": "1" * 64}
    return {
        "method": method,
        "plain": False,
        "ratio": ratio,
        "made_from": {"calibration_sha256": "1", "held_out_sha256": "2"},
        "linear_parameters": kept,
        "added_parameters": 0,
        "parameters": kept + 500,
        "bytes": 2 * kept,
        "seconds": 1.25,
        "quality": {"perplexity": perplexity, "perplexity_stderr": 0.1, "mean_kl": kl, "p99_kl": 3 * kl},
        "calibration": tokens,
        "held_out": tokens,
        "base": {
            "perplexity": 20.0, "perplexity_stderr": 0.1, "linear_parameters": 1000, "parameters": 1500, "bytes": 3000
        },
        "machine": {"processor": "some", "cores": 2, "memory_gb": 25},
        **more,
    }  # fmt: skip


FOUND = [
    made_up("ours", 0.2, 800, 21.0, 0.02, plain=True),
    made_up("flap", 0.2, 810, 24.0, 0.10, setting={"standardise": "heads"}, tried=[
        {"setting": {"standardise": "channels"}, "perplexity": 25.0},
        {"setting": {"standardise": "heads"}, "perplexity": 24.5},
    ]),
    made_up("wanda-sp", 0.2, 800, 30.0, 0.4, plain=True),
    made_up("shortgpt", 0.2, 1000, 20.0, 0.0),
    made_up("int4", None, 1000, 20.5, 0.01),
    made_up("ours-int4", 0.2, 800, 21.6, 0.03),
]  # fmt: skip


def test_what_training_brought_back_is_said_beside_the_same_without() -> None:
    recovery = {
        "tokens": 1024, "held_out_tokens": 512, "steps": 20, "best_step": 10, "seconds": {"distillation": 1200.0},
        "kl_before": 0.04, "curve": [[10, 0.02], [20, 0.03]],
    }  # fmt: skip
    steps = [{"method": "prune", "ratio": 0.2}, {"method": "recover", "minutes": 40}]
    trained = made_up("ours-recovered", 0.2, 800, 20.25, 0.01, recovery=recovery)
    trained["made_from"] = {**trained["made_from"], "steps": steps}
    assert not pruning_recovery_page.section(FOUND)
    assert not pruning_recovery_page.section([trained]), "there is nothing to hold it against"
    title, said, rows = pruning_recovery_page.section([*FOUND, trained])
    assert title == "### Trained afterwards\n"
    for words in (
        "`{method: recover, minutes: 40}`",
        "20 minutes on some",
        "1.00 as pruned, 0.25 trained (0.25 of it)",
    ):
        assert words in said
    assert [row.strip("| ").split(" | ") for row in rows.strip().splitlines()[2:]] == [
        ["0", "0", "0.0400"], ["10", "10", "0.0200"], ["20", "20", "0.0300"]
    ]  # fmt: skip
    assert "Trained afterwards" in pruning_page.render(FOUND, [], [], [*FOUND, trained])


def test_the_page_compares_ours_with_the_best_rival_that_removed_as_much() -> None:
    text = pruning_page.render(FOUND, [], [])
    nearest = "of the best rival that removed about as much (FLAP), 0.20 times its KL."
    plain = "of the best plain rival that removed about as much (Wanda-sp), 0.05 times its KL."
    assert f"- **hubplugin**: 0.25 times the excess {nearest}\n- **hubplugin**: 0.10 times the excess {plain}\n" in text
    assert "| **hubplugin** | yes | 800 | 20.0% | 0 | 0.00 | 21.000 | 1.000 | 0.0200 | 0.060 | 1.2 |" in text
    assert "| FLAP | 20% | standardise: heads | 24.500 | x |" in text
    order = [
        text.index(f"| {name} | ")
        for name in ("ShortGPT (whole layers), nothing fits", "**hubplugin**", "FLAP", "Wanda-sp")
    ]
    assert order == sorted(order)
    assert "to be run again" not in text


def test_what_was_trained_is_shown_and_compared_with_nothing() -> None:
    trained = made_up("ours-recovered", 0.2, 800, 20.1, 0.001, plain=True)
    text = pruning_page.render([*FOUND, trained], [], [])
    assert "| **hubplugin, then trained** | yes | 800 |" in text
    before, after = (re.findall(r"^- \*\*hubplugin.* times its KL\.$", each, re.M) for each in (
        pruning_page.render(FOUND, [], []), text
    ))  # fmt: skip
    assert before and after == before


def test_recovery_is_run_at_one_ratio_on_data_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pruning_ours.ratios("ours-recovered", [0.1, 0.3, 0.5]) == [0.3]
    assert pruning_ours.ratios("ours", [0.1, 0.3]) == [0.1, 0.3] and pruning_ours.ratios("int4", [0.1, 0.3]) == [0.1]
    made, written = replace(bench(tmp_path), more={"self": True, "samples": 3}), dict[str, Any]()

    def write(path: Path, base: Path, calibration: dict[str, Any], variants: dict[str, Any]) -> Path:
        written.update(variants)
        raise InterruptedError

    monkeypatch.setattr(pruning_ours, "write", write)
    asked = pruning_ours.steps("ours-recovered", 0.3)
    with pytest.raises(InterruptedError):
        pruning.ours(made, "ours-recovered", asked)
    prune, recover = written["ours-recovered"]
    assert (prune["ratio"], recover["data"]) == (0.3, {"self": True, "samples": 3})
    assert "data" not in asked[1], "a result is made from no path of this machine"


def test_the_page_says_which_rivals_kept_less_than_ours() -> None:
    free = made_up("ours-per-layer", 0.2, 780, 20.5, 0.01)
    rivals = [made_up("flap", 0.2, 790, 24.0, 0.1), made_up("wanda-sp", 0.2, 790, 24.0, 0.1, plain=True)]
    text = pruning_page.render([FOUND[0], free, *rivals], [], [])
    assert "Wanda-sp (kept less than hubplugin: to be run again)" in text and "| FLAP | no | 790" in text
    free["linear_parameters"] = 800
    text = pruning_page.render([FOUND[0], free, *rivals], [], [])
    assert "FLAP (kept less than hubplugin: to be run again)" in text
    counted = made_up("slicegpt-counted", 0.2, 700, 24.0, 0.1, setting={"count_rotations": True})
    text = pruning_page.render([free, {**counted, "added_parameters": 100}], [], [])
    assert "| SliceGPT, rotations counted | no | 800 | 20.0% | 100 |" in text


@pytest.mark.parametrize("own", [20.0, 19.5, 21.0])
@pytest.mark.parametrize("rival", [20.0, 19.5, 21.0])
def test_the_page_never_shows_a_number_that_is_none(own: float, rival: float) -> None:
    found = [made_up("ours", 0.1, 900, own, 0.0), made_up("flap", 0.1, 900, rival, 0.0)]
    text = pruning_page.render(found, [], [])
    assert not re.search(r"\bnan\b|\binf\b", text.lower())
    assert "No results yet" in pruning_page.render([], [], [])


def test_results_on_text_stand_in_one_table_the_best_at_the_largest_ratio_first() -> None:
    more = [made_up("ours", 0.5, 500, 24.5, 0.2), made_up("flap", 0.5, 502, 24.0, 0.19)]
    text = pruning_page.render(FOUND, [*FOUND, *more], []).split("## The same on text\n")[1].split("\n## ")[0]
    assert "| method | 20% | 50% |" in text
    ours, flap = "1.00, 0.0200 (20.0%) | 4.50, 0.2000 (50.0%)", "4.00, 0.1000 (19.0%) | 4.00, 0.1900 (49.8%)"
    assert text.index(f"| FLAP | {flap} |") < text.index(f"| **hubplugin** | {ours} |")
    assert "| ShortGPT (whole layers) | nothing fits | - |" in text and "Int4" not in text
    assert "The same on text" not in pruning_page.render(FOUND, [], [])
    assert "A real model" not in pruning_page.render(FOUND, [], [])
    first = pruning_page.render(FOUND, [], [], FOUND).split("\n## ")[1]
    assert first.startswith("A real model") and "smollm2-moved" in first


def test_plots_are_the_same_every_time_and_show_every_method(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        pruning_plots.write(FOUND, tmp_path / folder)
    for name in ("pruning-perplexity.svg", "pruning-bytes.svg"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second
        ElementTree.fromstring(first)
    text = (tmp_path / "one" / "pruning-perplexity.svg").read_text(encoding="utf-8")
    assert all(name in text for name in (">hubplugin<", ">FLAP<", ">Wanda-sp<")) and ">ShortGPT" not in text
    assert ">Int4<" in (tmp_path / "one" / "pruning-bytes.svg").read_text(encoding="utf-8")


def test_the_page_in_docs_is_what_the_results_say() -> None:
    found = pruning_page.results(pruning_page.RESULTS)
    rest = (pruning_page.TEXT, pruning_page.SPEED, pruning_page.REAL)
    expected = pruning_page.render(found, *map(pruning_page.results, rest))
    assert pruning_page.PAGE.read_text(encoding="utf-8") == expected, "run `python bench/pruning_page.py`"
    assert {each["method"] for each in found} <= set(pruning_page.NAMES)
    assert {*RIVALS, *pruning.METHODS} <= set(pruning_page.NAMES)


def test_results_name_no_path() -> None:
    for folder in (pruning_page.RESULTS, pruning_page.TEXT, pruning_page.SPEED):
        for path in folder.glob("*.json"):
            assert not re.search(r'"(/|\w:\\\\)', path.read_text(encoding="utf-8")), path


def test_the_speed_section_compares_within_rounds_as_machines_are_not_always_equally_fast() -> None:
    seconds = {"dense": (1.0, 1.5, 3.0), "pruned, 50%": (0.5, 0.75, 1.2)}  # by round
    runs = [
        {"variant": variant, "round": number, "concurrency": 8, "ttft": took * 0.2, "tpot": took * 0.02,
         "tokens_per_second": 100 / took, "others_share": 0.01}
        for variant, all_of_them in seconds.items()
        for number, took in enumerate(all_of_them)
    ]  # fmt: skip
    result = {
        "model": "350m", "vllm": "0.32.0", "machine": {"processor": "some", "cores": 2},
        "protocol": {"prompt": 128, "output": 64}, "variants": {"dense": 1000, "pruned, 50%": 500}, "runs": runs,
    }  # fmt: skip
    text, ratio = "\n".join(pruning_speed_page.section([result])), "2.00 (2.00-2.50)"
    assert "| 8 | dense | 1,000 | 300.0 | 1 | 30.00 | 1 | 66.7 | 1 |" in text
    assert f"| 8 | pruned, 50% | 500 | 150.0 | {ratio} | 15.00 | {ratio} | 133.3 | {ratio} |" in text
    result["runs"] = [run for run in runs if run["round"] == 0]
    assert "| 8 | pruned, 50% | 500 | 100.0 | 2.00 | 10.00 | 2.00 | 200.0 | 2.00 |" in "\n".join(
        pruning_speed_page.section([result])
    )
    assert "Not measured yet" in pruning_speed_page.section([])[0]
