"""Reads vLLM's own measures from the text of its /metrics."""

import re


def total(text: str, name: str) -> float:
    """Sum of a sample over all of its labels; 0 where there is none."""
    return sum(map(float, re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, flags=re.MULTILINE)))


def labels(text: str, name: str) -> dict[str, str]:
    """The labels of a sample's first line; empty where there is none. vLLM says its settings as labels."""
    found = re.search(rf"^{re.escape(name)}{{(.*)}} \S+$", text, flags=re.MULTILINE)
    pairs = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', found[1]) if found else []
    return {key: re.sub(r"\\(.)", r"\1", value) for key, value in pairs}
