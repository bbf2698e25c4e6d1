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
        """Time one stage, or a further part of it."""
        begun = time.monotonic()
        yield
        self.add(name, time.monotonic() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Count further seconds with a stage."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)

    def reuse(self, name: str, seconds: float) -> None:
        """Note seconds that an earlier search spent on what a stage took from it."""
        if seconds:
            self.seconds[f"{name}, measured before"] = round(seconds, 2)
