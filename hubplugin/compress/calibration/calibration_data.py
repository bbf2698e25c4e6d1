"""Where token sequences come from: a Hub dataset, text files, or the base model's own samples. Seeded and hashed.

Knows sources, tokenizers and `datasets`, which no other file imports. Does not know what the tokens are used for:
evaluation, where text keeps its order, calls the same function.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpx2
import torch
from jinja2 import TemplateError
from torch import Tensor

from hubplugin import report
from hubplugin.compress.calibration import self_sampling
from hubplugin.errors import CalibrationError, one_line
from hubplugin.manifest.source import Source

MESSAGE_COLUMNS = ("messages", "conversations")
TEXT_COLUMNS = ("text", "content")
SHUFFLE_BUFFER = 1024  # documents of a streamed dataset that the shuffle chooses from at a time
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names


@dataclass(frozen=True)
class TokenSequences:
    """Token sequences and what anyone needs to make them again."""

    ids: Tensor  # int32 [sequences, tokens], on the CPU
    description: report.Tokens


@dataclass(frozen=True)
class _Document:
    """One text as written, or one conversation as the chat template renders it."""

    text: str
    rendered: bool


@dataclass(frozen=True)
class _Rows:
    """Rows of a dataset or of files, in order of reading, and where they are from."""

    rows: Iterable[dict[str, Any]]
    where: str
    revision: str | None = None


def tokens(source: Source, tokenizer: Any, folder: Path, base: Path | None, *, shuffle: bool = True) -> TokenSequences:
    """`source.samples` sequences of exactly `source.sequence_length` tokens.

    They come from files below `folder`, from a dataset, or from the model in `base`.

    Documents are shuffled by the seed, tokenized with the tokenizer's own BOS, ended with EOS, concatenated and cut;
    conversations are rendered by the chat template and get nothing added. Where files hold more than is needed, the
    seed chooses among all sequences; of a dataset no more is read than is needed. With `shuffle=False` texts keep
    their order, are joined by blank lines and tokenized as one, and the first sequences are taken. Raises
    CalibrationError for data that cannot be read, is ambiguous or too short.
    """
    revision = None
    if source.self_:
        if base is None:
            raise CalibrationError("self: true", "there is no model to sample from", "use `dataset:` or `files:`")
        ids, note = (
            self_sampling.sample_self(base, source.samples, source.sequence_length, source.seed).to(torch.int32),
            "",
        )
    else:
        if tokenizer is None:
            raise CalibrationError(source.describe(), "the model has no tokenizer", "add its tokenizer files")
        rows = _dataset(source, shuffle) if source.dataset else _files(source, folder)
        revision = rows.revision
        documents = _documents(rows, source, tokenizer)
        if shuffle:
            ids, note = _shuffled(documents, source, tokenizer, rows.where)
        else:
            ids, note = _in_order(documents, source, tokenizer, rows.where), "; in order, joined by blank lines"
    description = report.Tokens(
        source=source.describe() + note,
        sequences=ids.shape[0],
        tokens_per_sequence=ids.shape[1],
        seed=source.seed,
        sha256=sha256_of_ids(ids),
        dataset=source.dataset,
        revision=revision,
    )
    return TokenSequences(ids.contiguous(), description)


def sha256_of_ids(ids: Tensor) -> str:
    """Hex digest of token ids [sequences, tokens] as little-endian int32, row by row."""
    return hashlib.sha256(ids.to(torch.int32).contiguous().numpy().astype("<i4").tobytes()).hexdigest()


# -- from documents to sequences


def _shuffled(documents: Iterator[_Document], source: Source, tokenizer: Any, where: str) -> tuple[Tensor, str]:
    """int32 [samples, tokens] chosen by the seed, and a note on how documents were joined."""
    if not source.dataset:  # files are read in full, so the shuffle chooses among all documents
        shuffled = list(documents)
        random.Random(source.seed).shuffle(shuffled)
        documents = iter(shuffled)
    needed = source.samples * source.sequence_length
    stream: list[int] = []
    rendered = False
    for document in documents:
        if not document.text.strip():
            continue
        rendered = document.rendered
        ids = tokenizer(document.text, add_special_tokens=not rendered, verbose=False)["input_ids"]
        if not rendered and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids = [*ids, tokenizer.eos_token_id]
        stream.extend(ids)
        if source.dataset and len(stream) >= needed:
            break
    windows = _cut(stream, source, where)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(source.seed))
    note = "chat template applied" if rendered else "documents joined with EOS"
    return windows[order[: source.samples]], f"; {note}"


def _in_order(documents: Iterator[_Document], source: Source, tokenizer: Any, where: str) -> Tensor:
    """int32 [samples, tokens]: the first windows of all text tokenized as one. Reads until the tokens suffice."""
    needed = source.samples * source.sequence_length
    characters = 8 * needed  # a first guess, which only decides how often text is tokenized
    texts: list[str] = []
    read, separator = 0, "\n\n"
    ended = False
    while True:
        for document in documents:
            separator = "" if document.rendered else "\n\n"
            texts.append(document.text)
            read += len(document.text)
            if read >= characters:
                break
        else:
            ended = True
        ids = tokenizer(separator.join(texts), add_special_tokens=separator != "", verbose=False)["input_ids"]
        if ended or len(ids) > needed:  # one more than needed: the last token may depend on text not read yet
            return _cut(ids, source, where)[: source.samples]
        characters *= 2


def _cut(ids: list[int], source: Source, where: str) -> Tensor:
    """int32 [windows, tokens]; the rest is dropped. Raises CalibrationError where there are too few windows."""
    windows = len(ids) // source.sequence_length
    if windows < source.samples:
        needed = source.samples * source.sequence_length
        raise CalibrationError(
            where,
            f"holds {len(ids)} tokens, {needed} are needed ({source.samples} sequences of {source.sequence_length})",
            f"use more text, or `samples: {windows}`"
            if windows
            else f"use more text, or a smaller `{source.length_key}`",
        )
    return torch.tensor(ids[: windows * source.sequence_length], dtype=torch.int32).reshape(
        windows, source.sequence_length
    )


# -- from sources to documents


def _documents(source_rows: _Rows, source: Source, tokenizer: Any) -> Iterator[_Document]:
    """The text of every row, from the one column that holds it."""
    column = source.column
    for number, row in enumerate(source_rows.rows, start=1):
        where = f"{source_rows.where}, row {number}"
        column = column or _column(row, source_rows.where)
        if column not in row:
            raise CalibrationError(where, f"has no column {column!r}", f"set `column:` to one of {sorted(row)}")
        value = row[column]
        if isinstance(value, list):
            yield _Document(_render(value, tokenizer, where), rendered=True)
        elif isinstance(value, str):
            yield _Document(value, rendered=False)
        elif value is not None:
            raise CalibrationError(
                f"{where}: {column}", f"is {type(value).__name__}", "name a column of texts or of messages"
            )


def _column(row: dict[str, Any], where: str) -> str:
    """The column of messages or of text. Raises CalibrationError where none or several could be meant."""
    known = [name for name in (*MESSAGE_COLUMNS, *TEXT_COLUMNS) if name in row]
    if len(known) == 1:
        return known[0]
    what = f"columns {known} could all be meant" if known else f"none of {sorted(row)} is a known name for text"
    raise CalibrationError(where, what, "name the column with `column:`")


def _render(messages: list[Any], tokenizer: Any, where: str) -> str:
    """A conversation as the model was trained to see it."""
    if not getattr(tokenizer, "chat_template", None):
        raise CalibrationError(
            where, "holds messages, and the model has no chat template", "use plain text, or a chat model"
        )
    try:
        turns = [
            {"role": ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} if "from" in turn else turn
            for turn in messages
        ]
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(
            where, f"does not fit the chat template: {one_line(error)}", "mend the row or use other data"
        ) from error


def _dataset(source: Source, shuffle: bool) -> _Rows:
    """Stream a dataset: rows are read on demand, at most one shuffle buffer ahead."""
    import datasets

    where = source.describe()
    shuffling = {"seed": source.seed, "buffer_size": SHUFFLE_BUFFER}
    try:
        builder = datasets.load_dataset_builder(source.dataset, source.config, revision=source.revision)
        stream = builder.as_streaming_dataset(split=source.split)
        rows = stream.shuffle(**shuffling) if shuffle else stream
    except _DATA_ERRORS as error:
        _unreadable(error, where)
    commit = str(builder.hash or "")
    return _Rows(_guarded(rows, where), where, commit if re.fullmatch("[0-9a-f]{40}", commit) else source.revision)


def _guarded(rows: Iterable[dict[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """The rows, with errors of reading them raised as CalibrationError."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except _DATA_ERRORS as error:
            _unreadable(error, where)
        yield row


# datasets' own errors derive from these where they are about data, the Hub or the network
_DATA_ERRORS = (OSError, ValueError, RuntimeError, KeyError, httpx2.HTTPError)


def _unreadable(error: Exception, where: str) -> NoReturn:
    fix = "check its name, `config:` and `split:`, the network and HF_TOKEN"
    raise CalibrationError(where, f"cannot be read: {one_line(error)}", fix) from error


def _files(source: Source, folder: Path) -> _Rows:
    """Rows of local files: a text file is one row, a .jsonl file has one per line."""
    rows: list[dict[str, Any]] = []
    for name in source.files or ():
        path = folder / name
        if path.suffix not in (".txt", ".md", ".jsonl"):
            raise CalibrationError(str(path), "is not .txt, .md or .jsonl", "convert it to one of these")
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(str(path), one_line(error), "give UTF-8 files, relative to the manifest") from error
        if path.suffix != ".jsonl":
            rows.append({source.column or "text": text})
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise CalibrationError(
                    f"{path}:{number}", f"is not JSON: {one_line(error)}", "mend the line"
                ) from error
            if isinstance(row, dict):
                rows.append(row)
            elif row is not None:
                raise CalibrationError(f"{path}:{number}", "is no JSON object", 'write {"text": ...} on each line')
    return _Rows(rows, source.describe())
