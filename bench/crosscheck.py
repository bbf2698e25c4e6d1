"""Our codes held against gptqmodel's, on the same tokens and under the same second moments, as a table in Markdown.

    make env-gptqmodel
    hubplugin run bench/crosscheck.yaml
    python bench/crosscheck.py bench/crosscheck.yaml

Compares each variant X with X-gptqmodel: the share of equal codes, and layer losses (ours over theirs) under the second
moments of the base's own inputs, summed here by transformers' forward in float32, which neither engine had a hand in.
KL and time come from the reports. Loads the whole base: for models that fit into memory.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hubplugin import report
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.compress.calibration import calibration_data
from hubplugin.compress.gptqmodel.worker import codes
from hubplugin.hub import snapshots
from hubplugin.manifest.reading import loading
from hubplugin.methods import linear_algebra
from hubplugin.model.construction.tokenizer_files import read_tokenizer

THEIRS = "-gptqmodel"
HEADER = (
    "variant | equal codes | layer loss, ours / theirs: median | least | most | mean KL, ours | theirs "
    "| compress, s, ours | theirs"
)


def second_moments(base: Path, ids: Tensor, names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """X^T X [inputs, inputs] of each linear over token ids [sequences, tokens], and its weight, both in float32."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    moments: dict[str, Tensor] = {}

    def adding(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1])
            moments[name] = moments.get(name, 0) + flat.T @ flat

        return add

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(adding(name))
    with torch.inference_mode():
        for row in ids.long():
            model(row[None])
    return moments, {name: model.get_submodule(name).weight.detach() for name in names}


def linears(folder: Path) -> list[str]:
    """Names of a folder's quantized linears."""
    return [name.removesuffix(".qweight") for name in Reader(folder).headers if name.endswith(".qweight")]


def row(ours: Path, theirs: Path, moments: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """One line of the table."""
    equal = total = 0
    ratios = []
    for name, weight in weights.items():
        stored, losses = [], []
        for folder in (ours, theirs):
            dense = DenseView(folder).get(f"{name}.weight")
            reader = Reader(folder)
            bits = 32 * reader.headers[f"{name}.qweight"].shape[0] // weight.shape[1]
            stored.append(codes(name, dense, reader.get(f"{name}.scales").T, bits))
            losses.append(linear_algebra.relative_loss(weight, dense, moments[name]))
        equal += int((stored[0] == stored[1]).sum())
        total += weight.numel()
        ratios.append(losses[0] / losses[1])
    made = [report.read(folder) for folder in (ours, theirs)]
    numbers = [statistics.median(ratios), min(ratios), max(ratios)]
    kl = [one.evaluation.variant.mean_kl if one.evaluation else None for one in made]
    cells = [ours.name, f"{equal / total:.2%}", *(f"{number:.3f}" for number in numbers)]
    cells += ["-" if value is None else f"{value:.4f}" for value in kl]
    cells += [f"{one.seconds['compress and export']:.1f}" for one in made]
    return " | ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    document, out = loading.load(options.manifest), options.out or Path("out") / options.manifest.stem
    pairs = [(out / name, out / f"{name}{THEIRS}") for name in document.manifest.variants if not name.endswith(THEIRS)]
    base = snapshots.pull(document.manifest.model, document.folder).path
    batch = calibration_data.tokens(document.manifest.calibrate, read_tokenizer(base), document.folder, base)
    for folder in (folder for pair in pairs for folder in pair):
        if report.read(folder).calibration.sha256 != batch.description.sha256:
            parser.error(f"{folder} was made with other tokens; run `hubplugin run {options.manifest}` again")
    moments, weights = second_moments(base, batch.ids, linears(pairs[0][0]))
    print(f"| {HEADER} |")
    print("|---|" + "---:|" * HEADER.count("|"))
    for ours, theirs in pairs:
        print(f"| {row(ours, theirs, moments, weights)} |")


if __name__ == "__main__":
    main()
