"""The comparison of families: bytes are checked before anything runs, one file holds one run; what the page says."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from copy import deepcopy
from pathlib import Path
from typing import Any

import pico
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import families
import families_page
import families_plots
import families_result

from hubplugin.evaluation import engine_choice
from hubplugin.evaluation.speed.rounds import Answered, Subject, Turn
from hubplugin.manifest.reading import loading
from hubplugin.manifest.speed import Speed
from hubplugin.plan.vllm_support import DENSE

TEXT = {"self": True, "samples": 4, "sequence_length": 48}
MANIFEST = {
    "calibrate": TEXT,
    "variants": {
        "GPTQ-2x": [{"method": "gptq", "bits": 8, "group_size": -1, "format": "compressed-tensors"}],
        "Wanda-1x": [{"method": "wanda", "sparsity": 0.5}],
    },
    "evaluate": {"perplexity": {**TEXT, "seed": 1}, "speed": True},
}


def asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str, timed: bool = False, **changes: Any
) -> dict[str, Any]:
    """The script on a pico model; what its result file holds then, if anything."""
    model = folder / "pico"
    if not model.exists():
        pico.write(model)
    manifest, out = folder / "m.yaml", folder / "result.json"
    manifest.write_text(json.dumps({"model": str(model), **MANIFEST, **changes}), encoding="utf-8")  # JSON is YAML
    places = [
        "--manifest",
        str(manifest),
        "--work",
        str(folder / "work"),
        "--out",
        str(out),
        *([] if timed else ["--no-speed"]),
    ]
    monkeypatch.setattr(sys, "argv", ["families.py", *places, "--tolerance", "0.05", *words])
    families.main()
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    return found


def test_variants_go_through_the_pipeline_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked(tmp_path, monkeypatch, "--only", "GPTQ-2x")
    assert list(first["runs"]) == ["GPTQ-2x"] and list(first["variants"]) == ["GPTQ-2x", "Wanda-1x"]
    made = first["runs"]["GPTQ-2x"]
    # q, k, v, o of 64, 32, 32, 64 rows and gate, up, down of 128, 128, 64: a scale of 16 bits for each row, an int32
    # pair of its shape for each linear
    rows, weights = 64 + 32 + 32 + 64 + 128 + 128 + 64, (64 + 32 + 32 + 64 + 128 + 128) * 64 + 64 * 128
    least = 16 * weights / (8 * weights + 16 * rows)
    assert 0.97 * least < made["linears_ratio"] <= least
    assert made["quality"]["mean_kl"] > 0 and made["loads"]["cpu"].startswith("no CPU kernel for 8-bit weights")
    assert made["seconds"]["making"] == pytest.approx(made["seconds"]["compress and export"], abs=0.06)

    (weights_file,) = (tmp_path / "work" / "pico" / "GPTQ-2x").glob("*.safetensors")
    before = weights_file.stat().st_mtime_ns
    second = asked(tmp_path, monkeypatch)
    assert second["runs"]["GPTQ-2x"] == made and weights_file.stat().st_mtime_ns == before
    masked = second["runs"]["Wanda-1x"]
    assert masked["linears_ratio"] == 1.0 and masked["sparsity"] == pytest.approx(0.5, abs=0.01)

    page = families_page.render([second])
    assert "| Wanda-1x | 1.00x | 1.00x |" in page and "Not run" not in page


def test_a_finished_variant_is_timed_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = asked(tmp_path, monkeypatch, "--only", "Wanda-1x")["runs"]["Wanda-1x"]
    (weights_file,) = (tmp_path / "work" / "pico" / "Wanda-1x").glob("*.safetensors")
    before = weights_file.stat().st_mtime_ns

    def take(subject: Subject, settings: Speed, number: int) -> Turn:
        answered = (Answered(each, 4, 0.1, 0.01, 10.0 * each) for each in settings.concurrency)
        return Turn("engine 1", None, 1.0, 100, tuple(answered), 0.25)

    monkeypatch.setattr(engine_choice, "take_turn", take)
    second = asked(tmp_path, monkeypatch, "--only", "Wanda-1x", timed=True)["runs"]["Wanda-1x"]
    assert weights_file.stat().st_mtime_ns == before
    speed = second.pop("speed")
    assert [load["tokens_per_second"] for load in speed["loads"]] == [10.0, 80.0, 320.0] and speed["others"] == 0.25
    assert {**first, "speed": None} == {**second, "speed": None}


def test_a_file_holds_what_was_made_from_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path, monkeypatch, "--only", "Wanda-1x")
    with pytest.raises(SystemExit, match="of another base, held_out"):
        asked(tmp_path, monkeypatch, "--only", "Wanda-1x", "--held-out-samples", "3")


def test_bytes_are_checked_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"GPTQ-3x": MANIFEST["variants"]["GPTQ-2x"]}
    with pytest.raises(SystemExit, match=r"ratio in the name: GPTQ-3x \(-3\d\.\d%\)"):
        asked(tmp_path, monkeypatch, variants=wrong)
    with pytest.raises(SystemExit, match="named FAMILY-RATIOx"):
        asked(tmp_path, monkeypatch, variants={"Int8": MANIFEST["variants"]["GPTQ-2x"]})
    with pytest.raises(SystemExit, match="has no variant Int8"):
        asked(tmp_path, monkeypatch, "--only", "Int8")
    assert not (tmp_path / "work").exists()


def test_the_manifest_is_one(tmp_path: Path) -> None:
    variants = loading.load(families.MANIFEST).manifest.variants
    ratios = [families_result.target(name) for name in variants]
    assert {1.0, 2.0, 3.2, 4.0, 6.0, 8.0} == set(ratios)
    for kind in map(families_result.family, variants):
        own = [families_result.target(name) for name in variants if families_result.family(name) == kind]
        assert own == sorted(own), f"{kind} is ended by its smaller ratios: they stand first"


def test_files_and_counts_of_the_command_line_take_the_place_of_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").touch()
    words = ["--calibration", str(tmp_path / "a.txt"), "--samples", "3", "--training-samples", "5", "--no-speed"]
    monkeypatch.setattr(sys, "argv", ["families.py", *words])
    written = families.written(yaml.safe_load(families.MANIFEST.read_text(encoding="utf-8")), families.parsed())
    text = {"files": [str(tmp_path / "a.txt")], "samples": 3, "sequence_length": 512}
    assert written["calibrate"] == text and "speed" not in written["evaluate"]
    assert written["evaluate"]["perplexity"]["split"] == "test"
    recovered = written["variants"]["Prune-Recover-2x"]
    assert recovered[0] == {"method": "prune", "ratio": 0.5}
    assert recovered[1] == {"method": "recover", "data": {**text, "samples": 5, "seed": 2}}
    own = families.written({**MANIFEST, "model": "m"}, families.parsed())["calibrate"]
    assert own == {"files": text["files"], "samples": 3, "sequence_length": 48}  # and no `self`
    # no file's name gets into the results
    assert families_result.said(recovered[1])["data"] == {"samples": 5, "sequence_length": 512, "seed": 2}


def run(ratio: float, perplexity: float, kl: float, *methods: str, **changes: Any) -> dict[str, Any]:
    quality = {"perplexity": perplexity, "mean_kl": kl, "mean_kl_stderr": 0.0, "top1_agreement": 0.5}
    return {
        "steps": [{"method": method} for method in methods],
        "linears_ratio": ratio,
        "bits_per_weight": 16 / ratio,
        "bytes": 20 + 80 / ratio,
        "quality": quality,
        "seconds": {"making": 12.3},
        "others": 0.0,
        "continued": False,
        "loads": {"cpu": "", "cuda tp=1": ""},
        "needs_plugin": False,
        "notes": [],
        **changes,
    }


def record(**runs: dict[str, Any]) -> dict[str, Any]:
    """Runs by name, with _ for - and p for the point."""
    named = {name.replace("_", "-").replace("p", "."): one for name, one in runs.items()}
    tokens = {"source": "files a.txt; joined", "sequences": 1, "tokens_per_sequence": 2}
    base = {"parameters": 50, "linear_parameters": 40, "bytes": 100, "perplexity": 10.0, "perplexity_stderr": 0.1}
    machine = {"processor": "CPU", "cores": 2, "memory_gb": 24}
    variants = {name: one["steps"] for name, one in named.items()}
    known = {"model": "M", "base": base, "calibration": tokens, "held_out": tokens, "machine": machine, "threads": 1}
    return {**known, "variants": variants, "runs": named}


def lines(found: dict[str, Any], start: str) -> list[str]:
    return [line for line in families_page.render([found]).splitlines() if line.startswith(start)]


NO_KERNEL = f"no CPU kernel for 3-bit weights; {DENSE}"


def test_a_ratio_has_its_table_with_the_least_kl_first() -> None:
    found = record(
        LowRank_4x=run(4.0, 2000.0, 5.0, "lowrank", needs_plugin=True),
        GPTQ_4x=run(3.9, 12.0, 0.2, "gptq", others=0.5, loads={"cpu": NO_KERNEL, "cuda tp=1": ""}),
        GPTQ_Tune_4x=run(4.2, 11.0, 0.1, "gptq", "tune", continued=True),
    )
    rows = lines(found, "| ")
    both, plugin, tuned = "CPU and GPU", "vLLM with hubplugin", "1.100 | 0.1000 ± 0.0000 | 50.0% | 12 (continued)"
    dense = "CPU as dense weights and GPU"
    assert [row for row in rows if "±" in row] == [
        f"| GPTQ-Tune-4x (+5% off) | 4.20x | 2.56x | 5.12x | 3.81 | {tuned} | vLLM, {both} |",
        f"| GPTQ-4x | 3.90x | 2.47x | 4.94x | 4.10 | 1.200 | 0.2000 ± 0.0000 | 50.0% | 12* | vLLM, {dense} |",
        f"| LowRank-4x | 4.00x | 2.50x | 5.00x | 4.00 | 200 | 5.0000 ± 0.0000 | 50.0% | 12 | {plugin}, {both} |",
    ]
    one, every = "GPTQ-4x: 0.2000, perplexity × 1.200", "GPTQ-Tune-4x: 0.1000, perplexity × 1.100"
    assert f"| 4x | {one} | {every} | 3 |" in rows
    assert lines(found, f"- GPTQ-4x: not on a CPU by stock vLLM: {NO_KERNEL}.")


def test_a_family_ends_where_its_perplexity_is_beyond_all_use() -> None:
    found = record(
        LowRank_2x=run(2.0, 2000.0, 5.0, "lowrank"),
        LowRank_3p2x=run(3.2, 0.0, 0.0, "lowrank"),
        Other_4x=run(4, 1, 0, "x"),
    )
    del found["runs"]["LowRank-3.2x"], found["runs"]["Other-4x"]
    assert families_result.why_not(found, "LowRank-3.2x", 100, timed=False).startswith("left out: LowRank-2x has more")
    assert not families_result.why_not(found, "LowRank-3.2x", 300, timed=False)
    assert not families_result.why_not(found, "Other-4x", 100, timed=False)
    (ended,) = lines(found, "- LowRank: LowRank-2x")
    assert ended.endswith("has 200 times the base's perplexity; LowRank-3.2x was not run for that.")


def test_a_finished_variant_is_timed_later() -> None:
    found = record(GPTQ_2x=run(2.0, 10.0, 0.1, "gptq"))
    assert families_result.why_not(found, "GPTQ-2x", 100, timed=False) == "in the result file already"
    assert not families_result.why_not(found, "GPTQ-2x", 100, timed=True)
    speed = {"loads": [{"concurrency": 8, "tokens_per_second": 99.6, "speedup": 1.5}], "others": 0.5}
    found["runs"]["GPTQ-2x"]["speed"] = speed
    assert families_result.why_not(found, "GPTQ-2x", 100, timed=True) == "in the result file already"
    assert "| 8: 100 (1.50)* |" in families_page.render([found])


def test_the_usual_table_is_answered_from_the_runs() -> None:
    found = record(
        Codebook_3p2x=run(3.2, 10.5, 0.1, "codebook"),
        Codebook_4x=run(4.0, 15.0, 0.3, "codebook"),
        Codebook_8x=run(8.0, 25.0, 0.9, "codebook"),
        Prune_2x=run(2.0, 30.0, 1.0, "prune"),
        Wanda_1x=run(1.0, 11.0, 0.1, "wanda"),
    )
    (shared,), (pruned,) = (lines(found, f"| {technique}") for technique in ("weight sharing", "structured pruning |"))
    within = "3.20x, file 2.22x (Codebook-3.2x, × 1.050) | 4.00x, file 2.50x (Codebook-4x, × 1.500)"
    assert shared == f"| weight sharing | 2x to 4x | 3.20x (6.4x of float32): perplexity × 1.050 | {within} |"
    assert pruned.endswith("2.00x (4.0x of float32): perplexity × 3.000 | none measured | none measured |")


def test_what_could_not_be_made_and_what_is_not_run_is_said() -> None:
    found = record(
        GPTQ_2x=run(2.0, 10.0, 0.1, "gptq"), Prune_2x={"steps": [], "failed": "too much"}, Mixed_4x={"steps": []}
    )
    del found["runs"]["Mixed-4x"]
    page = families_page.render([found])
    assert "- Prune-2x: too much" in page
    assert "1 of the manifest's 3 variants are measured. Not in the results yet: Mixed-4x." in page


def test_a_variant_that_the_manifest_describes_otherwise_is_run_again(tmp_path: Path) -> None:
    old = record(GPTQ_2x=run(2.0, 10.0, 0.1, "gptq"), Prune_2x=run(2.0, 10.0, 0.1, "prune"))
    file = tmp_path / "r.json"
    file.write_text(json.dumps(old), encoding="utf-8")
    head = {key: value for key, value in old.items() if key not in ("variants", "runs")}
    now = {"GPTQ-2x": [{"method": "gptq"}], "Prune-2x": [{"method": "prune", "ratio": 0.5}]}
    assert list(families_result.begin(file, head, now)["runs"]) == ["GPTQ-2x"]


def test_plots_are_the_same_for_the_same_results_on_an_opaque_ground(tmp_path: Path) -> None:
    found = record(
        GPTQ_2x=run(2.0, 10.0, 0.1, "gptq"), GPTQ_4x=run(4.0, 12.0, 0.3, "gptq"), W_1x=run(1, 11, 0.1, "wanda")
    )
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        families_plots.write(deepcopy(found), tmp_path / name)
        drawn.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert drawn[0] == drawn[1] and set(drawn[0]) == set(families_page.plot_names(found))
    for svg in drawn[0].values():
        texts = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        assert "GPTQ" in texts and "W" not in texts
        assert b"#f6f8fa" in svg


def test_the_page_in_docs_is_what_the_results_say(tmp_path: Path) -> None:
    records = families_page.results()
    assert families_page.PAGE.read_text(encoding="utf-8") == families_page.render(records)
    for each in records:
        families_plots.write(each, tmp_path)
        for name in families_page.plot_names(each):
            assert (tmp_path / name).read_bytes() == (families_page.PAGE.parent / name).read_bytes()
