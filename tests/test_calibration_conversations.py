"""Conversations as people store them: parts, tools, JSON strings and nested columns, rendered as vLLM renders them."""

import copy
import json
from pathlib import Path
from typing import Any

import pico
import pytest
from calibration_helpers import make, refused, rendered, templated

from hubplugin.compress.calibration.content_format import takes_parts

# one text for all contents, tool calls and tools as JSON; `{}` of a mapping would be Python's notation
TOOLS_TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function.name }}:{{ call.function.arguments | tojson }}"
    "</call>{% endfor %}<|end|>{% endfor %}"
)
# content as a list of parts, with its own separator between them
PARTS_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}[{{ part.text }}]{% endfor %}{% endif %}<|end|>{% endfor %}"
)
NO_SYSTEM = (
    "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": SCHEMA}}
ASKED = {"role": "user", "content": "How warm is it in Oslo today?"}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def dialogue(answer: Any) -> dict[str, Any]:
    return {"messages": [ASKED, {"role": "assistant", "content": answer}]}


# -- contents


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "one\ntwo"),
        ([{"type": "text", "text": "one", "image_url": None}], "one"),  # as Arrow fills in the keys of other parts
        (["one", {"type": "output_text", "text": "two"}, {"type": "refusal", "refusal": "three"}], "one\ntwo\nthree"),
        ([{"type": "text", "text": None}, {"type": "thinking", "thinking": "hm"}], "hm"),
        ([], ""),
        (None, ""),
        ("plain", "plain"),
        ("None of [these] {is} a part", "None of [these] {is} a part"),
    ],
)
def test_text_parts_are_joined_by_line_feeds_and_nothing_stands_for_no_content(
    tmp_path: Path, answer: Any, expected: str
) -> None:
    text = rendered(tmp_path, dialogue(answer))
    assert text == f"<|user|>{ASKED['content']}<|end|><|assistant|>{expected}<|end|>"


def test_a_template_that_loops_over_parts_gets_parts(tmp_path: Path) -> None:
    answer = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    text = rendered(tmp_path, dialogue(answer), templated(PARTS_TEMPLATE))
    assert text == f"<|user|>[{ASKED['content']}]<|end|><|assistant|>[one][two]<|end|>"
    assert rendered(tmp_path, dialogue(None), templated(PARTS_TEMPLATE)).endswith("<|assistant|><|end|>")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "'image_url'"),
        ([{"type": "text", "text": "see"}, {"type": "image"}], "'image'"),
        ([{"type": "input_audio", "input_audio": {}}], "'input_audio'"),
        ([{"text": "no type"}], "without a type"),
        ([["nested"]], "without a type"),
        ([{"type": "text", "text": 3}], "is int"),
        ({"type": "text", "text": "no list"}, "is dict"),
        (7, "is int"),
        (True, "is bool"),
    ],
)
def test_what_is_no_text_is_refused_with_the_number_of_row_and_turn(tmp_path: Path, content: Any, said: str) -> None:
    rows = [dialogue("good"), {"messages": [ASKED, {"role": "user", "content": content}]}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    error = refused(tmp_path, files=["rows.jsonl"])
    assert error.where.endswith("rows.jsonl:2, row 2")
    assert "turn 2" in error.what and said in error.what and "skip" in error.fix


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m }}{% endfor %}",
        "{% for m in messages %}{{ m.role ~ m }}{% endfor %}",
        "{% for m in messages %}{{ '%s' | format(m) }}{% endfor %}",
        "{{ messages }}",
        "{{ messages | string }}",
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}"
        "{% endfor %}",
        "{{ tools }}",
        "{% for m in messages %}{% for part in m.content %}{{ part }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_would_print_lists_or_mappings_is_refused(tmp_path: Path, template: str) -> None:
    row = {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call({"city": "Oslo"})]}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "tools": [TOOL]}))
    error = refused(tmp_path, templated(template), files=["rows.jsonl"])
    assert "as Python writes it" in error.what and "row 1" in error.where


# -- tools


@pytest.mark.parametrize("arguments", [{"city": "Oslo"}, '{"city": "Oslo"}', ' { "city" : "Oslo" } '])
@pytest.mark.parametrize("stored", [list, json.dumps])
def test_tool_calls_with_null_content_show_their_arguments_as_json(tmp_path: Path, arguments: Any, stored: Any) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": stored([call(arguments)])}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "-3 °C"}]}
    text = rendered(tmp_path, {"messages": [ASKED, turn, result]}, templated(TOOLS_TEMPLATE))
    assert '<|assistant|><call>weather:{"city": "Oslo"}</call><|end|><|tool|>-3 °C<|end|>' in text


@pytest.mark.parametrize("arguments", [None, "", "not JSON", "[]", "42"])
def test_arguments_that_are_no_mapping_become_an_empty_one_as_in_vllm(tmp_path: Path, arguments: Any) -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [call(arguments)]}
    assert "<call>weather:{}</call>" in rendered(tmp_path, {"messages": [ASKED, turn]}, templated(TOOLS_TEMPLATE))


@pytest.mark.parametrize(
    "tools",
    [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], json.dumps(TOOL), [TOOL["function"]], TOOL],
    ids=["list", "json of a list", "list of json", "json of one", "bare function", "one"],
)
def test_a_tools_column_reaches_the_template(tmp_path: Path, tools: Any) -> None:
    row = {**dialogue("warm enough"), "tools": tools}
    text = rendered(tmp_path, row, templated({"default": pico.TEMPLATE, "tool_use": TOOLS_TEMPLATE}))
    assert text.startswith(f"<tool>{json.dumps(TOOL)}</tool><|user|>")


@pytest.mark.parametrize("tools", [None, [], "", "null", "[]"])
def test_no_tools_select_the_template_without(tmp_path: Path, tools: Any) -> None:
    tokenizer = templated({"default": pico.TEMPLATE, "tool_use": "wrong"})
    assert rendered(tmp_path, {**dialogue("warm"), "tools": tools}, tokenizer).startswith("<|user|>How warm")


@pytest.mark.parametrize("tools", [["weather"], "weather", [3], [{"type": "function"}], 5])
def test_tools_that_are_no_schemas_are_refused(tmp_path: Path, tools: Any) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**dialogue("warm"), "tools": tools}))
    assert "tools" in refused(tmp_path, files=["rows.jsonl"]).what


@pytest.mark.parametrize("calls", [["weather"], [{"type": "function"}], 5, [{"function": {"arguments": "{}"}}]])
def test_tool_calls_that_name_no_function_are_refused(tmp_path: Path, calls: Any) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": calls}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [ASKED, turn]}))
    assert "turn 2" in refused(tmp_path, files=["rows.jsonl"]).what


# -- where conversations are stored


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": json.dumps([ASKED])}, None),
        ({"conversations": json.dumps([ASKED])}, None),
        ({"chat": json.dumps([ASKED])}, "chat"),
        ({"data": {"messages": [ASKED]}}, "data.messages"),
        ({"data": {"inner": {"chat": json.dumps([ASKED])}}}, "data.inner.chat"),
        ({"data": json.dumps({"messages": [ASKED]})}, "data.messages"),
        ({"data.messages": [ASKED], "data": {"messages": [3]}}, "data.messages"),
        ({"messages": [json.dumps(ASKED)]}, None),
        ({"conversations": [{"from": "human", "value": ASKED["content"]}]}, None),
        ({"conversations": [{"from": "user", "value": [{"type": "text", "text": ASKED["content"]}]}]}, None),
        ({"messages": [{"role": None, "content": None, "from": "human", "value": ASKED["content"]}]}, None),
    ],
)
def test_conversations_are_found_where_people_store_them(tmp_path: Path, row: Any, column: str | None) -> None:
    assert rendered(tmp_path, row, column=column) == f"<|user|>{ASKED['content']}<|end|>"


def test_sharegpt_turns_may_call_tools(tmp_path: Path) -> None:
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    turns = [
        {"from": "human", "value": ASKED["content"]},
        {"from": "function_call", "value": json.dumps(function)},
        {"from": "observation", "value": "-3 °C"},
        {"from": "gpt", "value": "Cold."},
    ]
    text = rendered(tmp_path, {"conversations": turns, "tools": json.dumps([TOOL])}, templated(TOOLS_TEMPLATE))
    assert text.endswith(
        '<|assistant|><call>weather:{"city": "Oslo"}</call><|end|><|tool|>-3 °C<|end|><|assistant|>Cold.<|end|>'
    )


def test_the_tools_beside_nested_messages_are_used(tmp_path: Path) -> None:
    row = {"data": {**dialogue("warm"), "tools": [TOOL]}, "tools": ["of no use"]}
    text = rendered(tmp_path, row, templated(TOOLS_TEMPLATE), column="data.messages")
    assert text.startswith(f"<tool>{json.dumps(TOOL)}</tool>")


@pytest.mark.parametrize("quote", ["[{'role': 'user', 'content': 'hi'}]", "[ {'from': 'human', 'value': None}]"])
@pytest.mark.parametrize("column", ["messages", "text"])
def test_conversations_in_pythons_notation_are_refused(tmp_path: Path, quote: str, column: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({column: quote}))
    assert "Python's notation" in refused(tmp_path, files=["rows.jsonl"]).what


@pytest.mark.parametrize("text", ["[1] A footnote, and more text", '["a", "list"] of words', "[] and so on, at length"])
def test_text_that_only_looks_like_json_stays_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps({"text": text})] * 9))
    batch = make(tmp_path, files=["rows.jsonl"])
    assert pico.tokenizer().decode(batch.ids[0].tolist()) == text[:16]


def test_a_text_file_is_text_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "chat.txt").write_text(json.dumps([ASKED] * 3))
    assert pico.tokenizer().decode(make(tmp_path, files=["chat.txt"]).ids[0].tolist()) == '[{"role": "user"'


def test_columns_that_hold_mappings_name_what_is_in_them(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"data": {"messages": [ASKED]}, "id": 1}))
    error = refused(tmp_path, files=["rows.jsonl"], column="data")
    assert "is dict" in error.what and "'data.messages'" in error.fix
    assert "'data.messages'" in refused(tmp_path, files=["rows.jsonl"]).what
    assert "'data.messages'" in refused(tmp_path, files=["rows.jsonl"], column="data.text").fix


# -- templates


def test_a_system_turn_under_a_template_without_one_is_refused_with_the_templates_reason(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [{"messages": [ASKED]}, {"messages": [system]}])))
    error = refused(tmp_path, templated(NO_SYSTEM), files=["rows.jsonl"])
    assert "System role not supported" in error.what and "row 2" in error.where and "`skip:`" in error.fix


def test_developer_turns_become_the_system_turn_where_a_template_does_not_know_them(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "A."}, ASKED, {"role": "developer", "content": "B.", "tools": None}]
    assert rendered(tmp_path, {"messages": turns}).startswith("<|system|>A.\n\nB.<|end|><|user|>How")
    knows = templated(pico.TEMPLATE + "{# 'developer' #}")
    assert rendered(tmp_path, {"messages": turns}, knows).endswith("<|developer|>B.<|end|>")


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%d %b %Y') }}|{{ messages[0].content }}",
        "{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') -%}"
        "{{ today }}|{{ messages[0].content }}",
    ],
)
def test_a_template_that_prints_the_date_prints_the_same_one_every_day(tmp_path: Path, template: str) -> None:
    assert rendered(tmp_path, dialogue("x"), templated(template)).startswith("26 Jul 2024|")


def test_reasoning_is_given_under_both_names(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.reasoning }}|{{ m.reasoning_content }}|{{ m.content }}{% endfor %}"
    for key in ("reasoning", "reasoning_content"):
        turn = {"role": "assistant", "content": "An answer that is long enough.", key: "Thought."}
        assert rendered(tmp_path, {"messages": [turn]}, templated(template)).startswith("Thought.|Thought.|An")


@pytest.mark.parametrize("template", ["{% for m in messages %}", {"tool_use": "x"}])
def test_a_template_that_cannot_be_used_ends_the_run_whatever_may_be_left_out(tmp_path: Path, template: Any) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(dialogue("x"))] * 3))
    assert "chat template cannot be used" in refused(tmp_path, templated(template), files=["rows.jsonl"], skip=99).what


# loops of templates, and whether vLLM hands such a template its contents as lists of parts
PARTS = "{% for part in CONTENT %}{{ part.text }}{% endfor %}"
MACRO = "{% macro shown(content, other) %}" + PARTS.replace("CONTENT", "content") + "{% endmacro %}"
FORMATS = [
    ("{% for m in messages %}" + PARTS.replace("CONTENT", "m.content") + "{% endfor %}", True),
    ("{% for m in messages[1:] %}" + PARTS.replace("CONTENT", "m['content'] | list") + "{% endfor %}", True),
    ("{% set rest = messages %}{% for m in rest %}" + PARTS.replace("CONTENT", "m.content") + "{% endfor %}", True),
    (
        "{% for m in messages %}{% set content = m.content %}" + PARTS.replace("CONTENT", "content") + "{% endfor %}",
        True,
    ),
    ("{% for m in messages %}{% set c = m.content %}" + PARTS.replace("CONTENT", "c") + "{% endfor %}", False),
    (MACRO + "{% for m in messages %}{{ shown(m.content) }}{% endfor %}", True),
    (MACRO + "{% for m in messages %}{{ shown(other=1, content=m.content) }}{% endfor %}", True),
    (MACRO + "{% for m in messages %}{{ shown('', m.content) }}{{ m.content }}{% endfor %}", False),
    ("{% for m in messages %}{{ m.content }}{% endfor %}", False),
    ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}", False),
    ("{% for number, m in messages | items %}" + PARTS.replace("CONTENT", "m.content") + "{% endfor %}", False),
    ("{% for m in messages %}{% for a, b in m.content %}{{ a }}{% endfor %}{% endfor %}", False),
    ("{% for m in messages %}" + PARTS.replace("CONTENT", "m.content.split()") + "{% endfor %}", False),
]


@pytest.mark.parametrize(("template", "parts"), FORMATS)
def test_whether_a_template_takes_parts_is_told_from_its_loops(template: str, parts: bool) -> None:
    assert takes_parts(template) is parts


@pytest.mark.serve
def test_the_rendered_text_is_vllms_own(tmp_path: Path) -> None:
    """The conversation through the request that vLLM's server reads, its chat utils and its template call."""
    from vllm.config import ModelConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.renderers import chat_utils, hf

    for template, parts in FORMATS:
        assert hf._detect_content_format(template, default="string") == ("openai" if parts else "string"), template
    model = ModelConfig(model=str(pico.write(tmp_path / "base")), dtype="float32", max_model_len=256)
    turns = [
        {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        ASKED,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call('{"city": "Oslo"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "-3"}]},
        {"role": "assistant", "content": "Cold.", "tool_calls": []},
        {"role": "developer", "content": "Stay brief."},
        {"role": "user", "content": ["a", {"type": "text", "text": "b"}], "name": "Ada"},
    ]
    bare = {"type": "function", "function": {"name": "stop"}}
    for template in (TOOLS_TEMPLATE, PARTS_TEMPLATE, pico.TEMPLATE):
        for tools in (None, [TOOL, bare]):
            asked = {"model": "m", "messages": copy.deepcopy(turns)} | ({"tools": tools} if tools else {})
            request = ChatCompletionRequest.model_validate(asked)
            form = hf._detect_content_format(template, default="string")
            read, _, _ = chat_utils.parse_chat_messages(request.messages, model, form)
            schemas = [tool.model_dump() for tool in request.tools] if request.tools else None
            tokenizer = templated(template)
            expected = hf.safe_apply_chat_template(model, tokenizer, read, tools=schemas, tokenize=False)
            assert rendered(tmp_path, {"messages": turns, "tools": tools}, tokenizer) == expected
