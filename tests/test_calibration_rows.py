"""Rows as people store them: lines, datasets, ids beyond the vocabulary, and rows that are left out."""

import json
from pathlib import Path
from typing import Any

import datasets
import pico
import pytest
import yaml
from calibration_helpers import jsonl, make, refused, source, templated, text_of
from localhub_helpers import client
from test_calibration_conversations import ASKED, NO_SYSTEM, TOOL, TOOLS_TEMPLATE, call, dialogue

from hubplugin.checkpoint.model_folder import card_metadata
from hubplugin.compress.calibration import calibration_data
from hubplugin.compress.calibration.self_sampling import sample_self
from hubplugin.errors import CalibrationError
from hubplugin.localhub.server import start
from hubplugin.manifest.source import Source

SYSTEM = {"messages": [{"role": "system", "content": "Be brief."}, ASKED]}
GOOD = dialogue("Warm enough for a walk.")
LINE_ENDS = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")  # of str.splitlines, not of files


# -- lines


@pytest.mark.parametrize("end", LINE_ENDS)
def test_json_lines_end_where_files_say_they_end(tmp_path: Path, end: str) -> None:
    text = f"before{end}after, and on"
    raw = end if ord(end) >= 0x20 else json.dumps(end)[1:-1]  # JSON escapes control characters
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "before{raw}after, and on"}}\n' * 9, encoding="utf-8")
    assert text_of(make(tmp_path, files=["rows.jsonl"])).startswith(text[:12])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_files_of_all_systems_are_read(tmp_path: Path, end: str, start: str, last: bool) -> None:
    lines = [json.dumps({"text": f"line {number} of the file"}) for number in range(3)]
    content = start + end + lines[0] + end + end + " " + end + end.join(lines[1:]) + end * last
    (tmp_path / "rows.jsonl").write_bytes(content.encode())
    (tmp_path / "text.txt").write_bytes((start + f"line 0{end}line 1 and more").encode())
    assert text_of(make(tmp_path, files=["rows.jsonl"], samples=2)) == "line 0 of the file\n\nline 1 of th"
    assert text_of(make(tmp_path, files=["text.txt"])) == "line 0\nline 1 an"


def test_errors_name_the_line_and_the_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n\n" + json.dumps(GOOD) + "\n\n" + json.dumps({"messages": [3]}) + "\n")
    assert refused(tmp_path, files=["rows.jsonl"]).where.endswith("rows.jsonl:5, row 2")


def test_brackets_without_end_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("[" * 100_000)
    assert "is not JSON" in refused(tmp_path, files=["rows.jsonl"]).what


@pytest.mark.parametrize("end", ["\u2028", "\x85"])
def test_lines_of_a_cards_metadata_are_left_to_yaml(tmp_path: Path, end: str) -> None:
    text = f'license: mit\ntitle: "a{end}b"\n'
    (tmp_path / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")
    assert card_metadata(tmp_path) == yaml.safe_load(text)


# -- rows left out


def test_no_row_is_left_out_unless_the_manifest_says_so(tmp_path: Path) -> None:
    name = jsonl(tmp_path, [GOOD, SYSTEM, GOOD])
    error = refused(tmp_path, templated(NO_SYSTEM), files=[name])
    assert error.where.endswith("rows.jsonl:2, row 2") and "System role not supported" in error.what
    assert "`skip:`" in error.fix


@pytest.mark.parametrize(
    "bad",
    [
        SYSTEM,
        {"messages": [3]},
        {"messages": []},
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        {"messages": "[{'role': 'user'}]"},
        {"messages": 5},
        {"text": "a row without the column"},
        {"messages": "half a pair: \ud83d"},
        {"messages": [{"role": "user", "content": "half a pair: \udc00"}]},
    ],
)
@pytest.mark.parametrize("shuffle", [True, False])
def test_rows_that_cannot_be_used_are_left_out_counted_and_reported(tmp_path: Path, bad: Any, shuffle: bool) -> None:
    tokenizer = templated(NO_SYSTEM)
    good, mixed = jsonl(tmp_path, [GOOD] * 5, "good.jsonl"), jsonl(tmp_path, [GOOD, bad, GOOD, bad, *[GOOD] * 3])

    def tokens(name: str, **fields: Any) -> calibration_data.TokenSequences:
        asked = source(files=[name], samples=9, **fields)
        return calibration_data.tokens(asked, tokenizer, tmp_path, None, shuffle=shuffle)

    found = tokens(mixed, skip=2)
    assert found.ids.tolist() == tokens(good).ids.tolist()
    assert found.description.skipped == 2 and "2 of 7 rows left out" in found.description.source
    assert tokens(good, skip=2).description.skipped == 0
    assert "left out" not in tokens(good, skip=2).description.source
    with pytest.raises(CalibrationError) as caught:
        tokens(mixed, skip=1)
    assert caught.value.where.split(": ")[0].endswith("rows.jsonl:4, row 4")
    assert "1 rows were left out before it" in caught.value.what


def test_too_little_text_says_that_rows_were_left_out(tmp_path: Path) -> None:
    error = refused(tmp_path, templated(NO_SYSTEM), files=[jsonl(tmp_path, [SYSTEM, SYSTEM])], skip=5)
    assert "0 tokens" in error.what and "2 of 2 rows left out" in error.what


def test_what_no_row_can_help_is_never_left_out(tmp_path: Path) -> None:
    assert "no chat template" in refused(tmp_path, templated(""), files=[jsonl(tmp_path, [GOOD] * 3)], skip=9).what
    rows = [{"text": "a", "content": "b"}] * 3
    assert "could all be meant" in refused(tmp_path, files=[jsonl(tmp_path, rows)], skip=9).what


def test_the_models_own_samples_have_no_rows_to_leave_out() -> None:
    with pytest.raises(ValueError, match="have no rows"):
        Source.model_validate({"self": True, "skip": 3})
    assert Source.model_validate({"self": True, "skip": 0}).skip == 0


# -- ids and the vocabulary


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer with 60 tokens more than the 288 rows of a pico embedding allow."""
    tokenizer = pico.tokenizer()
    tokenizer.add_tokens([f"<extra {number}>" for number in range(88)])
    return tokenizer


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    "row", [{"text": "a text <extra 87> with a token"}, dialogue("an answer <extra 28>")], ids=["text", "messages"]
)
def test_a_token_beyond_the_embedding_is_named_with_both_sizes(
    tmp_path: Path, pico_folder: Path, larger: Any, shuffle: bool, row: dict[str, Any]
) -> None:
    name = jsonl(tmp_path, [*[{key: "x" * 40 if key == "text" else GOOD["messages"] for key in row}] * 4, row])
    with pytest.raises(CalibrationError) as caught:
        calibration_data.tokens(source(files=[name], samples=12), larger, tmp_path, pico_folder, shuffle=shuffle)
    extra, id_ = ("<extra 87>", 347) if "text" in row else ("<extra 28>", 288)
    assert caught.value.where.endswith("row 5")
    assert f"'{extra}' has the id {id_}" in caught.value.what
    assert "348 tokens" in caught.value.what and "288 rows" in caught.value.what


def test_a_tokenizer_that_only_has_such_tokens_is_used(tmp_path: Path, pico_folder: Path, larger: Any) -> None:
    name = jsonl(tmp_path, [{"text": "a text <extra 27> with the last token of the embedding"}] * 3)
    assert 287 in make(tmp_path, larger, pico_folder, files=[name]).ids


def test_an_eos_beyond_the_embedding_is_found(tmp_path: Path, pico_folder: Path, larger: Any) -> None:
    tokenizer = pico.tokenizer()
    tokenizer.add_tokens([f"<extra {number}>" for number in range(88)])
    tokenizer.eos_token = "<extra 60>"
    files = [jsonl(tmp_path, [{"text": "a text of its own"}] * 3)]
    with pytest.raises(CalibrationError, match="<extra 60>"):
        calibration_data.tokens(source(files=files), tokenizer, tmp_path, pico_folder)


def test_samples_start_with_tokens_that_the_model_has(tmp_path: Path) -> None:
    folder = pico.write(tmp_path / "small", vocab_size=200, eos_token_id=None, pad_token_id=None)
    assert int(sample_self(folder, 60, 2, seed=0).max()) < 200
    tokenizer = pico.tokenizer()
    tokenizer.bos_token = "<|user|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(CalibrationError, match="200 rows"):
        sample_self(folder, 2, 2, seed=0)


# -- rows of datasets


def test_rows_of_a_dataset_are_rendered_counted_and_named(tmp_path: Path) -> None:
    """Parquet as `datasets` writes it, whose structs have all keys of all rows, read through a hub."""
    turns = [
        [ASKED, {"role": "assistant", "content": None, "tool_calls": [call({"city": "Oslo"})]}],
        [ASKED, {"role": "assistant", "content": "Cold.", "tool_calls": None}],
        [{"role": "system", "content": "Be brief."}],
        [ASKED, {"role": "assistant", "content": None, "tool_calls": [call({"day": "Monday"})]}],
    ]
    as_text = datasets.Value("string")
    arguments = {"city": as_text, "day": as_text}
    function = {"name": as_text, "arguments": arguments}
    tool_call = {"id": as_text, "type": as_text, "function": function}
    turn = {"role": as_text, "content": as_text, "tool_calls": datasets.List(tool_call)}
    features = datasets.Features({"data": {"messages": datasets.List(turn), "tools": as_text}})

    def filled(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        wide = json.loads(json.dumps(turns))
        for item in wide:
            item.setdefault("tool_calls", None)
            for made in item["tool_calls"] or []:
                made["function"]["arguments"] = dict.fromkeys(arguments) | made["function"]["arguments"]
        return wide

    rows = [{"data": {"messages": filled(each), "tools": json.dumps([TOOL])}} for each in [*turns, turns[0]]]
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}" + TOOLS_TEMPLATE
    )
    script = f"""
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import pico
    from hubplugin.compress.calibration import calibration_data
    from hubplugin.errors import CalibrationError
    from hubplugin.manifest.source import Source

    api.create_repo("local/calls", repo_type="dataset")
    api.upload_file(path_or_fileobj="rows.parquet", path_in_repo="train.parquet", repo_id="local/calls",
                    repo_type="dataset")
    tokenizer = pico.tokenizer()
    tokenizer.chat_template = {template!r}

    def make(shuffle, **fields):
        fields = {{"dataset": "local/calls", "column": "data.messages", "samples": 1,
                      "sequence_length": 700, **fields}}
        try:
            batch = calibration_data.tokens(Source.model_validate(fields), tokenizer, Path(), None, shuffle=shuffle)
        except CalibrationError as error:
            return error.lines()
        return {{"text": tokenizer.decode(batch.ids[0].tolist()), **batch.description.model_dump()}}

    print(json.dumps({{
        "used": make(False, skip=1), "refused": make(False), "shuffled": make(True), "top": make(False, column="data"),
    }}))
    """
    with start(tmp_path / "hub") as hub:
        said = json.loads(client(hub, tmp_path, script).strip().split("\n")[-1])
    assert "skipped" in said["used"], said
    assert said["used"]["skipped"] == 1
    assert '<call>weather:{"city": "Oslo"}</call>' in said["used"]["text"]
    assert '<call>weather:{"day": "Monday"}</call>' in said["used"]["text"]
    assert said["used"]["text"].startswith("<tool>") and "None" not in said["used"]["text"]
    assert "row 3\n" in said["refused"] and "no system turns" in said["refused"]
    assert "as shuffled by seed 0" in said["shuffled"] and "'data.messages'" in said["top"]
