"""docs/contributing.md names only what exists. Sources are parsed, never imported.

The syntax, outside fenced code: a back-quoted word with a slash, or one that ends in .py, .md or .toml, is a path from
the top of the project; a back-quoted `module.name` or `module.Class.name` is what some module of that name defines.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "contributing.md"
SOURCES = [path for folder in ("hubplugin", "serve", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
NO_NAMES = {"hubplugin.methods", "report.json", "magnitude.py"}  # a group of entry points, a variant's file, an example
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
NAME = re.compile(r"[a-z_]\w*(\.\w+)+")


def words(page: Path) -> list[str]:
    """The back-quoted words of a page, outside fenced code, in order and once each."""
    prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return list(dict.fromkeys(re.findall(r"`([^`\n]+)`", prose)))


def is_path(word: str) -> bool:
    return bool(PATH.fullmatch(word)) and ("/" in word or word.endswith((".py", ".md", ".toml")))


PATHS = [word for word in words(PAGE) if is_path(word) and word not in NO_NAMES]
NAMES = [word for word in words(PAGE) if NAME.fullmatch(word) and not is_path(word) and word not in NO_NAMES]


@cache
def defined(stem: str) -> frozenset[str]:
    """What modules and packages of this name define: names, and the attributes of classes as Class.name."""
    files = [path for path in SOURCES if stem == (path.parent.name if path.stem == "__init__" else path.stem)]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return frozenset(name for tree in trees for name in _names(tree.body))


def _names(body: list[ast.stmt], prefix: str = "") -> list[str]:
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            found += _names(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.If):  # what is defined for type checkers, or else
            found += _names([*node.body, *node.orelse], prefix)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [prefix + name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    return found


@pytest.mark.parametrize("word", PATHS)
def test_a_path_exists(word: str) -> None:
    assert (ROOT / word).exists()


@pytest.mark.parametrize("word", NAMES)
def test_a_name_is_defined_in_its_module(word: str) -> None:
    module, _, name = word.partition(".")
    assert name in defined(module)


def test_the_page_is_read_as_meant() -> None:
    assert "hubplugin/verbs/publishing.py" in PATHS and "pipeline.run" in NAMES and "draft.DraftPlan.settle" in NAMES
    assert "nothing_of_this_name" not in defined("pipeline") and defined("no_module") == frozenset()


@pytest.mark.parametrize("page", ["docs/maths.md", "docs/glossary.md", "README.md"])
def test_modules_and_tests_that_other_pages_name_exist(page: str) -> None:
    named = [word for word in words(ROOT / page) if is_path(word) and word.endswith(".py")]
    assert [word for word in named if not (ROOT / word).is_file()] == []
