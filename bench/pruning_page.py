"""Writes docs/pruning.md and its two plots from the files in bench/results, and from nothing else.

    python bench/pruning_page.py

Ratios of excess perplexity are to the rival that comes nearest, among those that removed about as much. It measures
nothing; plots are drawn by pruning_plots.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from page import table

from hubplugin import disk

HERE = Path(__file__).parent
RESULTS, SPEED = HERE / "results" / "pruning", HERE / "results" / "pruning_speed"
TEXT = HERE / "results" / "pruning_text"  # the same from text files instead of the model's own samples
REAL = HERE / "results" / "pruning_real"  # the same of SmolLM2, from text files
PAGE = HERE.parent / "docs" / "pruning.md"
NAMES = {
    "ours": "**hubplugin**",
    "ours-per-layer": "**hubplugin, per layer**",
    "ours-recovered": "**hubplugin, then trained**",
    "ours-per-layer-recovered": "**hubplugin, per layer, then trained**",
    "ours-int4": "**hubplugin, then Int4**",
    "ours-per-layer-int4": "**hubplugin, per layer, then Int4**",
    "int8": "Int8",
    "int4": "Int4",
    "magnitude": "magnitude",
    "magnitude-everywhere": "magnitude, one ranking",
    "wanda-sp": "Wanda-sp",
    "wanda-sp-everywhere": "Wanda-sp, one ranking",
    "flap": "FLAP",
    "flap-raw": "FLAP, not standardised",
    "llm-pruner": "LLM-Pruner",
    "llm-pruner-uniform": "LLM-Pruner, ends too",
    "llm-pruner-everywhere": "LLM-Pruner, one ranking",
    "slicegpt": "SliceGPT, rotations not counted",
    "slicegpt-counted": "SliceGPT, rotations counted",
    "shortgpt": "ShortGPT (whole layers)",
    "greedy-layers": "greedy, whole layers",
    "blockpruner": "BlockPruner (greedy, sub-blocks)",
}
OURS = ("ours", "ours-per-layer")
TRAINED = ("ours-recovered", "ours-per-layer-recovered")
BYTES = ("int8", "int4", "ours", "ours-per-layer", "ours-int4", "ours-per-layer-int4")
ENOUGH = 0.9  # of what ours removed, that a rival must have removed to be compared with
HEAD = """# Structured pruning, side by side

*Written by `python bench/pruning_page.py` from the files in `bench/results/pruning`, `pruning_text` and
`pruning_speed`; do not edit. `make bench-pruning` runs everything that is not there yet.*

The ratio is the share of the weights of the linears inside the blocks (q, k, v, o, gate, up, down) that is to go. A
rival removes at most that, in steps of its own units, and is not made to keep fewer weights than hubplugin: one whose
layers stay alike than hubplugin with layers alike, any other than hubplugin per layer. Biases and rotations that it
adds are not held against it. All get the same calibration token ids and are measured on the same held-out ids in
float32, hubplugin on the folder it wrote, rivals in memory. **Excess** is perplexity over the dense model's; KL is to
the dense model, in nats per token. **Seconds** are those of one run from tokens to pruned weights, evaluation apart, on
whatever else the machine was doing: an order of magnitude, no more.
"""
NOTES = """## How the rivals were set up, and what is left out

Each is a small reference in `bench/pruning_rivals`, written from its paper (arXiv numbers below) for
`LlamaForCausalLM`, in float32. Where a paper leaves a setting open, both were run; the result is that of the setting
with the lower perplexity on the first held-out sequences, chosen anew at every ratio. That is more than a rival would
get in earnest: hubplugin runs with one setting for all.

- A unit is an FFN channel, or a KV group: a key head, a value head, the query heads that read them and their columns of
  o. **Plain** in the tables: all layers keep the same widths and nothing is added, so that config.json of a Llama can
  say it and any engine loads it.
- **One ranking**: rows that stand in no paper. The score is that of the method, per weight removed, and the lowest of
  all layers go, where the method itself takes the same share in every layer. They are here because this model rewards
  it.
- **magnitude**: the norm of all weights of a unit.
- **Wanda-sp**, as the FLAP paper defines it (2312.11983): the same share in every layer, nothing compensated. `heads:
  False` leaves attention whole.
- **FLAP** (2312.11983): fluctuation times squared norm of the weights, standardised within each layer and kind, one
  threshold, bias compensation. `standardise` says whether columns of o are standardised before or after they are
  averaged over a KV group. Not standardised: scores as they are, per weight removed, which the paper does not do.
- **LLM-Pruner** (2305.11627): first-order Taylor, element by element, FFN channels and KV groups, gradients of the same
  calibration loss, no LoRA. The first and the last layer stay whole, as some do in the paper; **ends too** prunes them
  like the others.
- **SliceGPT** (2401.15024): principal components of the stream as it comes through what is already sliced, each
  attention and FFN with a basis of its own; embedding and head are sliced too, and untied by it; the stream before the
  head is not sliced. `signal` says whether components are those of the norm's output or of its input. Once the
  rotations on the residual connections are not counted among the weights, once they are.
- **ShortGPT** (2403.03853): whole layers by Block Influence. **Greedy** removal, of whole layers or, as BlockPruner
  (2406.10594), of attention and FFN blocks, goes by perplexity on the first 16 calibration sequences, and ends where
  the next one no longer fits: filling up with the smaller attention blocks was tried, and did harm. Products of these
  tries are bfloat16, but were float32 in the older results of the 12M model. A layer is a sixth of that model: at small
  ratios there is nothing that fits.

Left out: recovery by training (LLM-Pruner's LoRA, distillation), for hubplugin and rivals alike but for the rows
**then trained** (`recover` on more sequences of the same kind, and in no comparison); methods
that search for minutes per layer (ZipLM, DarwinLM) or learn masks (DISP-LLM, Sheared-LLaMA); every other model. This
one is small, was trained on one kind of text, and has many FFN channels that hardly do anything: in each layer but the
first, a tenth of them have less than a tenth of the median channel's norm. Rankings over all layers find these first.
"""


def main() -> None:
    """Write plots and page."""
    import pruning_plots

    found = results(RESULTS)
    pruning_plots.write(found, PAGE.parent)
    disk.write_atomically(PAGE, render(found, results(TEXT), results(SPEED), results(REAL)))
    print(PAGE)


def results(folder: Path) -> list[dict[str, Any]]:
    """Every result that has a file."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def render(
    found: list[dict[str, Any]],
    texts: list[dict[str, Any]],
    speeds: list[dict[str, Any]],
    real: Sequence[dict[str, Any]] = (),
) -> str:
    """The page as a pure function of the results: on own samples, on text, of serving, and of a real model."""
    import pruning_recovery_page
    import pruning_speed_page

    if not found:
        return f"{HEAD}\nNo results yet.\n"
    parts = [HEAD, *brief(real, "A real model", ON_REAL), *pruning_recovery_page.section(real)]
    parts += [*data(found), *tables(found), *plots(found)]
    parts += [*brief(texts, "The same on text", ON_TEXT), *settings(found), NOTES]
    return "\n".join([*parts, *pruning_speed_page.section(speeds)])


def data(found: list[dict[str, Any]]) -> list[str]:
    """Model, tokens, machine."""
    base = found[0]["base"]
    alike = {(each["made_from"]["calibration_sha256"], each["made_from"]["held_out_sha256"]) for each in found}
    machines = {
        f"{each['machine']['processor']}, {each['machine']['cores']} cores, {each['machine']['memory_gb']} GB"
        for each in found
    }
    lines = [
        f"The 12M model that ships with hubplugin: {base['linear_parameters']:,} weights in the linears of its blocks, "
        f"{base['parameters']:,} in all. {_measured_on(found[0])} Machine: {'; '.join(sorted(machines))}.\n"
    ]
    if len(alike) > 1:
        lines.append("**Not all results come from the same tokens: run `make bench-pruning` again.**\n")
    return lines


def _measured_on(result: dict[str, Any]) -> str:
    base, (calibration, held_out) = result["base"], (_tokens(result[key]) for key in ("calibration", "held_out"))
    dense = f"{base['perplexity']:.3f} ± {base['perplexity_stderr']:.3f}"
    return f"Calibrated on {calibration}; measured on {held_out}, where the dense model has a perplexity of {dense}."


def _tokens(described: dict[str, Any]) -> str:
    source = described["source"].split(";")[0]
    return f"{source} ({described['sequences']} x {described['tokens_per_sequence']} tokens, seed {described['seed']})"


ON_TEXT = (
    "`make bench-pruning CALIBRATION=a.txt HELD_OUT=b.txt`, here with documentation of Python packages, two files "
    "that are not in this repository"
)
ON_REAL = (
    "SmolLM2-135M-Instruct, moved off the 4-bit grid on which its weights were published, on WikiText-2: "
    "`make bench-pruning MODEL=smollm2-moved CALIBRATION=valid.txt HELD_OUT=test.txt`"
)


def ratios(found: Sequence[dict[str, Any]]) -> list[float]:
    """Those that any result has."""
    return sorted({each["ratio"] for each in found if each["ratio"] is not None})


def excess(result: dict[str, Any]) -> float:
    """Perplexity over the dense model's."""
    return float(result["quality"]["perplexity"] - result["base"]["perplexity"])


def kept(result: dict[str, Any]) -> int:
    """Weights of the linears, and of rotations where the rival counts them itself."""
    counted = result.get("setting", {}).get("count_rotations", False)
    return int(result["linear_parameters"] + (result["added_parameters"] if counted else 0))


def removed(result: dict[str, Any]) -> float:
    """Share of the linears' weights that is gone."""
    return 1 - kept(result) / result["base"]["linear_parameters"]


def tables(found: list[dict[str, Any]]) -> list[str]:
    """One table per ratio, the best first, and ours against the best rival."""
    parts = []
    head = "method | plain | weights kept | removed | added | all, M | perplexity | excess | mean KL | p99 KL | seconds"
    for ratio in ratios(found):
        rows = [each for each in found if each["ratio"] == ratio and not each["method"].endswith("int4")]
        rows.sort(key=lambda each: each["quality"]["perplexity"])
        parts += [f"## {ratio:.0%}\n", table(head, [_row(each, rows) for each in rows]), *verdicts(rows)]
    return parts


def twin(alike: bool) -> str:
    """The one of ours that a rival is held to: as many weights, and layers alike or not."""
    return "ours" if alike else "ours-per-layer"


def _row(result: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    quality, name = result["quality"], NAMES[result["method"]]
    least = max((kept(each) for each in rows if each["method"] == twin(result.get("plain", False))), default=0)
    if result["method"] not in (*OURS, *TRAINED) and kept(result) < least:
        name += " (kept less than hubplugin: to be run again)"
    if result["linear_parameters"] == result["base"]["linear_parameters"]:
        name += ", nothing fits"
    return [
        name,
        "yes" if result.get("plain") else "no",
        f"{kept(result):,}",
        f"{removed(result):.1%}",
        f"{result['added_parameters']:,}",
        f"{result['parameters'] / 1e6:.2f}",
        f"{quality['perplexity']:.3f}",
        f"{excess(result):z.3f}",
        _kl(quality["mean_kl"]),
        _kl(quality["p99_kl"], 3),
        f"{result['seconds']:.1f}",
    ]


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Ours against the rival that comes nearest: of all, and of those whose layers stay alike."""
    lines = []
    others = [each for each in rows if each["method"] not in (*OURS, *TRAINED)]
    for own in (each for each in rows if each["method"] in OURS):
        rivals = [each for each in others if removed(each) >= ENOUGH * removed(own)]
        for kind, some in (("rival", rivals), ("plain rival", [each for each in rivals if each.get("plain")])):
            if some:
                best = min(some, key=excess)
                lines.append(
                    f"- {NAMES[own['method']]}: {_times(excess(own), excess(best))} the excess of the best {kind} "
                    f"that removed about as much ({NAMES[best['method']]}), "
                    f"{_times(own['quality']['mean_kl'], best['quality']['mean_kl'])} its KL."
                )
    return ["\n".join(lines) + "\n"] if lines else []


def _times(value: float, of: float) -> str:
    """A multiple; none of what is zero or less."""
    if of <= 0:
        return "no multiple of"
    return f"{value / of:z.2f} times" if value < 10 * of else f"{value / of:,.0f} times"


def _kl(value: float, digits: int = 4) -> str:
    """As a decimal, or with its power of ten where that would be all zeros."""
    return f"{value:.{digits}f}" if not 0 < value < 10 ** (1 - digits) else f"{value:.1e}"


def plots(found: list[dict[str, Any]]) -> list[str]:
    """The two plots, and the numbers of the second."""
    head = "variant | MB | of dense | perplexity | mean KL"
    whole = found[0]["base"]["bytes"]
    rows = [[*_variant(each, whole)] for each in found if each["method"] in BYTES]
    return [
        "## Plots\n",
        "![Excess perplexity against weights removed](pruning-perplexity.svg)\n",
        "![Mean KL against bytes](pruning-bytes.svg)\n",
        table(head, [["dense", f"{whole / 1e6:.2f}", "1.00", f"{found[0]['base']['perplexity']:.3f}", "0"], *rows]),
    ]


def _variant(result: dict[str, Any], whole: int) -> list[str]:
    ratio = f", {result['ratio']:.0%}" if result["ratio"] is not None else ""
    size, quality = result["bytes"], result["quality"]
    shown = f"{quality['perplexity']:.3f}", _kl(quality["mean_kl"])
    return [f"{NAMES[result['method']]}{ratio}", f"{size / 1e6:.2f}", f"{size / whole:.2f}", *shown]


def brief(found: Sequence[dict[str, Any]], title: str, said: str) -> list[str]:
    """All ratios in one table: a row per method, by excess at the largest ratio that it has."""
    if not found:
        return []
    every = ratios(found)
    rows: dict[str, dict[float, dict[str, Any]]] = {}
    for each in found:
        if each["ratio"] is not None and not each["method"].endswith("int4"):
            rows.setdefault(each["method"], {})[each["ratio"]] = each
    order = sorted(rows, key=lambda method: excess(rows[method][max(rows[method])]))
    cells = [
        [NAMES[method], *(_brief(rows[method][ratio]) if ratio in rows[method] else "-" for ratio in every)]
        for method in order
    ]
    head = " | ".join(f"{ratio:.0%}" for ratio in every)
    return [
        f"## {title}\n",
        f"{said}: excess perplexity, mean KL (weights removed).\n",
        f"{_measured_on(found[0])}\n",
        table(f"method | {head}", cells),
    ]


def _brief(result: dict[str, Any]) -> str:
    if result["linear_parameters"] == result["base"]["linear_parameters"]:
        return "nothing fits"
    return f"{excess(result):z.2f}, {_kl(result['quality']['mean_kl'])} ({removed(result):.1%})"


def settings(found: list[dict[str, Any]]) -> list[str]:
    """What was tried for rivals with more than one setting."""
    rows = [
        [NAMES[each["method"]], f"{each['ratio']:.0%}", _said(one["setting"]), f"{one['perplexity']:.3f}", mark]
        for each in found
        if len(each.get("tried", ())) > 1
        for one in each["tried"]
        for mark in ["x" if one["setting"] == each["setting"] else ""]
    ]
    head = "rival | ratio | setting | perplexity on the first held-out sequences | taken"
    return ["## Settings tried\n", table(head, rows)] if rows else []


def _said(setting: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in setting.items())


if __name__ == "__main__":
    main()
