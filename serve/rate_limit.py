"""How often each client may do something, for as many clients as there is memory for. Knows names and a clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass

REMEMBERED = 10_000  # clients; those that have been quiet longest are forgotten first


@dataclass
class _Bucket:
    """One client's."""

    credit: float  # times that it may do it now
    seen: float


class RateLimit:
    """A token bucket for each client: `per_minute` times at once, and again one after every 60 / `per_minute` seconds.

    `clock` gives seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, client: str) -> float:
        """Take one time. Returns 0.0, or the seconds until there is one: then nothing was taken."""
        self._forget()
        now = self.clock()
        bucket = self._buckets.setdefault(client, _Bucket(self.per_minute, now))
        bucket.credit = min(self.per_minute, bucket.credit + (now - bucket.seen) * self.per_minute / 60)
        bucket.seen = now
        if bucket.credit < 1:
            return (1 - bucket.credit) * 60 / self.per_minute
        bucket.credit -= 1
        return 0.0

    def give_back(self, client: str) -> None:
        """Undo one `take`: what was done does not count."""
        if bucket := self._buckets.get(client):
            bucket.credit = min(self.per_minute, bucket.credit + 1)

    def _forget(self) -> None:
        if len(self._buckets) >= REMEMBERED:
            quiet = sorted((bucket.seen, client) for client, bucket in self._buckets.items())
            for _, client in quiet[: REMEMBERED // 2]:
                del self._buckets[client]
