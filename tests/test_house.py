"""Rules a machine keeps: who may import whom, how long things may get, where the few dangerous words may stand."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "hubplugin").rglob("*.py"), *(ROOT / "serve").rglob("*.py")])
# a module imports only what stands above it; a folder's name stands for all of its files
ORDER = """
    errors interrupt yamlfile explain settings mask_settings prune_settings manifest family architecture schemes
    loadable sizes estimate masks knapsack shaping crosscheck successor budget workload plan table report memory
    folder hub checkpoint identity calibrate threads amx moments_cpu moments_gpu hessian methods ahead experts
    uneven norms activations stream inputs results compress pack layout declare journal export zeros evaluate resume
    optimize reconstruct distill recover probe allocate latency survey gate card generate gptqmodel_worker
    gptqmodel_engine phases pipeline publish target localhub demo cli __main__
""".split()  # noqa: SIM905
NO_TORCH = {
    *("errors", "yamlfile", "explain", "manifest", "family", "schemes", "loadable", "knapsack", "budget", "plan"),
    *("settings", "mask_settings", "masks", "table", "declare", "report", "folder", "hub", "card", "cli"),
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "hubplugin" else "serve"


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


def test_a_module_imports_only_what_stands_above_it(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        mine = name_of(path)
        if mine in ("serve", "__init__"):
            continue
        for name in imports(tree):
            parts = name.split(".")
            if parts[0] != "hubplugin" or len(parts) < 2 or parts[1] == "__version__" or parts[1] == mine:
                continue
            if ORDER.index(parts[1]) >= ORDER.index(mine):
                wrong.append(f"{mine} imports {name}")
    assert not wrong


def test_serve_knows_only_errors_and_manifest_of_hubplugin(trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        if name_of(path) == "serve":
            known = {name.split(".")[1] for name in imports(tree) if name.startswith("hubplugin.")}
            assert known <= {"errors", "manifest"}, path


def test_no_torch_where_a_plan_or_a_card_is_made(trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        if name_of(path) in NO_TORCH:
            assert not any(name.split(".")[0] in ("torch", "transformers") for name in imports(tree)), path


@pytest.mark.parametrize(
    ("package", "owner"),
    [
        ("huggingface_hub", "hub"),
        ("datasets", "calibrate"),
        ("gradio", "serve"),
        ("vllm", "serve"),
        ("gptqmodel", "gptqmodel_worker"),
        ("peft", "distill"),
    ],
)
def test_each_outside_world_has_one_door(package: str, owner: str, trees: dict[Path, ast.Module]) -> None:
    for path, tree in trees.items():
        if any(name.split(".")[0] == package for name in imports(tree)):
            assert name_of(path) == owner, path


def test_cholesky_stands_in_one_file(trees: dict[Path, ast.Module]) -> None:
    users = {
        name_of(path)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and "cholesky" in node.attr
    }
    assert users == {"hessian"}


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
        ("prune", "## Pruning", "test_obs.py"),
        ("recover", "## Recovery", "test_recover.py"),
        ("wanda", "## Masks", "test_masks.py"),
        ("sparsegpt", "## Masks", "test_masks.py"),
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
