"""Writes the generated parts of README.md and docs/, and two JSON Schemas (`make docs`); --check refuses stale.

The schemas are manifests/schema.json of manifests and docs/report.schema.json of reports. Generated parts are between
`<!-- generated: NAME -->` and `<!-- /generated -->`. Settings come from the JSON Schema, the map from the modules'
docstrings (no module is imported for it), the verbs from the command line's parser. Knows no particular setting and no
particular verb.
"""

import argparse
import ast
import difflib
import json
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hubplugin.manifest.methods import METHODS, Kind  # noqa: E402
from hubplugin.manifest.reading.hints import first_sentence, flow_yaml  # noqa: E402
from hubplugin.manifest.reading.json_schema import InOrder, definition_of, json_schema  # noqa: E402
from hubplugin.report import SCHEMA_VERSION, Report  # noqa: E402
from hubplugin.verbs import app  # noqa: E402


def _layers() -> list[str]:
    """Rooms and top-level modules in import order, lowest first, as import-linter holds them (pyproject.toml)."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [name for layer in reversed(layers) for name in layer.split(" | ")] + ["__main__"]


ORDER = _layers()
ROOMS = [name for name in ORDER if (ROOT / "hubplugin" / name).is_dir()]
BEFORE = ORDER[: ORDER.index(ROOMS[0])]
AFTER = [name for name in ORDER if name not in (*ROOMS, *BEFORE)]
KIND_TITLES = {
    Kind.QUANTIZE: "Quantization",
    Kind.PRUNE: "Pruning",
    Kind.RECOVER: "Recovery",
    Kind.MASK: "Masks",
    Kind.FACTORIZE: "Low rank",
    Kind.TUNE: "Tuning",
    Kind.ADAPT: "Adapters",
}
SOURCE = "Source"  # of tokens: a table of its own, because several keys take it

Schema = dict[str, Any]


# -- settings


def options() -> str:
    """All settings as tables, grouped by task."""
    schema = json_schema()
    definitions = schema["$defs"]
    parts = ["**The manifest**\n", _table(_rows(schema, definitions, "", nested=False))]
    parts += ["**Source of tokens**: `calibrate`, `evaluate.perplexity`, `data` of a step that trains\n"]
    parts += [_table(_rows(definitions[SOURCE], definitions, ""))]
    for kind, title in KIND_TITLES.items():
        methods = [name for name, row in METHODS.items() if row.kind is kind]
        parts += [f"**{title}**: {', '.join(f'`method: {name}`' for name in methods)}\n"]
        parts += [_table(_merged({name: definitions[definition_of(name)] for name in methods}, definitions))]
    sections = [key for key in ("evaluate", "gate", "publish", "serve") if key in schema["properties"]]
    parts += [f"**Evaluation, publishing and serving**: {', '.join(f'`{key}`' for key in sections)}\n"]
    rows = [
        row
        for key in sections
        for row in _rows(_referenced(schema["properties"][key], definitions), definitions, f"{key}.")
    ]
    return "\n".join([*parts, _table(rows)])


def _merged(methods: dict[str, Schema], definitions: Schema) -> list[tuple[str, ...]]:
    """The rows of the methods of a kind: first what they are, then their settings. Settings of some only say whose."""
    rows: list[tuple[str, ...]] = []
    found: dict[tuple[str, ...], list[str]] = {}
    for name, definition in methods.items():
        (_, *words), *settings = _rows(definition, definitions, "")
        rows.append(("`method`", *words[:2], f"{first_sentence(definition['description'])}."))
        for row in settings:
            found.setdefault(row, []).append(name)
    for (*words, text), names in found.items():
        rows.append((*words, text if len(names) == len(methods) else f"{text} Of {', '.join(names)} only."))
    return rows


def _rows(section: Schema, definitions: Schema, prefix: str, nested: bool = True) -> Iterator[tuple[str, ...]]:
    """Key, values, default and description of the settings of a section, and of the sections below it."""
    for key, field in section["properties"].items():
        required = key in section.get("required", ())
        if not field.get("deprecated"):
            yield f"`{prefix}{key}`", _values(field), "required" if required else _default(field), field["description"]
        inner, below = _below(field)
        if nested and inner and inner != SOURCE:
            yield from _rows(definitions[inner], definitions, f"{prefix}{key}{below}.")


def _below(field: Schema) -> tuple[str, str]:
    """The definition a field refers to, and what stands between its key and the keys of that definition."""
    shape = _shape(field)
    if "$ref" in shape:
        return shape["$ref"].rsplit("/", 1)[1], ""
    by_pattern = next(iter(shape.get("patternProperties", {}).values()), None)
    for inner, between in ((shape.get("items"), "[]"), (shape.get("additionalProperties"), ".*"), (by_pattern, ".*")):
        if isinstance(inner, dict) and "$ref" in inner:
            return inner["$ref"].rsplit("/", 1)[1], between
    return "", ""


def _referenced(field: Schema, definitions: Schema) -> Schema:
    found: Schema = definitions[_below(field)[0]]
    return found


def _shape(field: Schema) -> Schema:
    """A field's type without `| null`, the first of several."""
    return next(iter(_choices(field)), field)


def _choices(field: Schema) -> list[Schema]:
    return [choice for choice in field.get("anyOf", ()) if choice.get("type") != "null"]


def _values(field: Schema) -> str:
    """What a field takes, in few words."""
    if len(several := _choices(field)) > 1:
        return " or ".join(_values(choice) for choice in several)
    shape = _shape(field)
    choices = [shape["const"]] if "const" in shape else shape.get("enum", [])
    if choices:
        *first, last = (f"`{choice}`" for choice in choices)
        return f"{', '.join(first)} or {last}" if first else last
    if "$ref" in shape:
        return "source" if shape["$ref"].endswith(f"/{SOURCE}") else "mapping"
    words = {"boolean": "`true` or `false`", "string": "text", "array": "list", "object": "mapping"}
    return words.get(shape["type"]) or f"{'number' if shape['type'] == 'number' else 'whole number'}{_limits(shape)}"


def _limits(shape: Schema) -> str:
    names = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    found = [f"{sign} {shape[name]:.10g}" for name, sign in names.items() if name in shape]
    return f" {', '.join(found)}" if found else ""


def _default(field: Schema) -> str:
    default = field.get("default")
    return "" if default in (None, [], {}) or isinstance(default, dict) else f"`{flow_yaml(default)}`"


def _table(rows: Any) -> str:
    lines = ["| key | values | default | what it is |", "| --- | --- | --- | --- |"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


# -- the house


def house() -> str:
    """The rooms in import order, each with its docstring and a line per module."""
    parts = ["## Before all rooms\n", *(_line(Path("hubplugin") / f"{name}.py") for name in BEFORE), ""]
    for room in (*(f"hubplugin/{room}" for room in ROOMS), "serve"):
        parts += [f"## {room}/\n", _docstring(Path(room) / "__init__.py"), ""]
        paths = sorted(path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py"))
        parts += [*(_line(path, room) for path in paths if path != Path(room) / "__init__.py"), ""]
    parts += ["## After all rooms\n", *(_line(Path("hubplugin") / f"{name}.py") for name in AFTER)]
    return "\n".join(parts) + "\n"


def _line(path: Path, room: str = "hubplugin") -> str:
    name = path.relative_to(room).as_posix().replace("/__init__.py", "/")
    return f"- `{name}`: {first_sentence(_docstring(path))}."


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""


# -- the verbs


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: its usage with arguments, its help, and the words and help of its options."""

    usage: str
    text: str
    options: tuple[tuple[str, str], ...]


def verbs() -> str:
    """A table of all verbs with their options."""
    lines = ["| command | what it does |", "| --- | --- |"]
    for verb in _from_typer():
        lines.append(f"| `{_cell(verb.usage)}` | {_cell(verb.text)} |")
        lines += [f"| &nbsp;&nbsp;`{words}` | {_cell(text)} |" for words, text in verb.options]
    return "\n".join(lines) + "\n"


def _from_typer() -> Iterator[Verb]:
    import typer

    group: Any = typer.main.get_command(app)
    yield Verb("hubplugin VERB", "Options before the verb:", _options(group))
    for name, command in group.commands.items():
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        usage = " ".join(["hubplugin", name, *((param.metavar or param.name.upper()) for param in arguments)])
        yield Verb(usage, command.help or "", _options(command))


def _options(command: Any) -> tuple[tuple[str, str], ...]:
    """Words and help of a command's options; completion and --help, which all have, are left out."""
    named = [param for param in command.params if param.param_type_name == "option"]
    left_out = ("--help", "--install-completion", "--show-completion")
    return tuple((_words(option), _help(option)) for option in named if option.opts[0] not in left_out)


def _words(option: Any) -> str:
    """An option's longest word, and what stands for its value."""
    word = max(option.opts, key=len)
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return word + value


def _help(option: Any) -> str:
    """An option's help with its default: the words shown for it, or its value."""
    shown = option.show_default if isinstance(option.show_default, str) else option.default
    known = isinstance(shown, str | int | Path) and not isinstance(shown, bool)
    return f"{option.help or ''} ({shown})" if known else option.help or ""


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


# -- the report


def report_schema() -> Schema:
    """The JSON Schema of report.json. What a key is stands in the comment beside its field, or above it."""
    found = Report.model_json_schema(mode="validation", schema_generator=InOrder)
    comments: dict[str, str] = {}
    for path in (ROOT / "hubplugin" / "report.py", *sorted((ROOT / "hubplugin").glob("*_record*.py"))):
        comments |= _comments(path)
    for name, definition in {**found["$defs"], "Report": found}.items():
        for key, field in definition["properties"].items():
            if text := comments.get(f"{name}.{key}"):
                field["description"] = text
    version = {"const": SCHEMA_VERSION, **found["properties"]["schema_version"]}
    found["properties"]["schema_version"] = version
    return {"$schema": InOrder.schema_dialect, "title": "report.json of hubplugin", **found}


def _comments(path: Path) -> dict[str, str]:
    """Comments of the fields of a module's classes, by "Class.field"."""
    with path.open(encoding="utf-8") as file:
        tokens = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    lines = path.read_text(encoding="utf-8").splitlines()
    beside = {token.start[0]: token.string.lstrip("# ") for token in tokens}
    alone = {number for number in beside if lines[number - 1].lstrip().startswith("#")}
    found: dict[str, str] = {}
    for node in ast.parse("\n".join(lines)).body:
        for field in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                above = field.lineno - 1
                text = beside.get(field.end_lineno or field.lineno) or (beside[above] if above in alone else "")
                found[f"{node.name}.{field.target.id}"] = text
    return found


# -- files


PARTS: dict[str, tuple[tuple[str, Callable[[], str]], ...]] = {
    "README.md": (("options", options), ("verbs", verbs)),
    "docs/house.md": (("rooms", house),),
}


def generated() -> dict[Path, str]:
    """The files with generated parts, as they should be."""
    schemas = {"manifests/schema.json": json_schema(), "docs/report.schema.json": report_schema()}
    files = {ROOT / name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in schemas.items()}
    for name, parts in PARTS.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        for part, make in parts:
            text = replaced(text, part, make())
        files[ROOT / name] = text
    return files


def replaced(text: str, part: str, content: str) -> str:
    """A text with new content between the markers of a part. Raises ValueError where it has no such markers."""
    start, end = f"<!-- generated: {part} -->\n", "<!-- /generated -->"
    before, opening, rest = text.partition(start)
    _, closing, after = rest.partition(end)
    if not (opening and closing):
        raise ValueError(f"no markers of a generated part {part!r}")
    return f"{before}{start}\n{content}\n{end}{after}"


def main() -> int:
    """Write the files, or with --check say which are stale. The exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is stale")
    check, stale = parser.parse_args().check, False
    for path, text in generated().items():
        present = path.read_text(encoding="utf-8") if path.exists() else ""
        if present == text:
            continue
        name, stale = str(path.relative_to(ROOT)), True
        if check:
            lines = difflib.unified_diff(present.splitlines(), text.splitlines(), name, "generated", lineterm="", n=0)
            sys.stderr.write("\n".join([*list(lines)[:20], f"{name} is stale: run `make docs`", ""]))
        else:
            path.write_text(text, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
