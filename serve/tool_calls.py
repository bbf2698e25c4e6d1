"""Which parser of vLLM reads the tool calls of a model, told by how its chat template writes them.

Knows text of templates alone. vLLM wants the parser named; without one it refuses requests with tools, and where a
template has no place for tools it would leave them out without a word.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from serve import vllm_options

OPTION = "--tool-call-parser"
# What stands in a template -> the parser, as vLLM's documentation pairs them with model families. The first row whose
# words are all there counts, so those that share marks with others come before them.
PARSERS = (
    (("<tool_call>", "<function="), "qwen3_coder"),
    (("<tool_call>", "<arg_key>"), "glm45"),
    (("<|tool_call_start|>",), "lfm2"),
    (("<|tool_calls_section_begin|>",), "kimi_k2"),
    (("<\uff5ctool\u2581calls\u2581begin\uff5c>", "```json"), "deepseek_v3"),
    (("<\uff5ctool\u2581calls\u2581begin\uff5c>",), "deepseek_v31"),
    (("<start_function_call>",), "functiongemma"),
    (("<|channel|>commentary",), "openai"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<|python_start|>",), "llama4_pythonic"),
    (("<|start_header_id|>", '"parameters"'), "llama3_json"),
    (("<|tool|>", "<|tool_call|>"), "phi4_mini_json"),
    (("<|tool_call|>",), "granite"),
    (("<tool_call>",), "hermes"),
)


def options(folder: Path, given: Sequence[str]) -> tuple[str, ...]:
    """The options of vLLM that make a folder's tool calls readable; none where the user names a parser, or there is
    none."""
    if vllm_options.value_of(given, OPTION) is not None:
        return ()
    found = parser(template(folder))
    return ("--enable-auto-tool-choice", OPTION, found) if found else ()


def parser(text: str) -> str | None:
    """The name of the parser for a template that has a place for tools; None where it has none, or writes calls in a
    way that no row knows."""
    if "tools" not in text:
        return None
    return next((name for marks, name in PARSERS if all(mark in text for mark in marks)), None)


def template(folder: Path) -> str:
    """All chat templates of a folder, one after another; empty where it has none or they cannot be read."""
    found = []
    for file in (folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))):
        if file.is_file():
            found.append(file.read_text("utf-8", "replace"))
    try:
        told = json.loads((folder / "tokenizer_config.json").read_bytes())["chat_template"]
    except (OSError, ValueError, LookupError, TypeError):
        told = ""
    for one in told if isinstance(told, list) else [{"template": told}]:
        found.append(str(one.get("template", "")) if isinstance(one, dict) else "")
    return "\n".join(found)
