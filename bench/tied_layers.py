"""What it costs that two neighbouring blocks share the weights of their linears, beside leaving one of them out.

    python bench/tied_layers.py MODEL --calibration a.txt --held-out b.txt [--pairs 1 2 4 8]

Both save the bytes of one block; norms, which are small, stay each block's own. Shared weights are one block's, the
mean of both, the mean once the channels of the second MLP are in the order of those that are most like them (the
assignment of greatest cosine similarity), or the least-squares solution for both: W = (W1 H1 + W2 H2) (H1 + H2)^-1
minimizes |(W - W1) X1|^2 + |(W - W2) X2|^2, H being the second moments of the base's activations. Attention heads are
shared in the order in which they are. Nothing is trained. Prints Markdown.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import Linear, Module
from transformers import AutoModelForCausalLM, AutoTokenizer

from hubplugin.evaluation.token_statistics import LogitsPiece, kl_from_base, negative_log_likelihood
from hubplugin.progress import progress

DAMP = 0.01  # of the mean of the diagonal
WITHOUT = "the second block left out"
Weights = dict[str, Tensor]


class Base:
    """A Llama in float32, what its blocks see of the held-out text, and the second moments of what they see of another.

    Logits are kept: [sequences, tokens, vocabulary] in float32.
    """

    def __init__(self, folder: Path, calibration: Tensor, held_out: Tensor) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.blocks: list[Module] = list(self.model.model.layers)
        self.own = [weights_of(block) for block in self.blocks]
        positions = torch.arange(held_out.shape[1])[None]
        self.rotary = self.model.model.rotary_emb(torch.empty(1, 1), positions)
        self.held_out = held_out
        self.moments = self._moments(calibration)
        self.inputs = [self.model.model.embed_tokens(held_out)]
        for block in self.blocks:
            self.inputs.append(self.through(block, self.inputs[-1]))
        self.logits = self.head(self.inputs[-1])
        pieces = zip(self.logits, held_out, strict=True)
        self.losses = [negative_log_likelihood(LogitsPiece(rows[:-1], tokens[1:])) for rows, tokens in pieces]

    def _moments(self, tokens: Tensor) -> list[Weights]:
        """For each block and each of its linears, [inputs, inputs]."""
        found: list[Weights] = [{} for _ in self.blocks]
        handles = []

        def watch(linear: Linear, name: str, moments: Weights) -> None:
            def add(module: Module, inputs: tuple[Tensor], output: Tensor) -> None:
                x = inputs[0].flatten(0, -2)
                moments[name] = x.T @ x

            handles.append(linear.register_forward_hook(add))

        for block, moments in zip(self.blocks, found, strict=True):
            for name, linear in linears(block):
                watch(linear, name, moments)
        self.model(tokens, use_cache=False, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        return found

    def through(self, block: Module, stream: Tensor) -> Tensor:
        """[sequences, tokens, hidden] behind one block."""
        return torch.cat([block(rows[None], position_embeddings=self.rotary)[0:1] for rows in stream])

    def head(self, stream: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.model.lm_head(self.model.model.norm(stream))
        return logits

    def measured(self, changed: dict[int, Weights], without: Sequence[int] = ()) -> tuple[float, float]:
        """Perplexity over the base's and mean KL in nats of a token, with some blocks' weights changed or blocks left
        out; the base is as it was afterwards."""
        begin = min([*changed, *without])
        for index, weights in changed.items():
            load(self.blocks[index], weights)
        stream = self.inputs[begin]
        for index in range(begin, len(self.blocks)):
            stream = stream if index in without else self.through(self.blocks[index], stream)
        for index in changed:
            load(self.blocks[index], self.own[index])
        excess, divergences = [], []
        for rows, base, losses, tokens in zip(stream, self.logits, self.losses, self.held_out, strict=True):
            piece = LogitsPiece(self.head(rows)[:-1], tokens[1:], base[:-1])
            excess.append(negative_log_likelihood(piece) - losses)
            divergences.append(kl_from_base(piece))
        return float(torch.cat(excess).mean().exp()), float(torch.cat(divergences).mean())


def linears(block: Module) -> Iterator[tuple[str, Linear]]:
    """Of a block, by name."""
    yield from ((name, module) for name, module in block.named_modules() if isinstance(module, Linear))


def weights_of(block: Module) -> Weights:
    """Copies, [outputs, inputs]."""
    return {name: linear.weight.detach().clone() for name, linear in linears(block)}


def load(block: Module, weights: Weights) -> None:
    """Into its linears."""
    for name, linear in linears(block):
        linear.weight.copy_(weights[name])


def aligned(first: Weights, second: Weights) -> Tensor:
    """For each channel of the first MLP one of the second's, each once: those whose weights are most alike."""

    def channels(weights: Weights) -> Tensor:
        parts = weights["mlp.gate_proj"], weights["mlp.up_proj"], weights["mlp.down_proj"].T
        return torch.cat([torch.nn.functional.normalize(part, dim=1) for part in parts], 1)

    return torch.from_numpy(linear_sum_assignment(channels(first) @ channels(second).T, maximize=True)[1])


def permuted(weights: Weights, order: Tensor) -> Weights:
    """The same MLP with its channels in another order."""
    rows = {name: weights[name][order] for name in ("mlp.gate_proj", "mlp.up_proj")}
    return {**weights, **rows, "mlp.down_proj": weights["mlp.down_proj"][:, order]}


def mean(first: Weights, second: Weights) -> Weights:
    """Of each weight."""
    return {name: (first[name] + second[name]) / 2 for name in first}


def fitted(first: Weights, second: Weights, moments: Weights, others: Weights) -> Weights:
    """The least-squares solution for both blocks' activations, damped towards the mean."""
    solved = {}
    for name, middle in mean(first, second).items():
        both = moments[name] + others[name]
        both = both + DAMP * both.diagonal().mean() * torch.eye(len(both))
        apart = (first[name] - middle) @ moments[name] + (second[name] - middle) @ others[name]
        solved[name] = middle + torch.cholesky_solve(apart.T, torch.linalg.cholesky(both)).T
    return solved


def ways(base: Base, index: int) -> dict[str, Callable[[], Weights]]:
    """What blocks `index` and the next may share."""
    first, second = base.own[index], base.own[index + 1]
    order = aligned(first, second)
    same = permuted(second, order)
    moved = base.moments[index + 1]
    moved = {**moved, "mlp.down_proj": moved["mlp.down_proj"][order][:, order]}
    return {
        "the first block's": lambda: first,
        "the second block's": lambda: second,
        "their mean": lambda: mean(first, second),
        "their mean, channels aligned": lambda: mean(first, same),
        "fitted to both, channels aligned": lambda: fitted(first, same, base.moments[index], moved),
    }


@torch.inference_mode()
def main() -> None:
    """Every pair alone, then the cheapest ones together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--sequences", type=int, nargs=2, default=[32, 8], help="of calibration, of evaluation")
    parser.add_argument("--tokens", type=int, default=512, help="of each sequence")
    parser.add_argument("--pairs", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def read(file: Path, sequences: int) -> Tensor:
        ids = tokenizer(file.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
        return ids[: sequences * options.tokens].view(sequences, options.tokens)

    files = zip((options.calibration, options.held_out), options.sequences, strict=True)
    base = Base(options.model, *(read(file, count) for file, count in files))
    alone: dict[str, list[tuple[float, float]]] = {}
    for index in range(len(base.blocks) - 1):
        progress(f"blocks {index} and {index + 1} of {len(base.blocks)}")
        for name, make in ways(base, index).items():
            alone.setdefault(name, []).append(base.measured(dict.fromkeys((index, index + 1), make())))
        alone.setdefault(WITHOUT, []).append(base.measured({}, [index + 1]))
    print(f"| {len(base.blocks) - 1} pairs, one at a time | least mean KL | median | perplexity / base at the least |")
    print("|---|---:|---:|---:|")
    for name, found in alone.items():
        losses = torch.tensor(found)
        ratio, least = found[int(losses[:, 1].argmin())]
        print(f"| {name} | {least:.3f} | {losses[:, 1].median():.3f} | {ratio:.3f} |", flush=True)
    together(base, alone, options.pairs)


def together(base: Base, alone: dict[str, list[tuple[float, float]]], counts: Sequence[int]) -> None:
    """The pairs of least KL that do not overlap, by each way, and as many blocks left out."""
    print(f"\n| blocks saved of {len(base.blocks)} | way | perplexity / base | mean KL |\n|---:|---|---:|---:|")
    for count in counts:
        for name, found in alone.items():
            chosen: list[int] = []
            for index in sorted(range(len(found)), key=lambda index: found[index][1]):
                apart = name == WITHOUT or all(abs(index - other) > 1 for other in chosen)
                if apart and len(chosen) < count:
                    chosen.append(index)
            if name == WITHOUT:
                ratio, divergence = base.measured({}, [index + 1 for index in chosen])
            else:
                shared = {index: ways(base, index)[name]() for index in chosen}
                changed = {index + step: weights for index, weights in shared.items() for step in (0, 1)}
                ratio, divergence = base.measured(changed)
            print(f"| {len(chosen)} | {name} | {ratio:.3f} | {divergence:.3f} |", flush=True)


if __name__ == "__main__":
    main()
