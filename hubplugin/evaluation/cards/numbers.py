"""Numbers as text, as cards and tables show them. Knows units and digits; no metric and no report."""

import math


def in_bytes(value: float) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value} B"


def count(value: float) -> str:
    """A number of parameters, in thousands, millions or billions."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)


def flops(value: float) -> str:
    """A number of floating-point operations, in words of a thousand each."""
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6), ("kFLOP", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value} FLOP"


def figures(value: float, digits: int = 4) -> str:
    """So many significant digits, never an exponent."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: float) -> str:
    """Seconds, or minutes from two minutes on."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def percent(value: float) -> str:
    """A ratio as a percentage."""
    return f"{100 * value:.2f} %"
