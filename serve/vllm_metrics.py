"""Reads vLLM's own measures from the text of its /metrics."""

import re


def total(text: str, name: str) -> float:
    """Sum of a sample over all of its labels; 0 where there is none."""
    return sum(map(float, re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, flags=re.MULTILINE)))
