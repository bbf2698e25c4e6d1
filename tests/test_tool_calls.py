"""Which of vLLM's parsers reads a model's tool calls: told by its chat template, and vLLM's own list has each."""

import json
from pathlib import Path

import pytest

from serve import tool_calls
from serve.endpoint.offer import Offer

TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("<tool_call>{...}</tool_call>", "hermes"),
        ("<tool_call>\n<function=name>", "qwen3_coder"),
        ('<|start_header_id|>ipython {"name": ..., "parameters": ...}', "llama3_json"),
        ("[TOOL_CALLS][", "mistral"),
        ("<|tool|> <|tool_call|>", "phi4_mini_json"),
        ("<|tool_call|>[", "granite"),
        ("{{ something_else }}", None),
    ],
)
def test_the_parser_is_told_by_how_calls_are_written(written: str, expected: str | None) -> None:
    assert tool_calls.parser(TOOLS + written) == expected
    assert tool_calls.parser(written) is None, "a template without a place for tools leaves them out"


@pytest.mark.serve
def test_vllm_has_every_parser() -> None:
    from vllm.tool_parsers import ToolParserManager

    for _, name in tool_calls.PARSERS:
        ToolParserManager.get_tool_parser(name)


def test_a_template_is_found_wherever_a_folder_keeps_it(tmp_path: Path) -> None:
    assert tool_calls.template(tmp_path) == ""
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": TOOLS + "<tool_call>"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert tool_calls.parser(tool_calls.template(tmp_path)) == "hermes"
    (tmp_path / "tokenizer_config.json").write_text("[1")
    assert tool_calls.options(tmp_path, ()) == ()
    (tmp_path / "chat_template.jinja").write_text(TOOLS + "[TOOL_CALLS]")
    assert tool_calls.options(tmp_path, ()) == ("--enable-auto-tool-choice", "--tool-call-parser", "mistral")


@pytest.mark.parametrize("given", [("--tool-call-parser", "x"), ("--tool-call-parser=x",)])
def test_a_parser_that_the_user_names_wins(given: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TOOLS + "[TOOL_CALLS]")
    offer = Offer("a", tmp_path, options=given)
    assert offer.words == given and offer.takes_tools
    assert not Offer("a", tmp_path / "none").takes_tools
