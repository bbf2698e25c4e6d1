"""Writes docs/families.md and its two plots from the files in bench/results/families, and from nothing else.

    python bench/families_page.py

It measures nothing. What a family is, is said by its steps and by the methods' own descriptions, so that a variant
which is added to the manifest needs no line here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import families_text as text
import yaml
from families_result import family, target
from page import table

from hubplugin import disk
from hubplugin.manifest.methods import METHODS
from hubplugin.plan.vllm_support import DENSE

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "families", HERE.parent / "docs" / "families.md"
BUSY = 0.05  # share of all cores that others may use before seconds are marked
BEYOND = 100  # times the base's perplexity: what is left is no language model
CLOSE, USABLE = 1.1, 2.0  # times the base's perplexity, that the last table asks for
OFF = 0.03  # of the ratio in the name: a variant whose measured bytes are further off says so
Run = Mapping[str, Any]


def main() -> None:
    """Write plots and page."""
    import families_plots

    records = results()
    for record in records:
        families_plots.write(record, PAGE.parent)
    disk.write_atomically(PAGE, render(records))
    print(PAGE)


def results() -> list[dict[str, Any]]:
    """Every file's record."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]


def render(records: Sequence[Mapping[str, Any]]) -> str:
    """The page as a pure function of the results."""
    parts = [text.HEAD]
    for record in records:
        parts += _model(record)
    if not records:
        parts.append("No results yet.\n")
    return "\n".join(parts).rstrip() + "\n"


def _model(record: Mapping[str, Any]) -> list[str]:
    ratios = sorted({target(name) for name in measured(record)})
    parts = [f"## {record['model']}\n", *_about(record), *_pictures(record), *_best(record, ratios)]
    for ratio in ratios:
        parts += _at(record, ratio)
    return [*parts, *_beyond(record), *_claims(record), *_explained(record), *_serving(record), *_missing(record)]


def measured(record: Mapping[str, Any]) -> dict[str, Run]:
    """The runs with a result, in the manifest's order."""
    runs = record["runs"]
    return {name: runs[name] for name in record["variants"] if name in runs and "failed" not in runs[name]}


def times_base(record: Mapping[str, Any], run: Run) -> float:
    """Perplexity over the base's."""
    return float(run["quality"]["perplexity"] / record["base"]["perplexity"])


def file_ratio(record: Mapping[str, Any], run: Run) -> float:
    """Bytes of the base as it is stored over those of the variant: all tensors."""
    return float(record["base"]["bytes"] / run["bytes"])


def _about(record: Mapping[str, Any]) -> list[str]:
    base, machine = record["base"], record["machine"]
    inside = base["linear_parameters"] / base["parameters"]
    calibration, held_out = _tokens(record["calibration"]), _tokens(record["held_out"])
    shares = [run["others"] for run in measured(record).values()]
    busy = sum(map(_busy, shares))
    lines = [
        f"{base['parameters'] / 1e6:.1f} million weights, of which {inside:.0%} are in the linears of the blocks; "
        f"{base['bytes'] / 1e6:.0f} MB in bfloat16. Calibrated on {calibration}; measured on {held_out}, where the "
        f"base has a perplexity of {base['perplexity']:.2f} ± {base['perplexity_stderr']:.2f}.\n",
        *([f"{record['note']}\n"] if record.get("note") else []),
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{record['threads']} thread{'s' * (record['threads'] > 1)}. Other processes used more than {BUSY:.0%} of it "
        f"in {busy} of {len(shares)} runs: seconds with a * are of such a run: an order of magnitude at best.\n",
    ]
    return lines


def _busy(others: float | None) -> bool:
    """Whether other processes used more than BUSY of the machine; where it was not seen, they are taken to have."""
    return others is None or others > BUSY


def _tokens(described: Mapping[str, Any]) -> str:
    source = described["source"].split(";")[0]
    return f"{source} ({described['sequences']} x {described['tokens_per_sequence']} tokens)"


def plot_names(record: Mapping[str, Any]) -> tuple[str, str]:
    """The files of the two plots."""
    name = record["model"].lower()
    return f"families-{name}-kl.svg", f"families-{name}-file.svg"


def _pictures(record: Mapping[str, Any]) -> list[str]:
    kl, whole = plot_names(record)
    return [
        f"![Mean KL against how many times smaller the linears are]({kl})\n",
        f"![Perplexity against how many times smaller the file is]({whole})\n",
    ]


def _best(record: Mapping[str, Any], ratios: Sequence[float]) -> list[str]:
    """The least KL at each ratio, of a family that rests on one idea and of those that combine two or train."""
    rows = []
    for ratio in ratios:
        here = {name: run for name, run in measured(record).items() if target(name) == ratio and ratio > 1}
        alone = [name for name, run in here.items() if len(run["steps"]) == 1 and "of" not in run["steps"][0]]
        cells = []
        for some in (alone, list(here)):
            least = min(some, key=lambda name: here[name]["quality"]["mean_kl"], default=None)
            cells.append(_named(record, least, here[least]) if least else "-")
        if here:
            rows.append([f"{ratio:g}x", *cells, str(len(here))])
    if not rows:
        return []
    head = "linears | least KL by one step | least KL of all | measured"
    return ["### Which is best at which ratio\n", text.BEST, table(head, rows)]


def _named(record: Mapping[str, Any], name: str, run: Run) -> str:
    return f"{name}: {run['quality']['mean_kl']:.4f}, perplexity × {_times(times_base(record, run))}"


def _times(value: float) -> str:
    """A multiple of the base's perplexity, three figures at most."""
    return f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def _at(record: Mapping[str, Any], ratio: float) -> list[str]:
    """One table: all variants of a ratio, the least KL first."""
    here = [(name, run) for name, run in measured(record).items() if target(name) == ratio]
    here.sort(key=lambda pair: pair[1]["quality"]["mean_kl"])
    timed = any(run.get("speed") for _, run in here)
    head = "variant | linears | file | of float32 | bits per weight | perplexity × | mean KL | top-1 same | made in, s"
    head += " | tokens/s (× base)" * timed + " | served by"
    title = f"### Linears {ratio:g} times smaller\n" if ratio > 1 else "### Zeros that save nothing\n"
    note = [text.ZEROS] if ratio == 1 else []
    return [title, *note, table(head, [_row(record, name, run, timed) for name, run in here]), *_steps(here)]


def _row(record: Mapping[str, Any], name: str, run: Run, timed: bool) -> list[str]:
    quality, seconds = run["quality"], f"{run['seconds']['making']:.0f}"
    mark = "*" * _busy(run["others"]) + " (continued)" * run["continued"]
    off = run["linears_ratio"] / target(name) - 1
    return [
        name + (f" ({off:+.0%} off)" if abs(off) > OFF else ""),
        f"{run['linears_ratio']:.2f}x",
        f"{file_ratio(record, run):.2f}x",
        f"{4 * record['base']['parameters'] / run['bytes']:.2f}x",
        f"{run['bits_per_weight']:.2f}",
        _times(times_base(record, run)),
        f"{quality['mean_kl']:.4f} ± {quality['mean_kl_stderr']:.4f}",
        f"{quality['top1_agreement']:.1%}",
        seconds + mark,
        *([_speed(run)] if timed else []),
        served(run),
    ]


def _speed(run: Run) -> str:
    speed = run.get("speed") or {}
    loads = speed.get("loads", ())
    cells = [f"{load['concurrency']}: {load['tokens_per_second']:.0f} ({load['speedup']:.2f})" for load in loads]
    return ", ".join(cells) + "*" * _busy(speed.get("others")) if cells else "-"


def served(run: Run) -> str:
    """What serves a variant, by the rules of `hubplugin plan`."""
    kinds = [kind for kind, target in (("CPU", "cpu"), ("GPU", "cuda tp=1")) if not run["loads"].get(target, "none")]
    if DENSE in run["loads"].get("cpu", ""):
        kinds.insert(0, "CPU as dense weights")
    if not kinds:
        return "nothing"
    return f"vLLM{' with hubplugin' * run['needs_plugin']}, {' and '.join(kinds)}"


def _steps(here: Sequence[tuple[str, Run]]) -> list[str]:
    """What the manifest says of each variant."""
    lines = [f"{name}:" + "".join(f"\n  - {_flow(step)}" for step in run["steps"]) for name, run in here]
    return ["```yaml", *lines, "```\n"]


def _flow(step: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(step), default_flow_style=True, sort_keys=False, width=1000).strip()


def _beyond(record: Mapping[str, Any]) -> list[str]:
    """Families that are no language model any more from some ratio on."""
    runs, lines, gone = measured(record), [], {}
    for name, run in sorted(runs.items(), key=lambda pair: target(pair[0])):
        if times_base(record, run) > BEYOND:
            gone.setdefault(family(name), name)
    for kind, name in gone.items():
        larger = [other for other in record["variants"] if family(other) == kind and target(other) > target(name)]
        rest = [other for other in larger if other not in runs]
        end = f"; {', '.join(rest)} {'was' if len(rest) == 1 else 'were'} not run for that" if rest else ""
        lines.append(f"- {kind}: {name} has {times_base(record, runs[name]):,.0f} times the base's perplexity{end}.")
    return ["### Out of reach\n", text.BEYOND, "\n".join(lines) + "\n"] if lines else []


def _claims(record: Mapping[str, Any]) -> list[str]:
    """What a usual introductory table promises, beside what was measured."""
    rows = []
    for claim in text.CLAIMS:
        runs = {name: run for name, run in measured(record).items() if claim.covers(run["steps"]) and target(name) > 1}
        if runs:
            least = min(runs, key=lambda name: (target(name), times_base(record, runs[name])))
            ratio = runs[least]["linears_ratio"]
            cost = _times(times_base(record, runs[least]))
            first = f"{ratio:.2f}x ({2 * ratio:.1f}x of float32): perplexity × {cost}"
            largest = [_largest(record, runs, end) for end in (CLOSE, USABLE)]
            rows.append([claim.technique, claim.promise, first, *largest])
    head = (
        f"technique | usually said | least ratio measured | largest within perplexity × {CLOSE:g} | within × {USABLE:g}"
    )
    return ["### The usual table, answered\n", text.USUAL, table(head, rows)] if rows else []


def _largest(record: Mapping[str, Any], runs: Mapping[str, Run], end: float) -> str:
    within = [name for name, run in runs.items() if times_base(record, run) <= end]
    if not within:
        return "none measured"
    best = max(within, key=lambda name: runs[name]["linears_ratio"])
    run = runs[best]
    sizes = f"{run['linears_ratio']:.2f}x, file {file_ratio(record, run):.2f}x"
    return f"{sizes} ({best}, × {_times(times_base(record, run))})"


def _explained(record: Mapping[str, Any]) -> list[str]:
    """Every method that stands in a result, by its own description; and what its results need to be served."""
    runs = measured(record)
    used = dict.fromkeys(step["method"] for run in runs.values() for step in run["steps"])
    parts = ["### The methods in a sentence\n"] if used else []
    lines = []
    for method in (method for method in used if method in METHODS):
        row = METHODS[method]
        about = (row.settings.__doc__ or "").strip().split("\n")[0]
        lines.append(f"- `{method}` ([paper]({row.paper})): {about} {text.FURTHER.get(method, '')}".rstrip())
    return [*parts, "\n".join(lines) + "\n"]


def _serving(record: Mapping[str, Any]) -> list[str]:
    """Every reason and note of the plan, with the variants it is about."""
    about: dict[str, list[str]] = {}
    for name, run in measured(record).items():
        reasons = [f"not on a CPU by stock vLLM: {run['loads']['cpu']}"] if run["loads"].get("cpu") else []
        for line in (*reasons, *run["notes"]):
            about.setdefault(line, []).append(name)
    lines = [f"- {', '.join(names)}: {line}." for line, names in about.items()]
    return ["### What is needed to serve them\n", text.SERVED, "\n".join(lines) + "\n"] if lines else []


def _missing(record: Mapping[str, Any]) -> list[str]:
    """What the manifest has and the file has not."""
    runs = measured(record)
    failed = [f"- {name}: {run['failed']}" for name, run in record["runs"].items() if "failed" in run]
    open_ones = [name for name in record["variants"] if name not in record["runs"]]
    parts = ["### Could not be made\n", "\n".join(failed) + "\n"] if failed else []
    if open_ones:
        count = f"{len(runs)} of the manifest's {len(record['variants'])} variants are measured."
        parts += ["### Not run\n", f"{count} Not in the results yet: {', '.join(open_ones)}.\n"]
    return parts


if __name__ == "__main__":
    main()
