"""What an expert that saw few tokens should be quantized with: `python bench/cold_experts.py MODEL TEXT`.

Experts are emulated on a dense model: the tokens that reach one block's FFN are clustered, each cluster stands for the
tokens of one expert, and the FFN is quantized for it from few tokens of the cluster. The table holds the relative loss
(in thousandths, mean over clusters) on other tokens of the same cluster. Decides nothing; it is why compress.py's rule
for cold experts is as it is (docs/maths.md, Experts).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.manifest.steps.gptq import Gptq
from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import gptq
from hubplugin.model.architectures import families
from hubplugin.model.block_runner import Model
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.model.layer_inputs import COLD

CLUSTERS, JUDGED, TOKENS, HELD_OUT = 8, 3, 512, 2500
COUNTS = (0, 64, 512, 2048, 4096)  # tokens that an emulated expert saw


def inputs_of_ffn(folder: Path, text: str, sequences: int) -> tuple[Tensor, nn.Module]:
    """What reaches the FFN [tokens, hidden] of the block in the middle, and that block."""
    view = DenseView(folder)
    row = families.match(view.config, str(folder))
    model = Model(view, view.config, row)
    ids = torch.tensor(read_tokenizer(folder)(text)["input_ids"])
    batches = model.embed(ids[: len(ids) // TOKENS * TOKENS].reshape(-1, TOKENS)[:sequences])
    middle = len(model) // 2
    for index in range(middle):
        model.block(index)
        model.forward_block(index, batches)
        model.free(index)
    block = model.block(middle)
    input_group = next(input_group for input_group in row.input_groups if input_group.name == "mlp_in")
    return torch.cat(
        [x.reshape(-1, x.shape[-1]) for x in model.capture_inputs(middle, batches, input_group)]
    ).float(), block


def clusters(x: Tensor) -> Tensor:
    """The cluster [tokens] of every token, by direction."""
    unit = x / x.norm(dim=1, keepdim=True)
    centres = unit[torch.randperm(len(x))[:CLUSTERS]]
    for _ in range(15):
        found = (unit @ centres.T).argmax(1)
        centres = torch.stack([unit[found == one].mean(0) for one in range(CLUSTERS)])
        centres /= centres.norm(dim=1, keepdim=True)
    return found


def moments(own: Tensor, large: Tensor) -> dict[str, Tensor]:
    """Candidates: second moments of the expert's own tokens, of all tokens, of both."""
    inputs = large.shape[1]
    some = large[:: -(-len(large) // (COLD * inputs))]
    everyone, sampled, mine = large.T @ large, some.T @ some, own.T @ own
    candidates = {
        "rounding": torch.eye(inputs),
        "diagonal of all": torch.diag(everyone.diagonal()),
        "all": everyone,
        "own + all as 1 per input": mine + everyone * (inputs / len(large)),
        "own + sample as 1 per input": mine + sampled * (inputs / len(some)),
    }
    return candidates | ({"own": mine} if len(own) else {})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--sequences", type=int, default=128)
    asked = parser.parse_args()
    torch.manual_seed(0)
    x, block = inputs_of_ffn(asked.model, asked.text.read_text(encoding="utf-8"), asked.sequences)
    linears = (cast(nn.Linear, block.get_submodule(f"mlp.{name}_proj")) for name in ("gate", "up", "down"))
    gate, up, down = (linear.weight.float() for linear in linears)

    def inner(rows: Tensor) -> Tensor:
        return nn.functional.silu(rows @ gate.T) * (rows @ up.T)

    cluster, step = clusters(x), Gptq(method="gptq", bits=4, group_size=128)
    cases: list[tuple[str, Tensor, Callable[[Tensor], Tensor]]] = [
        ("gate+up", torch.cat([gate, up]), lambda rows: rows),
        ("down", down, inner),
    ]
    for name, weight, of in cases:
        large = of(x[torch.randperm(len(x))[:16384]])
        for count in COUNTS:
            losses: dict[str, list[float]] = {}
            for one in cluster.bincount().argsort(descending=True)[:JUDGED]:
                rows = torch.where(cluster == one)[0]
                rows = rows[torch.randperm(len(rows))]
                judge = of(x[rows[-HELD_OUT:]])
                for how, found in moments(of(x[rows[: min(count, len(rows) - HELD_OUT)]]), large).items():
                    made = gptq.compress(weight, found, step).weight
                    losses.setdefault(how, []).append(linear_algebra.relative_loss(weight, made, judge.T @ judge))
            told = ", ".join(f"{how} {1000 * sum(each) / len(each):.2f}" for how, each in losses.items())
            print(f"{name} ({weight.shape[1]} inputs), {count} tokens: {told}", flush=True)


if __name__ == "__main__":
    main()
