"""A variant of a variant: each repo names its immediate parent as base_model, and its report and card the root."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from hubplugin import cli, report
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.hub.publishing import publish
from hubplugin.manifest.reading import loading

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, sequence_length: 32}}
variants:
  {name}: [{step}]
publish: {{repo: "local/{{model}}-{{variant}}"{more}}}
"""
PRUNE, QUANTIZE = "{method: prune, ffn: 0.25}", "{method: gptq, bits: 4, group_size: 32}"


def write(place: Path, model: str, name: str, step: str, more: str = "") -> Path:
    path = place / f"{name}.yaml"
    path.write_text(MANIFEST.format(model=model, name=name, step=step, more=more))
    return path


def run_and_publish(manifest: Path, out: Path) -> report.Report:
    for verb in ("run", "publish"):
        with pytest.raises(SystemExit) as done:
            cli.main([verb, str(manifest), "--out", str(out)])
        assert done.value.code == 0
    return report.read(out / manifest.stem)


def card(hub: HfApi, repo: str, revision: str = "main") -> ModelCard:
    return ModelCard(Path(hub.hf_hub_download(repo, "README.md", revision=revision)).read_text())


def test_prune_then_quantize_is_a_true_tree(hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    monkeypatch.setattr("hubplugin.evaluation.engine_choice.generate", generate)
    pruned = run_and_publish(write(tmp_path, "local/pico", "Pruned", PRUNE), tmp_path / "out")
    assert pruned.base.root is None
    first = card(hub, "local/pico-Pruned")
    assert (first.data.base_model, first.data.to_dict().get("base_model_relation")) == ("local/pico", None)

    branch = ', branch: "{variant}"'
    made = run_and_publish(write(tmp_path, "local/pico-Pruned", "Int4", QUANTIZE, branch), tmp_path / "out")
    assert (made.base.repo, made.base.root) == ("local/pico-Pruned", "local/pico")
    assert made.base.revision == hub.model_info("local/pico-Pruned").sha
    second = card(hub, "local/pico-Pruned-Int4", "Int4")
    assert second.data.base_model == "local/pico-Pruned"
    assert second.data.to_dict()["base_model_relation"] == "quantized"
    assert "Its base local/pico-Pruned is itself made from local/pico." in second.content
    assert "hubplugin serve local/pico-Pruned-Int4@Int4\n" in second.content

    # whose root is the root of its base, and not that base's base
    assert snapshots.peek("local/pico-Pruned-Int4@Int4", tmp_path).root == "local/pico"
    folder = loading.load(write(tmp_path, str(tmp_path / "out" / "Pruned"), "Local", QUANTIZE))
    (note,) = publish.preflight(folder, snapshots.peek(folder.manifest.model, tmp_path))
    assert "write model: local/pico-Pruned" in note


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"base": 1}',
        '{"base": {"repo": "x y/z", "on_hub": true}, "repo": 7}',
        '{"base": {"repo": "a/b"}}',
    ],
)
def test_a_report_of_somebody_else_says_nothing(tmp_path: Path, pico_folder: Path, text: str) -> None:
    for file in pico_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "report.json").write_text(text)
    found = snapshots.peek(str(tmp_path), tmp_path)
    assert (found.root, found.published) == (None, None)
