"""What this CPU's instructions give, and what the kernels of hubplugin make of them, beside torch's own: in one run.

    python bench/kernel_rates.py [--rounds 9]

Shapes are those of SmolLM2-135M, 2,048 tokens at a time, as the engine takes them. Prints a table: the median of the
rounds, the two sides by turns. Where a CPU has no fast bfloat16 instructions hubplugin uses torch's own.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import measure
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from hubplugin.kernels import rotary_embedding
from hubplugin.kernels.instructions import causal_attention, panel_products
from hubplugin.kernels.second_moments import PreparedInputs, half_precision, products_of, zero_sum

TOKENS, WINDOW = 2048, 512
HEADS, KV_HEADS, WIDTH = 9, 3, 64
SHAPES = ((576, 576), (1536, 576), (576, 1536), (49152, 576))  # outputs, inputs
WIDTHS = (576, 1536)


@dataclass(frozen=True)
class Race:
    """The same work in torch's way and in ours."""

    name: str
    operations: float  # floating-point, that the result needs
    theirs: Callable[[], object]
    ours: Callable[[], object]


def races() -> Iterator[Race]:
    """All of them."""
    for outputs, inputs in SHAPES:
        yield from _products(outputs, inputs, TOKENS if outputs < 4 * TOKENS else TOKENS // 6)
    for width in WIDTHS:
        yield from _sums(width)
    for dtype in (torch.bfloat16, torch.float32):
        yield _attention(dtype)
        yield _rotation(dtype)


def _products(outputs: int, inputs: int, rows: int) -> Iterator[Race]:
    weight, x, out = torch.randn(outputs, inputs), torch.randn(rows, inputs), torch.empty(rows, outputs)
    size = f"{rows} x {inputs} x {outputs}"
    yield Race(f"float32: {size}", 2.0 * rows * inputs * outputs, *_sides(x, weight, out))
    halves = x.bfloat16(), weight.bfloat16()
    yield Race(f"bfloat16 to float32: {size}", 2.0 * rows * inputs * outputs, *_sides(*halves, out))


def _sides(x: Tensor, weight: Tensor, out: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    def theirs() -> Tensor:  # to memory that is there, where torch can
        return torch.mm(x, weight.T, out=out) if x.dtype == out.dtype else linear(x, weight).float()

    return theirs, (lambda: panel_products.product(x, weight, out)) if panel_products.fits(x, weight) else theirs


def _sums(width: int) -> Iterator[Race]:
    x, base = torch.randn(TOKENS, width).bfloat16(), torch.randn(TOKENS, 576).bfloat16()
    square, cross, prepared = zero_sum(x.float(), width), zero_sum(x.float(), 576), PreparedInputs()

    def squared() -> None:
        with products_of(x.dtype):
            square.addmm_(x.float().T, x.float())

    def crossed() -> None:
        with products_of(half_precision(x)):
            cross.addmm_(base.float().T, x.float())

    operations = TOKENS * width * (width + 1.0)
    yield Race(f"second moments: {TOKENS} x {width}", operations, squared, lambda: prepared.take(x).add_square(square))
    operations = 2.0 * TOKENS * width * 576
    yield Race(
        f"cross moments: {TOKENS} x {width}, 576",
        operations,
        crossed,
        lambda: prepared.take(x).add_product(cross, base),
    )


def _heads(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(TOKENS // WINDOW, WINDOW, count, WIDTH).to(dtype).transpose(1, 2)


def _rotation(dtype: torch.dtype) -> Race:
    query, key = _heads(HEADS, dtype), _heads(KV_HEADS, dtype)
    cos, sin = (torch.rand(1, WINDOW, WIDTH).to(dtype) for _ in range(2))
    name = f"rotary embedding, {str(dtype).removeprefix('torch.')}: {HEADS} and {KV_HEADS} heads"
    operations = 3.0 * TOKENS * (HEADS + KV_HEADS) * WIDTH
    return Race(
        name,
        operations,
        lambda: apply_rotary_pos_emb(query, key, cos, sin),
        lambda: [rotary_embedding.rotated(each, cos, sin) for each in (query, key)],
    )


def _attention(dtype: torch.dtype) -> Race:
    query, key, value = _heads(HEADS, dtype), _heads(KV_HEADS, dtype), _heads(KV_HEADS, dtype)

    def theirs() -> Tensor:
        made = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return made.transpose(1, 2).contiguous()

    def ours() -> Tensor:
        return causal_attention.attend(query, key, value, WIDTH**-0.5)

    sizes = f"{TOKENS // WINDOW} x {HEADS} heads x {WINDOW} x {WIDTH}"
    name = f"causal attention, {str(dtype).removeprefix('torch.')}: {sizes}"
    operations = 2.0 * TOKENS * WINDOW * HEADS * WIDTH  # half of all pairs
    return Race(name, operations, theirs, ours if causal_attention.fits(query, key, value) else theirs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    machine = measure.machine()
    named = f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['features'])}"
    print(f"{named}; torch {torch.__version__}\n")
    print("| | torch, ms | hubplugin, ms | ratio | torch, GFLOP/s | hubplugin, GFLOP/s |\n|---|" + "---:|" * 5)
    with torch.inference_mode():
        for race in races():
            theirs, ours = _medians(race, rounds)
            rates = " | ".join(f"{race.operations / seconds / 1e9:.0f}" for seconds in (theirs, ours))
            print(
                f"| {race.name} | {1e3 * theirs:.2f} | {1e3 * ours:.2f} | {ours / theirs:.2f} | {rates} |", flush=True
            )


def _medians(race: Race, rounds: int) -> list[float]:
    """Seconds of both sides, by turns; the first round is not counted."""
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for seconds, work in zip(taken, (race.theirs, race.ours), strict=True):
            start = time.perf_counter()
            work()
            if number:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in taken]


if __name__ == "__main__":
    main()
