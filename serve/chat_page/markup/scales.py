"""The scales of colours that tokens are shown on, each in classes of a number. Knows colours; no tokens.

Each scale is one hue and lightness alone, so that its order is seen without colours too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

Colours = tuple[str | None, str]  # background, None for the page's own, and text


@dataclass(frozen=True)
class Scale:
    """Classes from the palest on. `bounds` are where they part; `rising`: the strongest has the greatest numbers."""

    letter: str  # of the CSS classes
    bounds: tuple[float, ...]
    words: tuple[str, ...]  # one more than bounds
    light: tuple[Colours, ...]
    dark: tuple[Colours, ...]
    rising: bool = True

    def of(self, number: float) -> str:
        """The CSS class of a number. One on a bound is of the class above it."""
        passed = sum(number >= bound if self.rising else number < bound for bound in self.bounds)
        return f"{self.letter}{passed}"

    def named(self) -> Iterator[tuple[str, str]]:
        """Every CSS class, and what the legend calls it."""
        return ((f"{self.letter}{number}", words) for number, words in enumerate(self.words))


PROBABILITY = Scale(
    "t",
    bounds=(0.9, 0.5, 0.2, 0.05),
    words=("90 % and more", "50 to 90 %", "20 to 50 %", "5 to 20 %", "below 5 %"),
    light=(
        (None, "#1e293b"),
        ("#fff0dc", "#1e293b"),
        ("#fed7aa", "#1e293b"),
        ("#fb9a4b", "#1e293b"),
        ("#b23c08", "#fff"),
    ),
    dark=(
        (None, "#f1f5f9"),
        ("#4a2a12", "#f1f5f9"),
        ("#7f4212", "#f1f5f9"),
        ("#d97a2b", "#0f172a"),
        ("#ffd9a8", "#0f172a"),
    ),
    rising=False,
)
KL = Scale(
    "k",
    bounds=(0.01, 0.1, 0.5, 2.0),
    words=("below 0.01", "0.01 to 0.1", "0.1 to 0.5", "0.5 to 2", "2 and more"),
    light=(
        (None, "#1e293b"),
        ("#e0f2fe", "#1e293b"),
        ("#bae0f8", "#1e293b"),
        ("#5fb8ec", "#1e293b"),
        ("#075985", "#fff"),
    ),
    dark=(
        (None, "#f1f5f9"),
        ("#0e3147", "#f1f5f9"),
        ("#0f5379", "#f1f5f9"),
        ("#3aa3dc", "#0f172a"),
        ("#c9e9fd", "#0f172a"),
    ),
)


def css(within: str) -> Iterator[str]:
    """Rules for both scales inside of a selector."""
    for prefix, scale, colours in (
        (where, scale, getattr(scale, theme))
        for where, theme in ((within, "light"), (f".dark {within}", "dark"))
        for scale in (PROBABILITY, KL)
    ):
        for number, (background, text) in enumerate(colours):
            ground = f"; background: {background}" if background else ""
            yield f"{prefix} .{scale.letter}{number} {{color: {text}{ground}}}"
