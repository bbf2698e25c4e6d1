"""What evaluation costs, and whether it says the same: as it was done until 0.1 against as it is done now, in one run.

    python bench/evaluation.py BASE TEXT FOLDER... [--windows 64] [--length 512] [--out FILE.json]

BASE is a model folder, TEXT a file, each FOLDER a variant of the base. Every way is a process of its own that measures
the base and then all variants; wall time counts from the first weight that is read. Prints a table.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure

WAYS = ("before", "now", "now, bfloat16")
KEYS = ("perplexity", "mean_kl", "p99_kl", "top1_agreement")
LIMIT = 4 * 3600.0  # seconds for a way


def main() -> None:
    """Run all ways, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bfloat16", action="store_true", help="A third way, for processors that are faster at it.")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        options.out.write_text(json.dumps(measured(options)), encoding="utf-8")
        return
    ways = WAYS if options.bfloat16 else WAYS[:2]
    results = {way: _in_a_process(way, options) for way in ways}
    if options.out:
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(page(results))


def _in_a_process(way: str, options: argparse.Namespace) -> dict[str, Any]:
    """One way, and what its process cost."""
    import os

    with TemporaryDirectory() as folder:
        out, log = Path(folder, "out.json"), Path(folder, "log")
        given = [options.base, options.text, *options.folders, "--way", way, "--out", out]
        sizes = ["--windows", options.windows, "--length", options.length]
        command = [sys.executable, __file__, *map(str, (*given, *sizes))]
        cost = measure.run(command, dict(os.environ), log, LIMIT)
        if cost.status:
            raise SystemExit(f"{way}: ended with {cost.status}\n{log.read_text(encoding='utf-8')[-2000:]}")
        return {**json.loads(out.read_text(encoding="utf-8")), "peak": cost.peak, "others": cost.others}


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Base and variants in this process, with seconds by folder."""
    import evaluation_before
    import torch

    from hubplugin.evaluation import quality_metrics
    from hubplugin.model.architectures import configs, families
    from hubplugin.model.construction.tokenizer_files import read_tokenizer
    from hubplugin.report import Tokens

    read = read_tokenizer(options.base)(options.text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    ids = torch.tensor(read[: options.windows * options.length], dtype=torch.int32).reshape(-1, options.length)
    row = families.match(configs.read_config(options.base, str(options.base)), str(options.base))
    found: dict[str, Any] = {"tokens": ids.numel(), "wall": {}, "cpu": {}, "quality": {}}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.monotonic(), time.process_time()
        made = work()
        found["wall"][name], found["cpu"][name] = time.monotonic() - wall, time.process_time() - cpu
        return made

    if options.way == "before":
        base = timed("base", lambda: evaluation_before.reference(options.base, row, ids))
        found["quality"]["base"] = base.quality
        for folder in options.folders:
            quality = timed(folder.name, lambda folder=folder: evaluation_before.measure(folder, row, base))
            found["quality"][folder.name] = quality
        return found
    dtype = torch.bfloat16 if options.way == WAYS[2] else torch.float32
    described = Tokens(
        source=options.text.name, sequences=len(ids), tokens_per_sequence=options.length, seed=0, sha256=""
    )
    reference = timed("base", lambda: quality_metrics.reference(options.base, row, ids, described, dtype))
    found["quality"]["base"] = reference.quality.model_dump()
    found["floor"] = reference.floor.model_dump() if reference.floor else None
    for folder in options.folders:
        made = timed(folder.name, lambda folder=folder: quality_metrics.measure(folder, row, reference, kl=True))
        found["quality"][folder.name] = made.variant.model_dump()
    return found


def page(results: dict[str, dict[str, Any]]) -> str:
    """The table: seconds of each way and their ratio, and how far the numbers are apart."""
    before = results[WAYS[0]]
    machine = measure.machine()
    lines = [
        f"{before['tokens']} tokens, {machine['processor']}, {machine['cores']} cores, {', '.join(machine['features'])}"
    ]
    for way, now in results.items():
        busy = f"{now['others']:.0%} of the cores were used by others"
        lines.append(f"{way}: peak {now['peak'] / 2**20:.0f} MiB, {busy}")
        if now.get("floor"):
            lines.append(f"floor of bfloat16: mean KL {now['floor']['mean_kl']:.2e}")
        if way == WAYS[0]:
            continue
        lines += [
            "",
            "| | wall s, before | now | ratio | cpu s, before | now | ratio | perplexity | mean KL | KL differs |",
        ]
        lines.append("|---|" + "---:|" * 9)
        lines += [_line(name, before, now) for name in before["wall"]]
        lines += [_total(before, now), ""]
    return "\n".join(lines)


def _costs(before: dict[str, float], now: dict[str, float]) -> list[str]:
    """Seconds of some folders in both ways."""
    one, other = sum(before.values()), sum(now.values())
    return [f"{one:.1f}", f"{other:.1f}", f"{other / one:.2f}"]


def _line(name: str, before: dict[str, Any], now: dict[str, Any]) -> str:
    costs = [_costs({name: before[kind][name]}, {name: now[kind][name]}) for kind in ("wall", "cpu")]
    old, new = before["quality"][name], now["quality"][name]
    cells = [f"{new['perplexity'] / old['perplexity'] - 1:+.1e}"]
    cells += [f"{new['mean_kl']:.4g}", f"{new['mean_kl'] / old['mean_kl'] - 1:+.1e}"] if "mean_kl" in old else ["", ""]
    return f"| {' | '.join([name, *costs[0], *costs[1], *cells])} |"


def _total(before: dict[str, Any], now: dict[str, Any]) -> str:
    costs = [_costs(before[kind], now[kind]) for kind in ("wall", "cpu")]
    return f"| {' | '.join(['together', *costs[0], *costs[1], '', '', ''])} |"


if __name__ == "__main__":
    main()
