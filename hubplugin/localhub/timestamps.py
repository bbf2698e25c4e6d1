"""Time as the database stores it (milliseconds since 1970) and as the API writes it (ISO 8601, UTC)."""

import time
from datetime import UTC, datetime


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def to_iso(milliseconds: int) -> str:
    """For example 2026-01-31T12:00:00.000Z."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
