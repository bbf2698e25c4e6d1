"""`engine: gptqmodel`: what it refuses, what it hands on, its process with a stand-in for the library, and the library.

The slow tests want the library itself (`make env-gptqmodel`). It is never imported here: it would change torch and
transformers for every test that follows.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pico
import psutil
import pytest
import torch
from gate_helpers import candidate
from plan_helpers import config_json, document, headers
from safetensors.torch import load_file
from serve_helpers import until

from hubplugin import pipeline, report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress.gptqmodel import backend
from hubplugin.compress.gptqmodel import worker as worker
from hubplugin.compress.quantization_config import quantize_config
from hubplugin.errors import CompressError, PlanError
from hubplugin.evaluation import gate
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.generation import Generated, generate_dequantized
from hubplugin.hub import snapshots
from hubplugin.manifest.schema import Document, Manifest
from hubplugin.manifest.steps.gptq import GPTQMODEL, Gptq
from hubplugin.model.architectures import families
from hubplugin.plan import draft, planner

THEIRS = {"method": "gptq", "engine": "gptqmodel", "bits": 4, "group_size": 32}
DOUBLES = Path(__file__).parent / "doubles"
library = pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="make env-gptqmodel")


def of_folder(base: Path, *steps: dict[str, Any]) -> draft.Plan:
    """A plan for a model folder, of one variant V."""
    data = {"model": str(base), "calibrate": {"self": True, "tokens": 48}, "variants": {"V": list(steps)}}
    peek = snapshots.peek(str(base), base)
    asked = Document(path="m.yaml", text="", sha256="", manifest=Manifest.model_validate(data))
    return planner.make(asked, peek.config, peek.tensors)


def made_by(base: Path, out: Path, step: dict[str, Any], tokens: torch.Tensor) -> backend.Made:
    """What the engine makes of a base in a new folder."""
    planned = of_folder(base, step)
    out.mkdir(parents=True)
    row = families.match(planned.config, "x")
    return backend.compress(base, out, tokens, planned.variants[0], row)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stand-in is what the worker imports; returns the file into which it writes what it was asked."""
    here = os.pathsep.join([str(DOUBLES), str(Path(worker.__file__).parents[3])])
    monkeypatch.setenv("PYTHONPATH", here)
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.json"))
    return tmp_path / "asked.json"


# what is refused before any work


@pytest.mark.parametrize(
    ("steps", "place", "what"),
    [
        ([THEIRS | {"lm_head": True}], "V[0].lm_head", "no such setting"),
        ([THEIRS | {"ignore": ["down_proj"]}], "V[0].ignore", "no such setting"),
        ([{"method": "prune", "ffn": 0.25}, THEIRS], "V[1].engine", "block by block"),
        ([THEIRS | {"symmetric": False}], "V[0].symmetric", "zero points"),
        ([THEIRS | {"format": "compressed-tensors"}], "V[0].format", "float16"),
        ([THEIRS | {"bits": 3}], "V[0].bits", "float16"),
        ([THEIRS | {"damp": 1.0}], "V[0].damp", "below 1"),
    ],
)
def test_what_gptqmodel_does_not_take_is_refused_with_its_place(
    steps: list[dict[str, Any]], place: str, what: str
) -> None:
    config = pico.config(intermediate_size=256, tie_word_embeddings=False)
    with pytest.raises(PlanError) as caught:
        planner.make(document(steps), config_json(config), headers(config))
    assert caught.value.where == f"m.yaml: variants.{place}"
    assert what in caught.value.what and "remove engine: gptqmodel" in caught.value.fix


def test_every_setting_but_the_shared_ones_is_refused() -> None:
    own = [name for name in Gptq.model_fields if name not in Gptq.shared]
    assert own and Gptq.shared <= set(Gptq.model_fields)
    config = pico.config()
    for name in own:
        default = Gptq.model_fields[name].get_default(call_default_factory=True)
        with pytest.raises(PlanError, match=f"V.0..{name}: gptqmodel has no such setting"):
            planner.make(document([THEIRS | {name: default}]), config_json(config), headers(config))


def test_a_family_that_it_does_not_return_whole_is_refused() -> None:
    config = pico.config("phi3")
    with pytest.raises(PlanError, match="models of type phi3"):
        planner.make(document([THEIRS]), config_json(config), headers(config))


def test_switches_that_only_our_engine_has_are_recorded_as_off() -> None:
    ours, theirs = Gptq(method="gptq"), Gptq(method="gptq", engine="gptqmodel")
    for name, value in ours.model_dump().items():
        expected = False if value is True and name not in Gptq.shared else value
        if name == "qep_tokens":
            expected = None  # of what is off
        assert theirs.model_dump().get(name) == ("gptqmodel" if name == "engine" else expected)


@pytest.mark.parametrize("installed", [None, "7.7.0"])
def test_without_that_release_installed_nothing_is_pulled(
    installed: str | None, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None or name != "gptqmodel":
            raise metadata.PackageNotFoundError(name)
        return installed

    def pull(*_: object) -> None:
        raise AssertionError("pulled")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(snapshots, "pull", pull)
    data = {"model": str(pico_folder), "calibrate": {"self": True, "tokens": 48}, "variants": {"V": [THEIRS]}}
    asked = Document(path="m.yaml", text="", sha256="", manifest=Manifest.model_validate(data))
    with pytest.raises(PlanError) as caught:
        pipeline.run(asked, of_folder(pico_folder, THEIRS), tmp_path, generate_dequantized)  # type: ignore[arg-type]
    assert (installed or "not installed") in caught.value.what and GPTQMODEL in caught.value.what
    assert "make env-gptqmodel" in caught.value.fix


def test_the_release_is_the_one_that_the_project_pins() -> None:
    root = Path(__file__).parents[1]
    assert f'"gptqmodel=={GPTQMODEL};' in (root / "pyproject.toml").read_text(encoding="utf-8")
    assert f"gptqmodel=={GPTQMODEL}\n" in (root / ".lock" / "gptqmodel.txt").read_text(encoding="utf-8")
    both = {"gptqmodel.txt": {}, "cpu.txt": {}}
    for name, pins in both.items():
        lines = (root / ".lock" / name).read_text(encoding="utf-8").split()
        pins.update(line.split("==") for line in lines)
    assert not both["gptqmodel.txt"].keys() & both["cpu.txt"].keys(), "it moves nothing that vLLM needs"


# the process, with a stand-in for the library


def test_settings_and_tokens_reach_the_library_and_its_codes_our_folder(
    double: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tokens, out = pico.write(tmp_path / "base", "qwen2"), pico.tokens(5, 48), tmp_path / "V"
    step = THEIRS | {"damp": 0.05, "clip_search": False}
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    made = made_by(base, out, step, tokens)
    asked = json.loads(double.read_text(encoding="utf-8"))
    assert asked["ids"] == tokens.tolist() and asked["mask"] == tokens.numel()
    wanted = worker.arguments(Gptq.model_validate(step).model_dump())
    assert wanted["damp_percent"] == 0.05 and wanted["mse"] == 0
    assert asked["settings"].items() >= wanted.items()
    talk = capfd.readouterr()
    assert not talk.out, "standard output is kept for results"
    assert "V | block 01/2 | gptqmodel" in talk.err and "V | block 02/2 | gptqmodel" in talk.err
    assert "the library talks" not in talk.err

    (variant,) = of_folder(base, THEIRS).variants
    assert (
        gate.as_planned(candidate(out, variant)).passed
        and gate.as_compressed(candidate(out, samples=made.samples)).passed
    )
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "nothing of the work stays"
    assert not Path("logs").exists(), "nor of what the library leaves where it works"
    assert [result.name for result in made.results] == [linear.name for linear in variant.linears]
    first = made.results[0]
    assert (first.loss, first.damp, first.seconds, first.dead_inputs, first.fallback) == (None, 0.02, 0.125, None, None)
    fallen = {result.name: result.fallback for result in made.results if result.fallback}
    assert fallen == {"model.layers.1.mlp.down_proj": "gptqmodel's rtn fallback"}
    assert made.peak > 2**20
    before, after = Reader(base), Reader(out)
    kept = [name for name in before.headers if name in after]
    assert any(name.endswith(".bias") for name in kept)
    assert all(before.get(name).equal(after.get(name)) for name in kept), "what is not quantized is the base's"
    error = DenseView(out).get(f"{first.name}.weight") - before.get(f"{first.name}.weight").float()
    assert 0 < error.abs().max() < 0.05, "and the codes are those of these weights"


def test_a_library_that_fails_is_three_parts_with_its_last_words(
    double: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPER", "fails")
    with pytest.raises(CompressError) as caught:
        made_by(pico_folder, tmp_path / "V", THEIRS, pico.tokens())
    assert caught.value.where == "variants.V: engine"
    assert "it was not to be" in caught.value.what
    log = tmp_path / "V" / backend.WORK / worker.LOG
    assert str(log) in caught.value.fix and "the library talks" in log.read_text(encoding="utf-8")


def test_killing_us_kills_it(double: Path, pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER", "hangs")
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    code = (
        "import sys; from pathlib import Path; import pico, test_gptqmodel_engine as here;"
        "here.made_by(Path(sys.argv[1]), Path(sys.argv[2]), here.THEIRS, pico.tokens())"
    )
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(pico_folder), str(tmp_path / "V")], env={**os.environ, "PYTHONPATH": path}
    )
    try:
        until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text() != "", 120)
        found = psutil.Process(int((tmp_path / "pid").read_text()))
        assert found.is_running()
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    until(lambda: not found.is_running() or found.status() == psutil.STATUS_ZOMBIE, 120)


def test_the_folder_names_the_engine_that_made_its_codes(pico_folder: Path) -> None:
    (theirs,) = of_folder(pico_folder, THEIRS).variants
    (ours,) = of_folder(pico_folder, THEIRS | {"engine": "hubplugin"}).variants
    said = quantize_config(theirs)
    assert said is not None and said["meta"]["quantizer"] == [f"gptqmodel:{GPTQMODEL}"]
    assert backend.packages(theirs) == ("gptqmodel",) and backend.packages(ours) == ()
    assert backend.step_of(ours) is None


# the library itself


def dequantized(folder: Path, prompts: list[list[int]], tokens: int, verdicts: object) -> Generated:
    return generate_dequantized(folder, prompts, tokens)


@pytest.mark.slow
@library
def test_the_whole_arrow_with_both_engines_and_the_librarys_loader_reads_what_we_write(
    pico_folder: Path, tmp_path: Path
) -> None:
    data = {
        "model": str(pico_folder),
        "calibrate": {"self": True, "samples": 8, "tokens": 64, "seed": 0},
        "variants": {"Ours": [THEIRS | {"engine": "hubplugin"}], "Theirs": [THEIRS]},
        "evaluate": {"perplexity": {"self": True, "samples": 4, "tokens": 64, "seed": 1}, "kl": True},
        "gate": {"perplexity_ratio": 3, "top1_agreement": 0},
    }
    asked = Document(path=str(tmp_path / "m.yaml"), text="", sha256="x", manifest=Manifest.model_validate(data))
    peek = snapshots.peek(str(pico_folder), pico_folder)
    planned = planner.make(asked, peek.config, peek.tensors)
    by_us, by_them = pipeline.run(asked, planned, tmp_path, dequantized)
    assert by_us.passed and by_them.passed
    assert by_them.versions["gptqmodel"] == GPTQMODEL and "gptqmodel" not in by_us.versions
    assert by_us.calibration == by_them.calibration
    ours, theirs = (made.evaluation.variant.mean_kl for made in (by_us, by_them) if made.evaluation)
    assert ours is not None and theirs is not None and 0.5 < ours / theirs < 2
    text = card.render(report.read(tmp_path / "Theirs"))
    assert f"by GPTQ in gptqmodel {GPTQMODEL}" in text and "engine" in text

    back = tmp_path / "back"
    back.mkdir()
    (back / worker.CHECKPOINT).symlink_to(tmp_path / "Ours")
    names = [linear.name for linear in planned.variants[0].linears]
    job = {"blocks": [names], "settings": {"bits": 4}}
    code = "import json, sys; from pathlib import Path; from hubplugin.compress.gptqmodel import worker;"
    code += "worker.unpack(json.loads(sys.argv[1]), Path(sys.argv[2]))"
    environment = backend.environment()
    subprocess.run([sys.executable, "-c", code, json.dumps(job), str(back)], check=True, env=environment)
    read = load_file(back / worker.block_file(0))
    samples = {name: read[f"{name}.sample"] for name in names}
    assert gate.as_compressed(candidate(tmp_path / "Ours", samples=samples)).passed


@pytest.mark.slow
@library
def test_without_switches_both_engines_find_the_same_codes_where_they_see_the_same_inputs(tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", hidden_size=256, intermediate_size=256, num_attention_heads=8)
    step = {"method": "gptq", "bits": 4, "group_size": 128, "act_order": False, "clip_search": False}
    steps = {"Ours": [step], "Theirs": [step | {"engine": "gptqmodel"}]}
    asked = document(steps, model=str(base), calibrate={"self": True, "samples": 16, "tokens": 64, "seed": 0})
    peek = snapshots.peek(str(base), base)
    pipeline.run(asked, planner.make(asked, peek.config, peek.tensors), tmp_path, dequantized)
    for name in ("q_proj", "k_proj", "v_proj"):
        found = []
        for folder in (tmp_path / "Ours", tmp_path / "Theirs"):
            full = f"model.layers.0.self_attn.{name}"
            scales = Reader(folder).get(f"{full}.scales").T
            found.append((worker.codes(name, DenseView(folder).get(f"{full}.weight"), scales, 4), scales.float()))
        (ours, our_scales), (theirs, their_scales) = found
        assert (ours == theirs).float().mean() > 0.9
        assert (our_scales[:, 0] / their_scales[:, 0] - 1).abs().max() < 0.005, "the first group has no errors to take"


@pytest.mark.slow
@library
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "gemma2"])
def test_every_family_comes_back_whole(model_type: str, tmp_path: Path) -> None:
    base = pico.write(tmp_path / "base", model_type)
    made = made_by(base, tmp_path / "V", THEIRS, pico.tokens(8))
    (variant,) = of_folder(base, THEIRS).variants
    assert gate.as_planned(candidate(tmp_path / "V", variant)).passed
    assert gate.as_compressed(candidate(tmp_path / "V", samples=made.samples)).passed
    assert not any(result.fallback for result in made.results)


@pytest.mark.slow
@library
@pytest.mark.parametrize("settings", [{"bits": 8}, {"group_size": -1}, {"act_order": False, "clip_search": False}])
def test_every_setting_comes_back_whole(settings: dict[str, Any], pico_folder: Path, tmp_path: Path) -> None:
    made = made_by(pico_folder, tmp_path / "V", THEIRS | settings, pico.tokens(8))
    (variant,) = of_folder(pico_folder, THEIRS | settings).variants
    assert gate.as_planned(candidate(tmp_path / "V", variant)).passed
    assert gate.as_compressed(candidate(tmp_path / "V", samples=made.samples)).passed
