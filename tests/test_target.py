from pathlib import Path

import card_helpers
import pytest
from huggingface_hub import HfApi

from hubplugin import report
from hubplugin.errors import CheckpointError, HubPluginError, ManifestError, ServeError
from hubplugin.hub import resolve

MANIFEST = """\
model: ./base
calibrate: {self: true}
variants:
  Int4:
    - {method: gptq}
"""


@pytest.fixture
def manifest(tmp_path: Path, pico_folder: Path) -> Path:
    (tmp_path / "base").symlink_to(pico_folder)
    (tmp_path / "m.yaml").write_text(MANIFEST, encoding="utf-8")
    return tmp_path / "m.yaml"


def test_a_folder_is_served_under_its_own_name(pico_folder: Path) -> None:
    assert resolve.find(str(pico_folder)) == [resolve.Found(pico_folder, "pico-llama")]


def test_a_manifest_means_its_base_and_all_variants_that_are_made(
    manifest: Path, pico_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = manifest.parent / "out"
    assert resolve.find(str(manifest), (), out) == [resolve.Found(pico_folder, "./base")]
    assert "Int4 | not made yet" in capsys.readouterr().err
    (out / "Int4").mkdir(parents=True)
    made = card_helpers.report(variant="Int4", model_name="base-Int4")
    report.write(made, out / "Int4")
    base, int4 = resolve.find(str(manifest), (), out)
    assert (base.folder, int4.folder, int4.name, int4.variant) == (pico_folder, out / "Int4", "base-Int4", "Int4")
    assert [int4] == resolve.find(str(manifest), ("Int4",), out)
    assert made.evaluation is not None
    assert int4.facts["parent"] == made.base.repo and int4.facts["disk_ratio"] == made.disk_ratio
    assert int4.facts["mean_kl"] == made.evaluation.variant.mean_kl and "tokens_per_second" not in int4.facts


def test_a_repo_is_pulled_from_the_hub_first(hub: HfApi, pico_folder: Path) -> None:
    (found,) = resolve.find("local/pico@main")
    folder = found.folder
    assert found.name == "local/pico"
    assert (folder / "model.safetensors").read_bytes() == (pico_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("variant", "kind", "said"),
    [("Int3", ServeError, "no such variant"), ("Int4", CheckpointError, "cannot be read")],
)
def test_a_variant_that_is_not_there_says_what_to_do(
    manifest: Path, variant: str, kind: type[HubPluginError], said: str
) -> None:
    with pytest.raises(kind, match=said) as caught:
        resolve.find(str(manifest), (variant,), manifest.parent / "out")
    assert "Int4" in caught.value.fix or "hubplugin run" in caught.value.fix


def test_a_variant_of_something_that_is_no_manifest_is_refused(pico_folder: Path) -> None:
    with pytest.raises(ServeError, match="is no manifest"):
        resolve.find(str(pico_folder), ("Int4",))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"config\.json"):
        resolve.find(str(tmp_path))


def test_a_manifest_says_how_its_models_are_served(manifest: Path) -> None:
    options = "{max-num-seqs: 8, enable_lora: true, enable-prefix-caching: false, x: {a: 1}}"
    manifest.write_text(f"{MANIFEST}serve: {{max_model_len: 512, vllm: {options}}}\n", encoding="utf-8")
    (found,) = resolve.find(str(manifest))
    assert found.serving.max_model_len == 512
    assert found.serving.options == (
        "--max-num-seqs=8",
        "--enable-lora",
        "--no-enable-prefix-caching",
        '--x={"a": 1}',
    )


@pytest.mark.parametrize(
    ("said", "place"),
    [("{vllm: {--x: 1}}", "serve.vllm.--x"), ("{vllm: {x: }}", "serve.vllm.x"), ("{y: 1}", "serve.y")],
)
def test_what_is_no_option_is_refused_where_it_stands(said: str, place: str, manifest: Path) -> None:
    manifest.write_text(f"{MANIFEST}serve: {said}\n", encoding="utf-8")
    with pytest.raises(ManifestError) as caught:
        resolve.find(str(manifest))
    assert place in caught.value.where
