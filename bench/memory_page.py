"""docs/memory.md from the result files of bench/memory.py. Every number comes from them."""

import json
from pathlib import Path
from typing import Any

MIB = 2**20
HEAD = """# Memory

Written by `python bench/memory.py page` from the files that `python bench/memory.py shapes` and `limit` leave.
"""
ABOUT = """
A block at a time: its weights, what they become, the activations of all calibration tokens, and at the worst moment the
copies of the largest second moments that correcting a target and factoring take. The number of blocks does not count.
Measured is the resident memory of the process at its highest, everything included: Python and its libraries, and the
mapped pages of the block of the base that is being worked on (the kernel could take those back at any time, and does
under a limit). Kept in memory, tensors of up to 32 MB lie in the allocator's heaps, which give back only a part of
what is freed; what the plan adds for that is fitted to this table, everything else is counted. Where activations
spill, memory is short, and the allocator is told to give back at once what is freed; that costs some time, as every
page has to be handed out again.

What the plan counts is in `hubplugin/plan/costs/estimates.py`. The table is from a processor that is fast at bfloat16;
elsewhere a model stored in it is computed in float32, and plan and process take twice the room for blocks and
activations. Memory of a GPU is planned by the same arithmetic and has not been measured.
"""


def render(shapes: Path, limit: Path) -> str:
    """The page; parts that were not measured say so."""
    parts = [HEAD, "## Planned and measured\n"]
    parts.append(_shapes(json.loads(shapes.read_text(encoding="utf-8"))) if shapes.exists() else "Not measured yet.\n")
    parts += [ABOUT.strip() + "\n", "## A model larger than the memory\n"]
    parts.append(_limit(json.loads(limit.read_text(encoding="utf-8"))) if limit.exists() else "Not measured yet.\n")
    return "\n".join(parts)


def _shapes(found: dict[str, Any]) -> str:
    lines = [
        "W4 g128, peak resident memory in MiB. " + _machine(found["machine"]) + "\n",
        "| model | tokens | corrected targets | pruned | activations | planned | measured | planned / measured |",
        "|---|---:|---|---|---|---:|---:|---:|",
    ]
    for row in sorted(found["rows"], key=lambda row: (row["model"], row["tokens"])):
        cells = [row["model"], row["tokens"], _yes(row.get("qep", True)), _yes(row.get("prune", False))]
        where = f"{row['planned_disk'] // MIB} MiB on disk" if row["spilled"] else "in memory"
        cells += [where, row["planned"] // MIB, row["measured"] // MIB, f"{row['planned'] / row['measured']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    worst = max((abs(row["planned"] / row["measured"] - 1) for row in found["rows"]), default=0.0)
    return "\n".join(lines) + f"\n\nThe plan is off by {worst:.0%} at most.\n"


def _limit(found: dict[str, Any]) -> str:
    times = found["weights"] / found["limit"]
    lines = [
        f"{found['weights'] / 1e9:.2f} GB of weights in bfloat16, {times:.1f} times the {found['limit'] // MIB} MiB "
        f"that the process may have ({found['by']}; the page cache counts, but for pages of libraries that other "
        "processes had brought in: so what is resident can be more); plain GPTQ without a search of scales, but where "
        "default settings are named.\n",
        "| engine | tokens | finished | seconds | peak resident, MiB | what happened |",
        "|---|---:|---|---:|---:|---|",
    ]
    for run in found["runs"]:
        cells = [run["engine"], run["tokens"], _yes(run["finished"]), run["seconds"], run["peak_resident"] // MIB]
        cells.append(_happened(run))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _happened(run: dict[str, Any]) -> str:
    if run["finished"]:
        said = run.get("said", {})
        told = f"; {said['planned'] // MIB} MiB were planned" if "planned" in said else ""
        told += f", activations of {said['planned_disk'] // MIB} MiB on disk" if said.get("spilled") else ""
        return f"wrote {run['written'] / 1e9:.2f} GB{told}"
    killed = "killed by the kernel, out of memory; " if run["killed_by_kernel"] else ""
    return killed + run["last_words"].replace("|", "/")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _machine(machine: dict[str, Any]) -> str:
    return f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gb']} GB."
