"""Seconds by stage of a run. Knows no stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage."""
        begun = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begun, 2)

    def reuse(self, name: str, seconds: float) -> None:
        """Note seconds that an earlier search spent on what a stage took from it."""
        if seconds:
            self.seconds[f"{name}, measured before"] = round(seconds, 2)
