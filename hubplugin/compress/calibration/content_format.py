"""Whether a chat template takes a turn's content as one text or as a list of parts, told from the template alone.

The answer is that of vLLM 0.32 ("string" or "openai"), because calibration should see what the served model sees.
Knows Jinja's syntax. Knows no turns and no tokenizer.
"""

from collections import deque
from collections.abc import Iterator
from functools import lru_cache

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class _Generation(Extension):
    """The block `{% generation %}`, which transformers adds to Jinja; here it only has to be read."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _UnclearError(Exception):
    """A loop or an assignment whose target is no plain name: vLLM then takes content for one text."""


@lru_cache(maxsize=32)
def takes_parts(chat_template: str) -> bool:
    """Whether the template loops over the parts of a content. Raises TemplateError where it is not Jinja."""
    root = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"]).parse(chat_template)
    try:
        turns = set(_turns(root))
        in_macros = {
            id(loop): _parameters(root, macro, turns)
            for macro in root.find_all(nodes.Macro)
            for loop in macro.find_all(nodes.For)
        }
        return any(_visits_parts(loop, turns, in_macros.get(id(loop))) for loop in root.find_all(nodes.For))
    except _UnclearError:
        return False


def _visits_parts(loop: nodes.For, turns: set[str], parameters: set[str] | None) -> bool:
    """Whether a loop is over a turn's content; `parameters` of the macro around it, if any, hold a content."""
    contents = {"content"} if parameters is None else parameters
    by_name = isinstance(loop.iter, nodes.Name) and loop.iter.name in contents
    if by_name or any(_reads(loop.iter, turn, "content") for turn in turns):
        return bool(_name(loop.target))
    return False


def _turns(root: nodes.Node) -> Iterator[str]:
    """The variables of loops over `messages`, or over what the template assigns from it."""
    names, waiting = {"messages"}, deque(["messages"])
    while waiting:
        known = waiting.popleft()
        for assignment in root.find_all(nodes.Assign):
            if _reads(assignment.node, known) and (name := _name(assignment.target)) not in names:
                names.add(name)
                waiting.append(name)
    for loop in root.find_all(nodes.For):
        if any(_reads(loop.iter, name) for name in names):
            yield _name(loop.target)


def _parameters(root: nodes.Node, macro: nodes.Macro, turns: set[str]) -> set[str]:
    """The parameters of a macro that the template hands a turn's content to."""
    named = [parameter.name for parameter in macro.args]
    found: set[str] = set()
    for call in root.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
            given = [*zip(named, call.args, strict=False), *((word.key, word.value) for word in call.kwargs)]
            found |= {name for name, value in given if any(_reads(value, turn, "content") for turn in turns)}
    return found & set(named)


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _UnclearError
    return target.name


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Whether an expression is a variable, or its `key`, perhaps sliced, filtered or tested."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _reads(node.node, name, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, name, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == key and _reads(node.node, name)
    return isinstance(node, nodes.Getattr) and node.attr == key and _reads(node.node, name)
