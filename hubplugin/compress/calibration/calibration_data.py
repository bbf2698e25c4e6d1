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
from torch import Tensor

from hubplugin import report
from hubplugin.compress.calibration import self_sampling, vocabulary
from hubplugin.compress.calibration.documents import Document, Documents, Row
from hubplugin.errors import CalibrationError, one_line
from hubplugin.manifest.source import Source

SHUFFLE_BUFFER = 1024  # documents of a streamed dataset that the shuffle chooses from at a time


@dataclass(frozen=True)
class TokenSequences:
    """Token sequences and what anyone needs to make them again."""

    ids: Tensor  # int32 [sequences, tokens], on the CPU
    description: report.Tokens


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset or of files, in order of reading, and the commit they are from."""

    rows: Iterable[Row]
    revision: str | None = None


def tokens(source: Source, tokenizer: Any, folder: Path, base: Path | None, *, shuffle: bool = True) -> TokenSequences:
    """`source.samples` sequences of exactly `source.sequence_length` tokens.

    They come from files below `folder`, from a dataset, or from the model in `base`.

    Documents are shuffled by the seed, tokenized with the tokenizer's own BOS, ended with EOS, concatenated and cut;
    conversations are rendered by the chat template and get nothing added. Where files hold more than is needed, the
    seed chooses among all sequences; of a dataset no more is read than is needed. With `shuffle=False` texts keep
    their order, are joined by blank lines and tokenized as one, and the first sequences are taken. Raises
    CalibrationError for data that cannot be read, is ambiguous or too short, for more unusable rows than
    `source.skip`, and for tokens that the model in `base` has no embedding for.
    """
    revision, skipped = None, 0
    if source.self_:
        if base is None:
            raise CalibrationError("self: true", "there is no model to sample from", "use `dataset:` or `files:`")
        ids = self_sampling.sample_self(base, source.samples, source.sequence_length, source.seed).to(torch.int32)
        note = ""
    else:
        if tokenizer is None:
            raise CalibrationError(source.describe(), "the model has no tokenizer", "add its tokenizer files")
        read = rows(source, folder, shuffle)
        documents = Documents(read.rows, source, tokenizer)
        encode = _Encoder(tokenizer, vocabulary.rows_of(base) if base else None)
        if shuffle:
            ids, note = _shuffled(documents, source, encode)
        else:
            ids, note = _in_order(documents, source, encode), "; in order, joined by blank lines"
        revision, skipped, note = read.revision, documents.skipped, note + documents.note
    description = report.Tokens(
        source=source.describe() + note,
        sequences=ids.shape[0],
        tokens_per_sequence=ids.shape[1],
        seed=source.seed,
        sha256=sha256_of_ids(ids),
        dataset=source.dataset,
        revision=revision,
        skipped=skipped,
    )
    return TokenSequences(ids.contiguous(), description)


def rows(source: Source, folder: Path, shuffle: bool) -> Rows:
    """The rows of a dataset, shuffled if so asked for, or of files below `folder`. Raises CalibrationError."""
    return _dataset(source, shuffle) if source.dataset else _files(source, folder)


def sha256_of_ids(ids: Tensor) -> str:
    """Hex digest of token ids [sequences, tokens] as little-endian int32, row by row."""
    return hashlib.sha256(ids.to(torch.int32).contiguous().numpy().astype("<i4").tobytes()).hexdigest()


# -- from documents to sequences


@dataclass(frozen=True)
class _Encoder:
    """A tokenizer whose ids are compared with the rows of the model's embedding, where these are known."""

    tokenizer: Any
    rows: int | None

    def ids(self, text: str, special: bool) -> list[int]:
        """The ids of a text, with the tokenizer's own BOS if `special`."""
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    def document(self, document: Document) -> list[int]:
        """The ids of a document that stands by itself: a text ends with EOS, a conversation as it was rendered."""
        ids, eos = self.ids(document.text, not document.rendered), self.tokenizer.eos_token_id
        if not document.rendered and eos is not None and ids[-1:] != [eos]:
            ids.append(eos)
        vocabulary.check(ids, self.tokenizer, self.rows, document.where)
        return ids

    def joined(self, documents: list[Document], where: str) -> list[int]:
        """The ids of documents as one text: conversations follow each other, texts are joined by blank lines."""
        separator = "" if documents and documents[-1].rendered else "\n\n"
        ids = self.ids(separator.join(document.text for document in documents), separator != "")
        unknown = vocabulary.first_unknown(ids, self.rows)
        if unknown is not None:
            name = self.tokenizer.decode([unknown])
            where = next((document.where for document in documents if name in document.text), where)
        vocabulary.check(ids, self.tokenizer, self.rows, where)
        return ids


def _shuffled(documents: Documents, source: Source, encode: _Encoder) -> tuple[Tensor, str]:
    """int32 [samples, tokens] chosen by the seed, and a note on how documents were joined."""
    chosen: Iterable[Document] = documents
    if not source.dataset:  # files are read in full, so the shuffle chooses among all documents
        chosen = list(documents)
        random.Random(source.seed).shuffle(chosen)
    needed = source.samples * source.sequence_length
    stream: list[int] = []
    rendered = False
    for document in chosen:
        if not document.text.strip():
            continue
        rendered = document.rendered
        stream.extend(encode.document(document))
        if source.dataset and len(stream) >= needed:
            break
    windows = _cut(stream, source, documents)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(source.seed))
    note = "chat template applied" if rendered else "documents joined with EOS"
    return windows[order[: source.samples]], f"; {note}"


def _in_order(documents: Documents, source: Source, encode: _Encoder) -> Tensor:
    """int32 [samples, tokens]: the first windows of all text tokenized as one. Reads until the tokens suffice."""
    needed = source.samples * source.sequence_length
    characters = 8 * needed  # a first guess, which only decides how often text is tokenized
    read: list[Document] = []
    waiting, length, ended = iter(documents), 0, False
    while True:
        for document in waiting:
            read.append(document)
            length += len(document.text)
            if length >= characters:
                break
        else:
            ended = True
        ids = encode.joined(read, documents.where)
        if ended or len(ids) > needed:  # one more than needed: the last token may depend on text not read yet
            return _cut(ids, source, documents)[: source.samples]
        characters *= 2


def _cut(ids: list[int], source: Source, documents: Documents) -> Tensor:
    """int32 [windows, tokens]; the rest is dropped. Raises CalibrationError where there are too few windows."""
    windows = len(ids) // source.sequence_length
    if windows < source.samples:
        needed = source.samples * source.sequence_length
        raise CalibrationError(
            documents.where,
            f"holds {len(ids)} tokens, {needed} are needed ({source.samples} sequences of {source.sequence_length})"
            + documents.note,
            f"use more text, or `samples: {windows}`"
            if windows
            else f"use more text, or a smaller `{source.length_key}`",
        )
    return torch.tensor(ids[: windows * source.sequence_length], dtype=torch.int32).reshape(
        windows, source.sequence_length
    )


# -- from sources to rows


def _dataset(source: Source, shuffle: bool) -> Rows:
    """Stream a dataset: rows are read on demand, at most one shuffle buffer ahead."""
    import datasets

    where = source.describe()
    shuffling = {"seed": source.seed, "buffer_size": SHUFFLE_BUFFER}
    try:
        builder = datasets.load_dataset_builder(source.dataset, source.config, revision=source.revision)
        stream = builder.as_streaming_dataset(split=source.split)
        values = stream.shuffle(**shuffling) if shuffle else stream
    except _DATA_ERRORS as error:
        _unreadable(error, where)
    commit = str(builder.hash or "")
    # datasets does not say where a shuffled row was before
    order = f", as shuffled by seed {source.seed}" if shuffle else ""
    found = (Row(row, f"{where}, row {number}{order}") for number, row in enumerate(_guarded(values, where), start=1))
    return Rows(found, commit if re.fullmatch("[0-9a-f]{40}", commit) else source.revision)


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


def _files(source: Source, folder: Path) -> Rows:
    """Rows of local files: a text file is one row, a .jsonl file has one per line."""
    found: list[Row] = []
    for name in source.files or ():
        path = folder / name
        if path.suffix not in (".txt", ".md", ".jsonl"):
            raise CalibrationError(str(path), "is not .txt, .md or .jsonl", "convert it to one of these")
        try:
            # a file's lines end with LF, CR LF or CR; str.splitlines would also break a JSON text at U+2028
            with path.open(encoding="utf-8-sig") as file:
                if path.suffix == ".jsonl":
                    found.extend(_json_rows(file, path))
                else:
                    found.append(Row({source.column or "text": file.read()}, str(path), plain=True))
        except (OSError, UnicodeDecodeError) as error:
            cause = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
            raise CalibrationError(str(path), cause, "give UTF-8 files, relative to the manifest") from error
    return Rows(found)


def _json_rows(lines: Iterable[str], path: Path) -> Iterator[Row]:
    count = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CalibrationError(f"{path}:{number}", f"is not JSON: {one_line(error)}", "mend the line") from error
        if not isinstance(values, dict):
            raise CalibrationError(f"{path}:{number}", "is no JSON object", 'write {"text": ...} on each line')
        count += 1
        yield Row(values, f"{path}:{number}, row {count}")
