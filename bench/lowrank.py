"""Measures low-rank factors against simpler choices of the same weights, on a model and two texts. Prints Markdown.

    python bench/lowrank.py MODEL --calibration a.txt --held-out b.txt [--ratios 0.1 0.2 0.3] [--only NAME...]

Every row removes a ratio of the weights of the blocks' linears. "plain SVD" and "whitened" have one rank per shape, by
the ratio alone; the others come from one search, whose measurements are taken once, with the ranks of the largest ratio
(`run` takes them for each variant). `--codes '{"bits": 4, "group_size": 32}'` measures every ratio with
both factors quantized too, and `--beside` codes of whole weights. Perplexity and KL are those of the evaluation of
`hubplugin run`.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.resume import Fingerprint
from hubplugin.checkpoint.safetensors_io import safetensors_bytes
from hubplugin.compress import stages
from hubplugin.compress.search import rank_search
from hubplugin.hub import snapshots
from hubplugin.job import Job
from hubplugin.manifest.methods import factorization_of
from hubplugin.manifest.reading import loading
from hubplugin.manifest.steps.lowrank import LowRank
from hubplugin.model.block_runner import Model
from hubplugin.plan import planner
from hubplugin.plan.choices.ranks import Losses, RankSpace, Sensitivity, below_break_even
from hubplugin.plan.draft import DraftPlan, rank_space
from hubplugin.plan.schemes import Factors
from hubplugin.plan.variant_plan import VariantPlan

ALONE = "weights alone"
COLUMNS = "removed | ranks | targets | codes | bytes | perplexity / base | mean KL | same most likely token | seconds"


def main() -> None:
    """Print a line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512, help="of each sequence")
    parser.add_argument("--rank-multiple", type=int, default=32)
    parser.add_argument("--codes", type=json.loads, help="settings of a gptq step after lowrank")
    parser.add_argument("--beside", type=json.loads, nargs="+", default=[], help="settings of gptq steps alone")
    parser.add_argument("--only", nargs="+", default=list(RANKS), choices=list(RANKS))
    options = parser.parse_args()
    print(f"| {COLUMNS} |\n|---|---|---|{'---:|' * (COLUMNS.count('|') - 2)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="lowrank-") as work:
        bench = Bench(_job(options, Path(work)), Path(work))
        for draft in bench.job.plan.drafts:
            for name in _names(draft, options.only):
                print(f"| {bench.row(draft, name)} |", flush=True)


def _names(draft: DraftPlan, only: Sequence[str]) -> Sequence[str | None]:
    """The rows of a variant: without factors one, and with codes none of a decomposition that sees no data."""
    if _step(draft) is None:
        return [None]
    return [name for name in only if len(draft.recipe.steps) == 1 or ALONE not in name]


def _job(options: argparse.Namespace, work: Path) -> Job:
    def source(path: Path) -> dict[str, Any]:
        return {"files": [str(path.resolve())], "samples": options.sequences, "sequence_length": options.tokens}

    step = {"method": "lowrank", "rank_multiple": options.rank_multiple}
    variants = {f"R{100 * ratio:g}": [{**step, "ratio": ratio}] for ratio in options.ratios}
    if options.codes:
        variants |= {f"{name}-Codes": [*steps, {"method": "gptq", **options.codes}] for name, steps in variants.items()}
    beside = enumerate(options.beside)
    variants |= {f"{number}-Beside": [{"method": "gptq", **settings}] for number, settings in beside}
    written = {
        "model": str(options.model.resolve()),
        "calibrate": source(options.calibration),
        "variants": variants,
        "evaluate": {"perplexity": source(options.held_out), "kl": True},
    }
    (work / "m.yaml").write_text(json.dumps(written), encoding="utf-8")  # JSON is YAML
    document = loading.load(work / "m.yaml")
    peek = snapshots.peek(document.manifest.model, document.folder)
    return Job(document, planner.make(document, peek.config, peek.tensors))


@dataclass
class Bench:
    """A base with its texts, and what the search has measured of it."""

    job: Job
    work: Path
    found: tuple[RankSpace, rank_search.Measured] | None = None

    def row(self, draft: DraftPlan, name: str | None) -> str:
        """One line of the table; without a name of RANKS, of a variant without factors."""
        started, (ranks, targets) = time.monotonic(), (name or ", the base's").split(", ")
        folder = self.work / "made"
        shutil.rmtree(folder, ignore_errors=True)
        variant = draft.settle(factors=RANKS[name](self, draft)) if name else draft.estimate
        if targets == ALONE:
            self.decompose(variant, folder)
        else:
            own = [step.model_copy(update={"qep": targets == "the base's"}) for step in variant.steps]
            made = replace(variant, steps=tuple(own))
            stages.run_pass(self.job.snapshot.path, made, self.job.calibration.ids, folder, Fingerprint())
        seconds, codes = time.monotonic() - started, dict.fromkeys(str(one.scheme) for one in variant.quantized)
        found = self.job.measure(variant, folder)
        assert found is not None
        quality, removed = found.variant, 1 - variant.linear_parameters / self.job.plan.linear_parameters
        size = variant.bytes if targets == ALONE else safetensors_bytes(folder)
        return (
            f"{removed:.1%} | {ranks} | {targets} | {', '.join(codes)} | {size} | "
            f"{quality.perplexity / found.base.perplexity:.3f} | {quality.mean_kl:.4f} | "
            f"{quality.top1_agreement:.1%} | {seconds:.0f}"
        )

    @property
    def search(self) -> tuple[RankSpace, rank_search.Measured]:
        """Spectra and sensitivities, taken once, with the ranks of the largest ratio."""
        if self.found is None:
            factored = [(step.ratio, step, draft) for draft in self.job.plan.drafts if (step := _step(draft))]
            _, step, draft = max(factored, key=lambda one: one[0])
            space, ids = rank_space(draft.recipe, draft.shape), self.job.calibration.ids
            assert space is not None
            model = Model(DenseView(self.job.snapshot.path), self.job.plan.config, self.job.plan.family)
            started = time.monotonic()
            self.found = space, rank_search.measure(model, ids, space, step)
            print(f"<!-- search: {time.monotonic() - started:.0f} s -->", flush=True)
        return self.found

    def decompose(self, variant: VariantPlan, folder: Path) -> None:
        """A dense folder in which linears are cut by the decomposition of their weights, without any data."""
        base = self.job.snapshot.path
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        view, tensors = DenseView(base), {}
        for name in view.names():
            tensors[name] = view.get(name).contiguous()
        for linear in variant.linears:
            if linear.factors:
                weight = tensors[f"{linear.name}.weight"]
                u, values, v = torch.linalg.svd(weight.float(), full_matrices=False)
                rank = linear.factors.rank
                cut = (u[:, :rank] * values[:rank]) @ v[:rank]
                tensors[f"{linear.name}.weight"] = cut.to(weight.dtype).contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _step(draft: DraftPlan) -> LowRank | None:
    return factorization_of(draft.recipe.steps)


def uniform(bench: Bench, draft: DraftPlan) -> dict[str, Factors]:
    """The rank of every linear by its shape and the ratio."""
    found, step = {}, _step(draft)
    assert step is not None
    for linear in draft.estimate.linears:
        outputs, inputs = linear.after
        wanted = (1 - step.ratio) * outputs * inputs / (outputs + inputs)
        found[linear.name] = Factors(max(rank for rank in below_break_even(outputs, inputs, 1) if rank <= wanted))
    return found


def searched(bench: Bench, draft: DraftPlan, alike: bool = False, shared: bool = True) -> dict[str, Factors]:
    """Those of the search; `alike`: as if every group's loss cost the model the same for its weights."""
    (widest, measured), own = bench.search, rank_space(draft.recipe, draft.shape)
    assert own is not None
    space, losses = replace(widest, room=own.room), measured.losses
    if not shared:
        losses = [Losses(tuple(2.0 for _ in each.shared), each.separate) for each in losses]
    sizes = [Sensitivity(((1.0, float(group.outputs * group.inputs)),)) for group in space.groups]
    chosen = space.choose(losses, sizes if alike else measured.sensitivities)
    return space.factors((one.ranks, one.shared) for one in chosen)


Choose = Callable[[Bench, DraftPlan], dict[str, Factors]]
RANKS: dict[str, Choose] = {
    f"uniform, {ALONE}": uniform,
    "uniform, whitened": uniform,
    "uniform, the base's": uniform,
    "searched without KL, the base's": lambda bench, draft: searched(bench, draft, alike=True),
    "searched without sharing, the base's": lambda bench, draft: searched(bench, draft, shared=False),
    "searched, whitened": searched,
    "searched, the base's": searched,
}

if __name__ == "__main__":
    main()
