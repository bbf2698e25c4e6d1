"""The whole arrow with a pico model: pull from the embedded Hub, compress, measure, gate, card, publish, read back."""

import os
import subprocess
import sys
from pathlib import Path

import pico
import pytest
from huggingface_hub import HfApi, ModelCard

from hubplugin import pipeline, report
from hubplugin.checkpoint.model_folder import PLOTS
from hubplugin.compress import export
from hubplugin.errors import CompressError, GateError, HubPluginError, PlanError
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots as hub_client
from hubplugin.hub.publishing import publish
from hubplugin.manifest import schema
from hubplugin.manifest.reading import loading
from hubplugin.plan import planner
from serve import cpu_features, vllm_settings

MANIFEST = """\
# a pico model in two variants
model: local/pico
calibrate: {self: true, samples: 4, tokens: 64, seed: 0}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
  Pruned-Int4:
    - {method: prune, ffn: 0.25}
    - {method: gptq, bits: 4, group_size: 32}
evaluate: {perplexity: {self: true, samples: 4, tokens: 64, seed: 1}, kl: true}
gate: {perplexity_ratio: 3, top1_agreement: 0}
publish: {repo: "local/{model}-{variant}", private: true, collection: "pico, compressed"}
"""


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


def document(tmp_path: Path, text: str = MANIFEST) -> schema.Document:
    path = tmp_path / "pico.yaml"
    path.write_text(text, encoding="utf-8")
    return loading.load(path)


def run(asked: schema.Document, out: Path) -> list[report.Report]:
    peek = hub_client.peek(asked.manifest.model, asked.folder)
    planned = planner.make(asked, peek.config, peek.tensors, revision=peek.sha)
    return pipeline.run(asked, planned, out, dequantized)


def card_of(out: Path, made: report.Report) -> str:
    return (out / made.variant / "README.md").read_text(encoding="utf-8")


def test_the_whole_arrow_from_hub_to_hub(hub: HfApi, tmp_path: Path) -> None:
    asked, out = document(tmp_path), tmp_path / "out"
    reports = run(asked, out)
    assert [made.variant for made in reports] == ["Int4", "Pruned-Int4"]
    assert sorted(path.name for path in out.iterdir()) == ["Int4", "Pruned-Int4"], "nothing half-made stays behind"
    for made in reports:
        assert made.passed and made.evaluation is not None
        assert made.base.revision == hub.model_info("local/pico").sha
        assert made.disk_ratio > 1 and made.sizes.linear_bits_per_weight < 8
        assert report.read(out / made.variant) == made
    assert reports[1].widths == {"intermediate_size": (128, 96)}
    for made, other in (reports, reports[::-1]):
        (sibling,) = made.siblings
        assert (sibling.variant, sibling.repo) == (other.variant, other.repo) and other.repo in card_of(out, made)
        assert sibling.safetensors_bytes == other.sizes.safetensors_bytes and sibling.perplexity_ratio

    first = publish.publish(asked, out)
    assert all(pushed.changed for pushed in first)
    info = hub.model_info("local/pico-Pruned-Int4")
    assert info.private and info.card_data is not None and info.card_data.base_model == "local/pico"
    files = {sibling.rfilename for sibling in info.siblings or []}
    assert {"README.md", "report.json", "manifest.yaml", "config.json", "quantize_config.json", "LICENSE"} <= files
    assert set(PLOTS) <= files
    assert len(hub.list_repo_commits("local/pico-Int4")) == 2, "creation, and one commit for everything"
    downloaded = hub.snapshot_download("local/pico-Int4", cache_dir=tmp_path / "cache")
    for path in (out / "Int4").iterdir():
        assert (Path(downloaded) / path.name).read_bytes() == path.read_bytes(), path.name
    card = ModelCard((Path(downloaded) / "README.md").read_text(encoding="utf-8"))
    assert card.data.base_model_relation == "quantized" and card.data.license == "apache-2.0"
    collection = next(iter(hub.list_collections(owner="local")))
    assert {item.item_id for item in hub.get_collection(collection.slug).items} == {
        "local/pico-Int4",
        "local/pico-Pruned-Int4",
    }

    again = publish.publish(asked, out)
    assert not any(pushed.changed for pushed in again)
    assert len(hub.list_repo_commits("local/pico-Int4")) == 2


def test_a_finished_variant_is_kept_and_a_damaged_one_is_made_again(hub: HfApi, tmp_path: Path) -> None:
    asked, out = document(tmp_path), tmp_path / "out"
    run(asked, out)
    marks = {name: (out / name / "report.json").stat().st_mtime_ns for name in ("Int4", "Pruned-Int4")}
    (out / "Int4" / "config.json").write_text("{}")
    run(asked, out)
    assert (out / "Int4" / "report.json").stat().st_mtime_ns != marks["Int4"]
    assert (out / "Pruned-Int4" / "report.json").stat().st_mtime_ns == marks["Pruned-Int4"]
    assert "architectures" in (out / "Int4" / "config.json").read_text()


def test_a_failed_gate_names_the_line_and_publishes_nothing(hub: HfApi, tmp_path: Path) -> None:
    asked, out = document(tmp_path, MANIFEST.replace("perplexity_ratio: 3", "mean_kl: 0.0000001")), tmp_path / "out"
    with pytest.raises(GateError, match=r"Int4: quality \(mean KL"):
        run(asked, out)
    assert not report.read(out / "Int4").passed
    with pytest.raises(GateError, match="quality"):
        publish.publish(asked, out)
    assert not hub.repo_exists("local/pico-Int4")


def test_files_changed_after_measuring_are_not_published(hub: HfApi, tmp_path: Path) -> None:
    asked, out = document(tmp_path), tmp_path / "out"
    run(asked, out)
    config = out / "Pruned-Int4" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(GateError, match="is not the file that was measured"):
        publish.publish(asked, out)
    assert not hub.repo_exists("local/pico-Int4")


def test_an_edited_manifest_is_not_published_with_old_variants(hub: HfApi, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(document(tmp_path), out)
    with pytest.raises(GateError, match="another version of the manifest"):
        publish.publish(document(tmp_path, MANIFEST + "# edited\n"), out)


def test_publishing_without_a_target_or_without_variants_says_so(hub: HfApi, tmp_path: Path) -> None:
    without = "\n".join(line for line in MANIFEST.splitlines() if not line.startswith("publish"))
    with pytest.raises(PlanError, match="names no repo"):
        publish.publish(document(tmp_path, without), tmp_path / "out")
    with pytest.raises(HubPluginError, match="cannot be read"):
        publish.publish(document(tmp_path), tmp_path / "out")


@pytest.mark.serve
def test_the_command_line_makes_variants_that_vllm_itself_generates_from(hub: HfApi, tmp_path: Path) -> None:
    document(tmp_path)
    words = [sys.executable, "-m", "hubplugin", "run", "pico.yaml", "--out", "made"]
    done = subprocess.run(words, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["made/Int4", "made/Pruned-Int4"]
    for name in ("Int4", "Pruned-Int4"):
        line = next(line for line in report.read(tmp_path / "made" / name).gate if line.name == "generation")
        here = vllm_settings.find_device() == "cuda" or cpu_features.has(cpu_features.AVX512)
        # where no kernel of vLLM's runs on this CPU, dense weights are made of the codes and the report says so
        assert line.passed and line.detail.startswith("vLLM on c"), line.detail
        assert here != ("codes made dense weights" in line.detail), line.detail


def test_the_pico_model_is_large_enough_to_be_told_apart(pico_folder: Path) -> None:
    assert sum(1 for _ in pico.headers(pico_folder)) == 20


def interrupt_after(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run end as by ctrl-C once so many blocks are finished."""
    add, seen = export.Folder.add, []

    def counted(self: export.Folder, block: object) -> None:
        add(self, block)  # type: ignore[arg-type]
        seen.append(block)
        if len(seen) == blocks:
            raise KeyboardInterrupt

    monkeypatch.setattr(export.Folder, "add", counted)


def test_an_interrupted_run_goes_on_after_its_last_block(
    hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = document(tmp_path)
    whole = run(asked, tmp_path / "whole")
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            run(asked, tmp_path / "out")
    capsys.readouterr()
    again = run(asked, tmp_path / "out")
    assert "goes on after block 01/2" in capsys.readouterr().err
    for made, other in zip(whole, again, strict=True):
        weights = {name: digest for name, digest in made.files.items() if name.endswith((".safetensors", ".json"))}
        assert weights and weights.items() <= other.files.items()
        assert [result.loss for result in made.linears] == [result.loss for result in other.linears]
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("bits: 4, group_size: 32", "bits: 8, group_size: 32", "steps"),
        ("tokens: 64, seed: 0", "tokens: 64, seed: 7", "calibration tokens"),
    ],
)
def test_a_changed_manifest_does_not_resume(
    hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, named: str
) -> None:
    with monkeypatch.context() as patched:
        interrupt_after(1, patched)
        with pytest.raises(KeyboardInterrupt):
            run(document(tmp_path), tmp_path / "out")
    with pytest.raises(CompressError) as refusal:
        run(document(tmp_path, MANIFEST.replace(before, after)), tmp_path / "out")
    assert named in refusal.value.what and "remove that folder" in refusal.value.fix
    assert len(list((tmp_path / "out").rglob("block-*.safetensors"))) == 1, "nothing is lost"
