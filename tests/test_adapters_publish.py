"""An adapter and the variant it is for on the Hub: each a repo, found and checked again by its name."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from peft import PeftConfig

from hubplugin import cli, verification
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import resolve
from hubplugin.verbs import serving
from hubplugin.verification import Outcome

MANIFEST = """\
model: local/pico
calibrate: {self: true, samples: 16, sequence_length: 48}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32, format: compressed-tensors}
  EoRA:
    - {method: eora, of: Int4, rank: 8}
evaluate: {perplexity: {self: true, samples: 4, sequence_length: 48, seed: 1}}
publish: {repo: "local/{model}-{variant}"}
"""


def test_an_adapter_and_its_variant_are_two_repos_that_know_each_other(
    hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(made: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
        return generate_dequantized(made, prompts, tokens)

    monkeypatch.setattr("hubplugin.evaluation.engine_choice.generate", generate)
    manifest = tmp_path / "m.yaml"
    manifest.write_text(MANIFEST)
    for verb in ("run", "publish"):
        with pytest.raises(SystemExit) as done:
            cli.main([verb, str(manifest), "--out", str(tmp_path / "out")])
        assert done.value.code == 0
    card = ModelCard(Path(hub.hf_hub_download("local/pico-EoRA", "README.md")).read_text())
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("local/pico-Int4", "adapter")
    assert card.data.library_name == "peft"
    assert (
        PeftConfig.from_pretrained(hub.snapshot_download("local/pico-EoRA")).base_model_name_or_path
        == "local/pico-Int4"
    )
    assert {one.id for one in hub.list_models(filter="base_model:adapter:local/pico-Int4")} == {"local/pico-EoRA"}

    (served,) = serving._adapted(resolve.find("local/pico-Int4"), ["local/pico-EoRA"])
    assert [one.name for one in served.adapters] == ["local/pico-EoRA"]
    found = verification.verify("local/pico-EoRA")
    assert {line.check for line in found.lines} >= {"adapter", "weights that it is for"}
    assert not [line for line in found.lines if line.outcome is Outcome.FAILED]
