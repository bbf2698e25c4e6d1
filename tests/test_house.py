"""Rules a machine keeps: who may import whom, how long things may get, where the few dangerous words may stand."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "hubplugin").rglob("*.py"), *(ROOT / "serve").rglob("*.py")])
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
MOST_FILES = 10  # of a room, `__init__` not counted; more become a room inside it


def name_of(path: Path) -> str:
    """The room of a file, or the file where it is in none."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "hubplugin" else "serve"


def module_of(path: Path) -> str:
    """The dotted name of a file inside its package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


def imports(tree: ast.Module) -> set[str]:
    """Full dotted names, `from a import b` as a.b."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}


def test_the_rooms_are_those_that_import_linter_keeps_in_order() -> None:
    """`make check` runs import-linter; what it may not know of a module is a failure there (exhaustive layers)."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    order = settings["tool"]["importlinter"]["contracts"][0]
    assert order["exhaustive"]
    listed = {name for layer in order["layers"] for name in layer.split(" | ")} | {"__main__"}
    found = {path.stem for path in (ROOT / "hubplugin").glob("*.py")} - {"__init__"}
    found |= {path.parent.name for path in (ROOT / "hubplugin").glob("*/__init__.py")}
    assert listed == found


def test_no_room_holds_more_than_ten_files() -> None:
    for room in {path.parent for path in SOURCES if path.parent != ROOT / "hubplugin"}:
        if room != ROOT / "serve":
            assert len(list(room.glob("*.py"))) - 1 <= MOST_FILES, room


@pytest.mark.parametrize(
    ("package", "owner"),
    [
        ("huggingface_hub", "hub"),
        ("datasets", "compress.calibration.calibration_data evaluation.tasks.surroundings"),
        ("lm_eval", "evaluation.tasks.harness plan.checks.tasks"),
        ("gradio", "serve space"),  # a page each
        ("vllm", "serve"),
        ("gptqmodel", "compress.gptqmodel.worker"),
        ("peft", "recovery.trainable"),
        ("ray", "cluster"),
        ("model_signing", "hub"),
    ],
)
def test_each_outside_world_has_one_door(package: str, owner: str, trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        if any(name.split(".")[0] == package for name in imports(tree)):
            assert set(owner.split()) & {name_of(path), module_of(path)}, path


def test_cholesky_stands_in_one_file(trees: dict[Path, ast.Module]) -> None:
    users = {
        module_of(path)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and "cholesky" in node.attr
    }
    assert users == {"methods.linear_algebra"}


def test_files_and_functions_stay_small_and_say_what_they_are(trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        assert ast.get_docstring(tree), f"{path} opens without saying what it is"
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= LONGEST_FUNCTION, f"{path}: {node.name} has {length} lines"


def test_only_errors_defines_what_a_user_is_told(trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any("HubPluginError" in ast.dump(base) for base in node.bases):
                assert name_of(path) == "errors", path


def test_every_method_has_maths_tests_and_a_manifest() -> None:
    maths = (ROOT / "docs" / "maths.md").read_text(encoding="utf-8")
    manifests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "manifests").glob("*.yaml"))
    for method, title, tests in (
        ("gptq", "## GPTQ", "test_gptq.py"),
        ("codebook", "## Codebooks", "test_codebook.py"),
        ("prune", "## Pruning", "test_obs.py"),
        ("recover", "## Recovery", "test_recover.py"),
        ("tune", "## Tuning", "test_tune.py"),
        ("distill", "## Distillation", "test_distill.py"),
        ("wanda", "## Masks", "test_masks.py"),
        ("sparsegpt", "## Masks", "test_masks.py"),
        ("lowrank", "## Low rank", "test_lowrank.py"),
        ("eora", "## Adapters", "test_adapters.py"),
        ("lora", "## Adapters", "test_adapters.py"),
    ):
        assert title in maths and f"method: {method}" in manifests and (ROOT / "tests" / tests).is_file()


def test_nothing_of_one_machine_stands_in_the_project() -> None:
    for path in [*SOURCES, *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        assert "/root/" not in text and "/home/" not in text, path


def test_the_readme_shows_a_manifest_that_stands_in_the_project() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("```yaml\n")[1].split("```")[0]
    assert shown == (ROOT / "manifests" / "smollm2-135m-instruct.yaml").read_text(encoding="utf-8")
