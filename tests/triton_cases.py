"""Problems for the Triton kernels, and a script that solves them in Triton's interpreter, which must be chosen before
Triton is first imported: `TRITON_INTERPRET=1 python tests/triton_cases.py sweeps|moments OUT.pt`.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hubplugin.methods import linear_algebra
from hubplugin.methods.gptq import grid
from hubplugin.methods.gptq.grid import Spec

SHARES = grid.shrinking(2, 128)[::6]
SIGNED = (*SHARES, *(-share for share in SHARES))


@dataclass(frozen=True)
class Case:
    """A sweep; `width` and `panel` are the kernel's own sizes where they differ from what it ships with."""

    inputs: int
    outputs: int
    spec: Spec
    width: int = 128
    panel: int = 8


SWEEPS = {
    "4-bit, groups of 128, clip search": Case(256, 21, Spec(4, 128, shares=grid.shrinking(4, 128))),
    "4-bit, groups of 64, last block short": Case(192, 5, Spec(4, 64)),
    "3-bit, groups of 32, own zeros": Case(160, 21, Spec(3, 32, symmetric=False, shares=SHARES)),
    "2-bit, groups of 32, signed": Case(128, 37, Spec(2, 32, shares=SIGNED)),
    "8-bit, whole rows of ugly length": Case(200, 19, Spec(8, 200)),
    "4-bit, whole rows, own zeros": Case(136, 19, Spec(4, 136, symmetric=False, shares=(0.9, 0.7))),
    "8-bit, groups of 64, own zeros": Case(64, 19, Spec(8, 64, symmetric=False)),
    "4-bit, whole rows shorter than a block": Case(40, 5, Spec(4, 40, shares=SIGNED)),
    "3-bit, odd groups": Case(192, 21, Spec(3, 96, shares=(0.8,))),
    "4-bit, many panels": Case(160, 21, Spec(4, 32, shares=(0.8,)), width=32, panel=2),
}
SHAPES = ((130, 261), (64, 32), (7, 100))  # tokens, inputs


def problem(case: Case) -> tuple[torch.Tensor, linear_algebra.Factor, torch.Tensor]:
    """Columns, factor and importance, in float32, of strongly correlated inputs; one of them is never excited."""
    generator = torch.Generator().manual_seed(case.inputs * 1000 + case.outputs)
    mix = torch.randn(case.inputs, case.inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(2 * case.inputs, case.inputs, generator=generator, dtype=torch.float64) @ mix
    x[:, 3] = 0
    alive, _ = linear_algebra.without_dead((x.T @ x).float())
    columns = torch.randn(case.inputs, case.outputs, generator=generator)
    columns[3] = 0
    return columns, linear_algebra.factor(alive, 0.01), alive.diagonal()


def activations(tokens: int, inputs: int) -> torch.Tensor:
    """Float16, because the interpreter multiplies bfloat16 as if it were integers."""
    return torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64).half()


def awkward_weights() -> torch.Tensor:
    """Weights over float32's range whose scales are bfloat16's and float16's ties, zero, and subnormal halves."""
    ties = torch.tensor([1.0, 1.5, 2.0**-20, 2.0**-14, 2.0**-15]) * (1 + 2.0**-8)
    scales = torch.cat([torch.logspace(-38, 37, 500), ties, ties * (1 + 2.0**-7), torch.tensor([0.0, 60000.0])])
    return scales * 7.5


def interpreted(what: str, folder: Path) -> dict[str, Any]:
    """The answers to "sweeps" or "moments", from a process of its own."""
    out = folder / "answers.pt"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, what, out], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = torch.load(out)
    return answers


def compiled_for_hopper(
    kernel: Any, kinds: dict[str, str], fixed: dict[str, Any], options: dict[str, Any], aligned: tuple[str, ...] = ()
) -> Any:
    """A kernel compiled for compute capability 9.0, which needs no device. Arguments are i32 unless `kinds` says."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    place = {name: (number,) for number, name in enumerate(kernel.arg_names)}
    signature = {name: "constexpr" if name in fixed else kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(
        kernel,
        signature,
        constexprs={place[name]: value for name, value in fixed.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": True, **options})


def sweeps() -> dict[str, Any]:
    """Codes, scales and zeros by case; awkward scales, fitted to groups of one weight, by sign."""
    from hubplugin.methods.gptq import loop_cuda, loop_triton

    answers: dict[str, Any] = {}
    for name, case in SWEEPS.items():
        loop_cuda.BLOCK, loop_cuda.PANEL = case.width, case.panel
        swept = loop_cuda.sweep(*problem(case), case.spec)
        answers[name] = (swept.codes, swept.scales, swept.zeros)
    for sign in (1.0, -1.0):
        weight = awkward_weights()
        scale, zero = torch.empty_like(weight), torch.empty_like(weight)
        sizes = {"outputs": len(weight), "count": 1, "tried": 1, "SYMMETRIC": True, "TOP": 15, "ROWS": 128}
        grid = (-(-len(weight) // 128),)
        loop_triton.fit_rows[grid](weight, torch.ones(1), torch.tensor([sign]), scale, zero, **sizes)
        answers[f"scales {sign}"] = scale
    return answers


def moments() -> dict[str, Any]:
    """The second moments of activations and once more of their first half, by shape, in small tiles; one product."""
    from hubplugin.kernels import xtx_cuda

    xtx_cuda.TALL, xtx_cuda.WIDE, xtx_cuda.DEEP, xtx_cuda.SPAN = 32, 64, 16, 48
    answers = {}
    for shape in SHAPES:
        x = activations(*shape)
        answers[f"moments {shape}"] = total = torch.zeros(shape[1], shape[1])
        xtx_cuda.add_lower(total, x)
        xtx_cuda.add_lower(total, x[: shape[0] // 2])
    answers["product"] = torch.ones(37, 261)
    xtx_cuda.add_product(answers["product"], activations(130, 37), activations(130, 261))
    return answers


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save({"sweeps": sweeps, "moments": moments}[sys.argv[1]](), sys.argv[2])
