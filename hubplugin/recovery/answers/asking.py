"""Asks a teacher the prompts of a distillation that no answer is kept for. Knows teachers and the cache."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from hubplugin.compress.calibration.prompts import Prompt
from hubplugin.manifest.steps.training.distill import Answers
from hubplugin.progress import progress
from hubplugin.recovery.answers import cache
from hubplugin.recovery.answers.cache import Answer, AnswerCache

SAID_EVERY = 10.0  # seconds


class Teacher(Protocol):
    """Who answers."""

    @property
    def name(self) -> str:
        """In words."""

    def answers(self, prompts: Sequence[Prompt], wanted: Sequence[int]) -> Iterator[tuple[int, Answer]]:
        """Answers to those of the prompts that are `wanted`, by their places, in any order. Others may come along."""


def ask(
    prompts: Sequence[Prompt], settings: Answers, identity: str, file: Path, teacher: Callable[[], Teacher]
) -> list[Answer]:
    """An answer to every prompt, in order; `file` holds those that were given before, and gets the new ones.

    `identity` changes when the teacher does. `teacher` opens it, where there is anything to ask. Raises
    CalibrationError and ServeError as teachers do; what has arrived until then is kept.
    """
    kept = AnswerCache(file)
    how = (identity, settings.max_tokens, settings.temperature, settings.seed)
    keys = [cache.key(*how, prompt.as_json()) for prompt in prompts]
    wanted = [place for place, key in enumerate(keys) if key not in kept]
    if len(wanted) < len(keys):
        progress(f"answers | {len(keys) - len(wanted)} of {len(keys)} are kept from before")
    if wanted:
        _ask(teacher(), prompts, keys, wanted, kept)
    return [kept[key] for key in keys]


def _ask(
    teacher: Teacher, prompts: Sequence[Prompt], keys: Sequence[str], wanted: Sequence[int], kept: AnswerCache
) -> None:
    begun = said = time.monotonic()
    for place, answer in teacher.answers(prompts, wanted):
        kept.add([(keys[place], answer)])
        done, now = sum(keys[one] in kept for one in wanted), time.monotonic()
        if now - said > SAID_EVERY or done == len(wanted):
            said, left = now, (now - begun) / done * (len(wanted) - done) if done else 0.0
            progress(f"answers | {done}/{len(wanted)} by {teacher.name} | {now - begun:.0f}s | eta {left:.0f}s")
