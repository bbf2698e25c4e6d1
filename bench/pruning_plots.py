"""The two plots of docs/pruning.md as SVG, byte for byte the same for the same results. It computes no metric."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from pruning_page import BYTES, NAMES, OURS, excess, removed

# ids in the file come from this salt, and text stays text: nothing depends on the machine's fonts or clock
STYLE = {"svg.hashsalt": "hubplugin", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9.0}
MARKS = "osD^v<>Pp*Xhd8"


def write(found: list[dict[str, Any]], folder: Path) -> None:
    """Both plots into a folder."""
    for name, draw in (("pruning-perplexity", perplexity), ("pruning-bytes", weight)):
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(9.0, 5.0), layout="constrained")
            draw(figure.add_subplot(), found)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})


def _name(method: str) -> str:
    return NAMES[method].replace("*", "")


def perplexity(axes: Any, found: list[dict[str, Any]]) -> None:
    """Excess perplexity against weights removed; what removed nothing has no point."""
    methods = [method for method in NAMES if not method.endswith(("int4", "int8"))]
    for number, method in enumerate(methods):
        points = sorted((removed(each) * 100, excess(each)) for each in found if each["method"] == method)
        points = [(x, y) for x, y in points if x > 0 and y > 0]
        if points:
            own = method in OURS
            axes.plot(
                *zip(*points, strict=True),
                marker=MARKS[number % len(MARKS)],
                color=matplotlib.colormaps["tab20"](number),
                label=_name(method),
                linewidth=2.5 if own else 1.0,
                zorder=3 if own else 2,
            )
    axes.set_yscale("log")
    axes.set_xlabel("weights removed from the linears of the blocks, %")
    axes.set_ylabel("perplexity above the dense model's")
    axes.grid(True, alpha=0.3)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def weight(axes: Any, found: list[dict[str, Any]]) -> None:
    """Mean KL against bytes of the safetensors files; the dense model, at a KL of zero, is a line."""
    for number, method in enumerate(BYTES):
        rows = [each for each in found if each["method"] == method and each["quality"]["mean_kl"] > 0]
        points = sorted((each["bytes"] / 1e6, each["quality"]["mean_kl"], each["ratio"]) for each in rows)
        if not points:
            continue
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], marker=MARKS[number], label=_name(method))
        for x, y, ratio in points:
            if ratio is not None:
                axes.annotate(f"{ratio:.0%}", (x, y), textcoords="offset points", xytext=(4, 4), fontsize=8)
    if found:
        axes.axvline(found[0]["base"]["bytes"] / 1e6, color="black", linestyle="--", linewidth=1, label="dense (KL 0)")
    axes.set_yscale("log")
    axes.set_xlabel("safetensors, MB")
    axes.set_ylabel("mean KL to the dense model, nats per token")
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
