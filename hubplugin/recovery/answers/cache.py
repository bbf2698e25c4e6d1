"""A teacher's answers in a file, one a line, as they arrive: what was asked once is never asked again.

Knows lines of JSON. Knows no model and no request.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from hubplugin.disk import digest


@dataclass(frozen=True)
class Answer:
    """What a teacher said."""

    text: str
    ended: bool  # by the teacher, not because it had no more tokens


def key(*asked: object) -> str:
    """What an answer is kept under: a digest of who was asked what, and how."""
    return digest(json.dumps(asked, ensure_ascii=False))


class AnswerCache:
    """The answers in a file, which is made where it is not there. A line that a killed run left half is dropped."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._answers = path, dict[str, Answer]()
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            try:
                entry = json.loads(line)
                answer = Answer(str(entry["text"]), bool(entry["ended"]))
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self._answers[str(entry["key"])] = answer
            whole += len(line)
        if path.is_file() and whole < path.stat().st_size:
            os.truncate(path, whole)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def add(self, found: Iterable[tuple[str, Answer]]) -> None:
        """Keep answers, those that are there already left out."""
        new = [(key, answer) for key, answer in found if key not in self._answers]
        lines = (json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n" for key, answer in new)
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())
        self._answers.update(new)
