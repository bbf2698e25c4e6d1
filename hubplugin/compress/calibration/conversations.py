"""Conversations as people store them, brought into the form in which vLLM hands them to a chat template.

That form is what vLLM 0.32 makes of a request (chat utils of its renderers, and its protocol): parts of content joined
or listed, arguments of tool calls as mappings, schemas of tools complete. Knows turns and tools; each fault is a
ValueError with the number of the turn. Knows no tokenizer, no template and no source.
"""

import json
from collections.abc import Mapping
from typing import Any

Turn = dict[str, Any]

# ShareGPT's names, with those that LLaMA-Factory adds for tools
ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}


def turns_in(text: str) -> list[Any] | None:
    """The turns of a conversation that is stored as JSON; None where the text is just text.

    Raises ValueError for a conversation in Python's notation, as str() of a list would leave it.
    """
    start = text.lstrip()[:1]
    values = _from_json(text) if start == "[" else None
    if isinstance(values, list) and values and all(_is_turn(value) for value in values):
        return values
    opening = "".join(text[:80].split())
    if values is None and any(opening.startswith(f"[{{'{key}':") for key in ("role", "from", "content", "value")):
        raise ValueError("it is a conversation in Python's notation, not in JSON")
    return None


def read_turns(values: list[Any], *, parts: bool, drop_nulls: bool) -> list[Turn]:
    """Every turn as vLLM would hand it to a template, which takes content as a list of parts or as one text.

    `drop_nulls`: keys without a value in tool calls are no one's wish; Arrow tables fill them in.
    """
    return [_turn(value, number, parts, drop_nulls) for number, value in enumerate(values, start=1)]


def read_tools(value: Any, *, drop_nulls: bool) -> list[dict[str, Any]] | None:
    """The schemas of a row's tools, complete as in a request to vLLM; None where it has none."""
    schemas = _parsed(value, "tools")
    schemas = [schemas] if isinstance(schemas, Mapping) else schemas
    if not schemas:
        return None
    if not isinstance(schemas, list):
        raise ValueError(f"`tools` is {type(schemas).__name__}, not a list of schemas")
    return [_schema(_parsed(schema, "tools"), drop_nulls) for schema in schemas]


def without_developer(turns: list[Turn]) -> list[Turn]:
    """For templates that do not know the role: developer turns become part of one system turn at the start."""
    renamed = [
        {**{key: item for key, item in turn.items() if key != "tools"}, "role": "system"}
        if turn["role"] == "developer"
        else turn
        for turn in turns
    ]
    systems = [turn for turn in renamed if turn["role"] == "system"]
    if len(systems) <= 1 and renamed[:1] == systems:
        return renamed
    contents = [turn["content"] for turn in systems]
    texts = [
        content if isinstance(content, str) else "\n".join(part["text"] for part in content) for content in contents
    ]
    merged = {"role": "system", "content": "\n\n".join(filter(None, texts))}
    return [merged, *(turn for turn in renamed if turn["role"] != "system")]


# -- one turn


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _turn(value: Any, number: int, parts: bool, drop_nulls: bool) -> Turn:
    where = f"turn {number}"
    value = _from_json(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is no mapping of a role and a content")
    given = value["from"] if value.get("role") is None and "from" in value else value.get("role")
    if not isinstance(given, str):
        raise ValueError(f"{where} has no role")
    if not {"content", "value", "tool_calls"} & set(value):
        raise ValueError(f"{where} has no content")
    role = ROLES.get(given, given) if "from" in value else given
    content, calls = value["content"] if value.get("content") is not None else value.get("value"), None
    if role == "assistant":
        calls = value.get("tool_calls")
        if "from" in value and given == "function_call":
            content, calls = None, content
    texts = _texts(content, where)
    # a tool's result is one text even where other contents are lists of parts: few templates expect more
    listed = parts and role != "tool"
    turn: Turn = {"role": role, "content": [{"type": "text", "text": text} for text in texts]}
    return (turn if listed else {**turn, "content": "\n".join(texts)}) | _more(value, role, calls, where, drop_nulls)


def _more(value: Mapping[str, Any], role: str, calls: Any, where: str, drop_nulls: bool) -> Turn:
    """What a turn of this role has beside its content."""
    found: Turn = {}
    if read := _tool_calls(calls, where, drop_nulls):
        found["tool_calls"] = read
    reasoning = value.get("reasoning") if value.get("reasoning") is not None else value.get("reasoning_content")
    if role == "assistant" and reasoning is not None:
        if not isinstance(reasoning, str):
            raise ValueError(f"{where} has reasoning that is {type(reasoning).__name__}, not text")
        found |= {"reasoning": reasoning, "reasoning_content": reasoning}
    if role == "tool" and value.get("tool_call_id") is not None:
        found["tool_call_id"] = value["tool_call_id"]
    if isinstance(value.get("name"), str):
        found["name"] = value["name"]
    if role == "developer":
        found["tools"] = read_tools(value.get("tools"), drop_nulls=drop_nulls)
    return found


def _texts(content: Any, where: str) -> list[str]:
    """The texts of a content: a text, a list of text parts, or nothing, as in turns that only call tools."""
    if content is None:
        return []
    if not isinstance(content, str | list):
        raise ValueError(f"{where} has a content that is {type(content).__name__}, not text")
    texts = [_text(part, where) for part in ([content] if isinstance(content, str) else content)]
    return [text for text in texts if text is not None]


def _text(part: Any, where: str) -> str | None:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in TEXT_PARTS:
        what = f"a part of type {kind!r}" if kind else "a part without a type"
        raise ValueError(f"{where} holds {what}, and only text can be used")
    text = part.get(TEXT_PARTS[kind])
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where} holds a text part whose text is {type(text).__name__}")
    return text


# -- tools


def _tool_calls(calls: Any, where: str, drop_nulls: bool) -> list[dict[str, Any]]:
    calls = _parsed(calls, f"{where}: tool_calls")
    calls = [calls] if isinstance(calls, Mapping) else calls or []
    if not isinstance(calls, list):
        raise ValueError(f"{where} has tool calls that are {type(calls).__name__}, not a list")
    return [_tool_call(_parsed(call, f"{where}: tool_calls"), where, drop_nulls) for call in calls]


def _tool_call(call: Any, where: str, drop_nulls: bool) -> dict[str, Any]:
    """A call of a function, with its arguments as a mapping; `{}` stands for such that are none, as in vLLM."""
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        call = {"function": call}  # a bare call, as ShareGPT stores it
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where} has a tool call that names no function")
    arguments = function.get("arguments")
    arguments = _from_json(arguments) if isinstance(arguments, str) else arguments
    arguments = arguments if isinstance(arguments, Mapping) else {}
    kept = {"id": call["id"]} if call.get("id") is not None else {}
    named = {"name": function["name"], "arguments": _without_nulls(arguments) if drop_nulls else dict(arguments)}
    return {**kept, "type": "function", "function": named}


def _schema(schema: Any, drop_nulls: bool) -> dict[str, Any]:
    """A tool's schema with the keys, and in the order, that vLLM gives it; a bare function is wrapped."""
    function = schema.get("function", schema) if isinstance(schema, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError("`tools` holds something that is no schema of a function")
    parameters = _parsed(function.get("parameters"), "tools")
    kept = {"strict": function["strict"]} if function.get("strict") is not None else {}
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description"),
            "parameters": _without_nulls(parameters) if drop_nulls else parameters,
            **kept,
        },
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _parsed(value: Any, what: str) -> Any:
    """A value that may be stored as JSON. Raises ValueError for a text that is none."""
    if not isinstance(value, str) or not value.strip():
        return value or None
    parsed = _from_json(value)
    if parsed is None and value.strip() != "null":
        raise ValueError(f"{what}: a text is not JSON")
    return parsed


def _from_json(text: str) -> Any:
    """The value of a JSON text; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
