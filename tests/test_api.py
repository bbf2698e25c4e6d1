"""The Python API: typed objects for what the verbs print, on a pico model and the embedded Hub."""

import subprocess
import sys
from enum import StrEnum
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi

import hubplugin
from hubplugin import api, errors
from hubplugin.manifest.reading import loading

ROOT = Path(__file__).parents[1]
# 8 bits are served on a GPU only: the gate generates with transformers, which takes a second
MANIFEST: dict[str, Any] = {
    "model": "local/pico",
    "calibrate": {"self": True, "samples": 4, "sequence_length": 64},
    "variants": {"Int8": [{"method": "gptq", "bits": 8, "group_size": 32}]},
    "evaluate": {"perplexity": {"self": True, "samples": 4, "sequence_length": 64, "seed": 1}},
    "publish": {"repo": "local/{model}-{variant}"},
}


def test_it_plans_runs_publishes_and_verifies(hub: HfApi, tmp_path: Path) -> None:
    out = tmp_path / "out"
    planned = hubplugin.plan(MANIFEST)
    assert isinstance(planned, hubplugin.Plan) and [each.name for each in planned.variants] == ["Int8"]

    (made,) = hubplugin.run(MANIFEST, out=out, only="Int8")
    assert isinstance(made, hubplugin.Report) and made.passed
    assert made.base.revision == hub.model_info("local/pico").sha
    assert hubplugin.load_report(out / "Int8") == made
    assert loading.load(out / "Int8" / "manifest.yaml").manifest == loading.from_mapping(MANIFEST).manifest

    listed = hubplugin.publish(MANIFEST, out=str(out), dry_run=True)
    assert {change.state for change in listed} == {"new"} and not hub.repo_exists("local/pico-Int8")
    (pushed,) = hubplugin.publish(MANIFEST, out=out)
    assert isinstance(pushed, hubplugin.Pushed) and pushed.changed
    assert pushed.commit == hub.model_info("local/pico-Int8").sha
    assert not hubplugin.publish(MANIFEST, out=out)[0].changed

    found = hubplugin.verify("local/pico-Int8")
    assert isinstance(found, hubplugin.Verification) and found.holds, found.text()
    assert hubplugin.verify(out / "Int8", base="local/pico").holds


def test_a_file_is_taken_by_its_path_and_says_the_same(pico_folder: Path, tmp_path: Path) -> None:
    mapping = {**MANIFEST, "model": str(pico_folder), "publish": None}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping, sort_keys=False))
    from_file, from_text = hubplugin.plan(tmp_path / "m.yaml"), hubplugin.plan(str(tmp_path / "m.yaml"))
    assert from_file == from_text
    assert [each.bytes for each in hubplugin.plan(mapping).variants] == [each.bytes for each in from_file.variants]


class Method(StrEnum):
    GPTQ = "gptq"


def test_a_mapping_may_hold_paths_tuples_other_mappings_and_one_step_twice() -> None:
    step = MappingProxyType({"method": Method.GPTQ, "bits": 4})
    text = {"files": (PurePath("a") / "yes.txt", "1e3"), "samples": 4}
    given = MappingProxyType({"model": "o/m", "calibrate": text, "variants": {f"V{n}": [step] for n in range(12)}})
    document = loading.from_mapping(given)
    assert document.manifest.calibrate.files == ("a/yes.txt", "1e3")
    assert list(document.manifest.variants) == [f"V{n}" for n in range(12)]
    assert yaml.safe_load(document.text)["variants"]["V11"] == [{"method": "gptq", "bits": 4}]
    assert loading.from_mapping(given).sha256 == document.sha256


def test_relative_paths_of_a_mapping_start_from_the_working_directory(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").symlink_to(pico_folder)
    monkeypatch.chdir(tmp_path)
    planned = hubplugin.plan({**MANIFEST, "model": "./base", "publish": None})
    assert planned.model_type == "llama"


CIRCLE: dict[str, Any] = {"model": "o/m"}
CIRCLE["gate"] = CIRCLE


@pytest.mark.parametrize(
    ("manifest", "error", "where", "what"),
    [
        ({}, errors.ManifestError, "manifest (mapping): model", "is missing"),
        ({**MANIFEST, "modell": 1}, errors.ManifestError, "manifest (mapping): modell", ""),
        ({**MANIFEST, "model": object()}, errors.ManifestError, "manifest (mapping)", "type object"),
        ({**MANIFEST, "model": "\ud800"}, errors.ManifestError, "manifest (mapping)", ""),
        ({**MANIFEST, ("a",): 1}, errors.ManifestError, "manifest (mapping)", "key must be a word"),
        (CIRCLE, errors.ManifestError, "manifest (mapping)", "holds itself"),
        ("nowhere.yaml", errors.ManifestError, "nowhere.yaml", "cannot be read"),
        ({**MANIFEST, "model": "./nowhere"}, errors.HubError, "nowhere", ""),
    ],
    ids=["empty", "unknown key", "object", "surrogate", "tuple as key", "circle", "no file", "no base"],
)
def test_what_is_wrong_is_an_error_in_three_parts(manifest: Any, error: type, where: str, what: str) -> None:
    with pytest.raises(error) as caught:
        hubplugin.plan(manifest)
    assert isinstance(caught.value, hubplugin.HubPluginError)
    assert where in caught.value.where and what in caught.value.what and caught.value.fix, caught.value


def test_a_name_that_no_variant_has_and_a_folder_without_a_report_are_errors_too(tmp_path: Path) -> None:
    with pytest.raises(errors.ManifestError, match="did you mean `Int8`"):
        hubplugin.run(MANIFEST, out=tmp_path, only=["Int9"])
    with pytest.raises(errors.CheckpointError):
        hubplugin.load_report(tmp_path)
    with pytest.raises(errors.PlanError, match="names no repo"):
        hubplugin.publish({**MANIFEST, "publish": None}, out=tmp_path)
    with pytest.raises(errors.CheckpointError):
        hubplugin.publish(MANIFEST, out=tmp_path)


def test_import_loads_nothing_and_plan_can_be_called_whatever_was_imported_before() -> None:
    """`plan` is a package's name too, which Python binds when a module of that package is imported."""
    code = """
import sys, hubplugin
loaded = {name for name in sys.modules if name.split(".")[0] in ("hubplugin", "torch", "pydantic", "transformers")}
assert loaded == {"hubplugin", "hubplugin.errors"}, loaded
assert set(hubplugin.__all__) <= set(dir(hubplugin)) and not hasattr(hubplugin, "fly")
from hubplugin import plan
import hubplugin.plan.draft
for function in (plan, hubplugin.plan, sys.modules["hubplugin.plan"]):
    try:
        function({})
    except hubplugin.HubPluginError as error:
        print(error.where)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == "manifest (mapping): model\n" * 3, done.stderr


# what makes the page's example small, and free of a network and of vLLM
SMALLER = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "local/pico",
    "SmolLM2-135M-Instruct": "pico",
    "your-name": "local",
    '"samples": 128, "sequence_length": 1024': '"samples": 4, "sequence_length": 64',
    '"samples": 64, "sequence_length": 1024': '"samples": 4, "sequence_length": 64',
    '"bits": 4, "group_size": 64': '"bits": 8, "group_size": 32',
}


def test_the_example_of_the_page_runs(
    hub: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (ROOT / "docs" / "python.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    for large, small in SMALLER.items():
        assert large in code, large
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "new 0 " not in printed and "/local/pico-GPTQ-Int4 " in printed and "\nTrue\npassed" in printed, printed
    assert (tmp_path / "out" / "smollm2" / "GPTQ-Int4" / "report.json").is_file()


def test_without_out_the_variants_of_a_mapping_go_to_a_folder_of_the_models_name(tmp_path: Path) -> None:
    assert api.folder(MANIFEST) == Path("out/pico")
    assert api.folder({**MANIFEST, "model": f"{tmp_path}/base/"}) == Path("out/base")
    assert api.folder({**MANIFEST, "model": "local/pico@v1"}) == Path("out/pico")
    assert api.folder("manifests/demo.yaml") == Path("out/demo") and api.folder(MANIFEST, "here") == Path("here")


def test_all_names_are_there() -> None:
    assert all(getattr(hubplugin, name) for name in hubplugin.__all__)


@pytest.mark.parametrize("verb", [hubplugin.plan, hubplugin.run])
def test_text_that_is_not_there_is_refused_before_any_work(verb: Any, pico_folder: Path, tmp_path: Path) -> None:
    steps = [{"method": "gptq", "bits": 4, "group_size": 32}, {"method": "tune", "data": {"files": ["gone.txt"]}}]
    mapping = {**MANIFEST, "model": str(pico_folder), "publish": None, "variants": {"V": steps}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(mapping, sort_keys=False))
    with pytest.raises(errors.PlanError) as caught:
        verb(tmp_path / "m.yaml")
    assert caught.value.where.endswith("m.yaml: variants.V[1].data.files")
    assert "gone.txt" in caught.value.what and not (tmp_path / "out").exists()
