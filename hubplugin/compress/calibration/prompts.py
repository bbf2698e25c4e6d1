"""Prompts from a source of text: conversations up to a question, or the beginnings of texts.

Knows rows and token sequences. Knows nobody who answers.
"""

import itertools
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubplugin import report
from hubplugin.compress.calibration import calibration_data, conversations
from hubplugin.compress.calibration.documents import Documents
from hubplugin.errors import CalibrationError
from hubplugin.manifest.source import Source


@dataclass(frozen=True)
class Prompt:
    """What a teacher is asked: a text to go on with, or the turns of a conversation that ends with a user's."""

    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()  # role and content

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns, as chat templates and endpoints take them."""
        return [{"role": role, "content": content} for role, content in self.turns]

    def as_json(self) -> str:
        """A text that is the same for the same prompt alone."""
        return json.dumps([self.text, self.turns], ensure_ascii=False)


@dataclass(frozen=True)
class Prompts:
    """Prompts, and where they are from."""

    prompts: tuple[Prompt, ...]
    description: str
    texts: report.Tokens | None = None  # the sequences that they are the beginnings of; None: conversations


class _Questions:
    """In place of a chat template: a conversation becomes its turns up to the last one of a user, as JSON."""

    def __init__(self, drop_nulls: bool) -> None:
        self._drop_nulls = drop_nulls

    def render(self, turns: list[Any], tools: Any) -> str:
        """The turns. Raises ValueError for a conversation without a question, and for one with tools."""
        if conversations.read_tools(tools, drop_nulls=self._drop_nulls):
            raise ValueError("is held with tools, and their calls are no answers in words")
        read = conversations.read_turns(turns, parts=False, drop_nulls=self._drop_nulls)
        last = max((index for index, turn in enumerate(read) if turn["role"] == "user"), default=None)
        if last is None:
            raise ValueError("has no turn of a user, so that nothing is asked")
        return json.dumps([(turn["role"], turn["content"]) for turn in read[: last + 1]], ensure_ascii=False)


def read(source: Source, tokenizer: Any, folder: Path, base: Path, prompt_tokens: int) -> Prompts:
    """`source.samples` different prompts: conversations where the first row holds one, else beginnings of texts.

    Beginnings are the first `prompt_tokens` tokens of the sequences that `calibration_data.tokens` makes of the source.
    Raises CalibrationError as that does.
    """
    if not source.self_:
        rows = calibration_data.rows(source, folder, shuffle=True)
        documents = Documents(rows.rows, source, tokenizer, _Questions(drop_nulls=source.dataset is not None))
        waiting = iter(documents)
        if (first := next(waiting, None)) is not None and first.rendered:
            talks = (document.text for document in itertools.chain([first], waiting) if document.rendered)
            return _conversations(source, talks, documents)
    batch = calibration_data.tokens(source, tokenizer, folder, base)
    beginnings = batch.ids[:, :prompt_tokens].tolist()
    texts = dict.fromkeys(tokenizer.decode(ids, skip_special_tokens=True) for ids in beginnings)
    found = tuple(Prompt(text=text) for text in texts if text.strip())
    return Prompts(found, f"the first {prompt_tokens} tokens of {batch.description.source}", batch.description)


def _conversations(source: Source, found: Iterable[str], documents: Documents) -> Prompts:
    """So many different conversations, chosen by the seed where all of them can be read."""
    if source.dataset:
        texts = list(itertools.islice(_different(found), source.samples))
    else:
        texts = list(_different(found))
        random.Random(source.seed).shuffle(texts)
        texts = texts[: source.samples]
    if len(texts) < source.samples:
        what = f"holds {len(texts)} different questions, {source.samples} are needed{documents.note}"
        raise CalibrationError(documents.where, what, f"use more data, or `samples: {len(texts)}`")
    prompts = (Prompt(turns=tuple((role, content) for role, content in json.loads(text))) for text in texts)
    return Prompts(tuple(prompts), f"conversations of {source.describe()}, up to their last question{documents.note}")


def _different(texts: Iterable[str]) -> Iterable[str]:
    seen: set[str] = set()
    for text in texts:
        if text not in seen:
            seen.add(text)
            yield text
