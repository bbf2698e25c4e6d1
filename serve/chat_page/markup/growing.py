"""The end of an answer that still grows, as far as it is certain what it will be. Knows how markdown is written.

What is held back are a few characters that the next piece decides on: the first backtick of three, the hyphen under
a paragraph that would make a heading of it until its list item comes, the first row of a table.
"""

import re

# A last line of markers alone: a bullet, a number, a fence, a rule, the second row of a table.
MARKERS = re.compile(r"(?:^|\n)[-*+=_#>|`~:.)\d \t\[\]\\$]+\Z")
# A fence's first line: until it ends, it may be code within a line.
FENCE = re.compile(r"(?:^|\n)[ \t>*+\-\d.)]*(?:`{3,}|~{3,})[^\n]*\Z")
# The end of a line that may go on as another mark than it is: `**bold*`, `[text](http`, `&am`, `</thi`, `\`.
END = re.compile(r"(?:[*_~`$\\]+|!?\[[^\[\]\n]*\](?:\([^()\s]*)?|&#?\w{0,31}|</?\w{0,9}|!)\Z")
ROW = re.compile(r"[ \t>]*\|")


def settled(text: str) -> str:
    """The text without what is not certain yet."""
    text = _without_table_head(text)
    for uncertain in (FENCE, MARKERS, END):
        text = uncertain.sub("", text)
    return text


def _without_table_head(text: str) -> str:
    """Without the first row of a table whose second one is not there yet: it would be a paragraph."""
    lines = text.split("\n")
    rows = 0
    while rows < min(3, len(lines) - (lines[-1] == "")) and ROW.match(lines[-1 - rows - (lines[-1] == "")]):
        rows += 1
    if rows == 1 or (rows == 2 and lines[-1] != ""):
        return "\n".join(lines[: len(lines) - rows - (lines[-1] == "")])
    return text
