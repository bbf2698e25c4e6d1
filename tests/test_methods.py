"""METHODS: a method of another distribution is planned, run and reported like ours; one that is broken is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubplugin import report
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.manifest.methods import METHODS, Kind, Method
from hubplugin.plan.checks import steps as step_order

ROOT = Path(__file__).parents[1]

ROW = """
from typing import ClassVar, Literal

from hubplugin.manifest.steps.masks import Masking
from hubplugin.manifest.methods import Kind, Method


class Magnitude(Masking):
    paper: ClassVar[str] = "https://arxiv.org/abs/1506.02626"

    method: Literal["magnitude"]


ROW = Method(
    Magnitude,
    Kind.MASK,
    "Magnitude",
    "magnitude_solver",
    check="hubplugin.plan.checks.masks:check",
    note="zeros are not skipped",
)
"""

SOLVER = """
from hubplugin.checkpoint.encodings import Masked
from hubplugin.methods.base import Compressed
from hubplugin.methods.selection import lowest


def prepare(hessian, settings):
    return None


def compress(weight, hessian, settings, prepared=None):
    keep = ~lowest(weight.abs(), round(settings.ratio * weight.shape[1]), dim=1)
    return Compressed(weight.masked_fill(~keep, 0), Masked(keep), loss=0.0, damp=0.0, fallback=None, dead_inputs=0)
"""

MANIFEST = """\
model: {model}
calibrate: {{self: true, samples: 4, tokens: 64, seed: 0}}
variants:
  Small: [{{method: magnitude, sparsity: {sparsity}}}]
"""

# the command line, with transformers in place of vLLM
RUN = """
import sys

from hubplugin.evaluation import engine_choice
from hubplugin import cli
from hubplugin.evaluation.generation import generate_dequantized

engine_choice.generate = lambda folder, prompts, tokens, verdicts: generate_dequantized(folder, prompts, tokens)
cli.main(sys.argv[1:])
"""


def install(site: Path, name: str, target: str, **modules: str) -> None:
    """What an installer leaves of a distribution with one entry point: its modules and their metadata."""
    info = site / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[hubplugin.methods]\n{name} = {target}\n")
    for module, text in modules.items():
        (site / f"{module}.py").write_text(text)


def hubplugin(site: Path, *words: str | Path, code: tuple[str, ...] = ("-m", "hubplugin")) -> tuple[int, str, str]:
    """Run a command in a process that finds the distributions in `site`."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *code, *map(str, words)]
    done = subprocess.run(command, env=environment, cwd=site, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pico_folder: Path) -> Path:
    """A folder on the path with a third mask method installed, and a manifest that names it."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, "magnitude", "magnitude:ROW", magnitude=ROW, magnitude_solver=SOLVER)
    (folder / "m.yaml").write_text(MANIFEST.format(model=pico_folder, sparsity=0.25))
    return folder


def test_a_method_of_another_distribution_is_run_like_ours(site: Path) -> None:
    status, _, said = hubplugin(site, "run", "m.yaml", "--out", "out", code=("-c", RUN))
    assert status == 0, said
    made = report.read(site / "out" / "Small")
    assert made.passed and {line.method for line in made.linears} == {"magnitude"}
    assert any(line.name == "zeros as asked" and "25 % zeros" in line.detail for line in made.gate)
    assert made.sizes.sparsity == pytest.approx(0.25)
    assert made.notes[0].startswith("zeros are not skipped: 25 % of the weights are zero")
    for name, header in Reader(site / "out" / "Small").headers.items():
        if name.endswith("_proj.weight"):
            weight = Reader(site / "out" / "Small").get(name)
            assert ((weight == 0).sum(dim=1) >= header.shape[1] // 4).all(), name
    card = (site / "out" / "Small" / "README.md").read_text()
    assert "set to zero by Magnitude" in card and "zeros are not skipped" in card
    assert "https://arxiv.org/abs/1506.02626" in card and "- magnitude\n" in card
    assert "only the other weights of the same row" not in card


def test_it_is_planned_and_checked_like_ours(site: Path, pico_folder: Path) -> None:
    status, said, errors = hubplugin(site, "plan", "m.yaml")
    assert status == 0, errors
    assert "25 % zeros" in said and "Small: zeros are not skipped" in said
    (site / "little.yaml").write_text(MANIFEST.format(model=pico_folder, sparsity=0.001))
    status, said, errors = hubplugin(site, "plan", "little.yaml")
    assert status == 2 and "where: little.yaml: variants.Small[0].sparsity" in errors


@pytest.mark.parametrize(
    ("target", "text", "what"),
    [
        ("broken:ROW", "ROW = 'a row'", "is no row of METHODS"),
        ("broken:ROW", "import nothing_of_this_name", "cannot be loaded: ModuleNotFoundError"),
        ("broken:NONE", "", "cannot be loaded: AttributeError"),
        ("broken:ROW", ROW.replace('    method: Literal["magnitude"]', "    pass"), "its settings lack `method:"),
        ("broken:ROW", ROW.replace("Kind.MASK", "Kind.QUANTIZE"), "is no row of METHODS"),
        ("broken:ROW", ROW.replace('["magnitude"]', '["gptq"]'), "a method called gptq exists already"),
    ],
)
def test_a_broken_row_is_an_error_that_names_its_package(target: str, text: str, what: str, tmp_path: Path) -> None:
    install(tmp_path, "broken", target, broken=text)
    status, said, errors = hubplugin(tmp_path, "plan", "m.yaml")
    assert (status, said) == (2, "")
    where, cause, fix = errors.splitlines()
    assert where == "where: entry point broken of hubplugin.methods in broken"
    assert cause.startswith(f"what:  {what}") and fix.startswith("fix:   ") and "package that brings it" in fix


def test_every_pair_of_kinds_that_may_not_follow_is_of_kinds_that_exist() -> None:
    assert {kind for pair in step_order.REFUSED for kind in pair} <= set(Kind)
    assert all(isinstance(row, Method) and row.settings.paper.startswith("https://") for row in METHODS.values())
