"""GPTQ's sweep for CUDA devices, in Triton: same signature and same answer as `loop.sweep`, in float32.

Rows never influence each other, so a program takes ROWS of them through a block of BLOCK columns alone: scales, codes
and errors in one launch. The error feedback of earlier blocks is a matrix product. Runs on CPU tensors under Triton's
interpreter (TRITON_INTERPRET=1, set before the first import). Knows a factor and a grid; no model, no file, no order of
columns.

Why these sizes, for 132 multiprocessors: the narrowest linears of an 8B model have 4096 rows, which 32 at a time make
128 programs, one wave. A block's fit holds 128 x 32 weights, 32 registers in each of 128 threads; a candidate costs
them 8 instructions per weight, so 73 candidates 73 * 8 * 128 * 32 / 128 lanes = 19 thousand cycles, 11 us, and no
memory traffic. The columns of a block depend on each other: 128 steps of a division, a rounding and a product, about
100 cycles each. Around that, a block reads and writes 128 * rows * (4 + 4 + 4 + 1) bytes once.
"""

import torch
import triton
from torch import Tensor

from hubplugin.kernels.xtx_cuda import ieee_products
from hubplugin.methods.gptq.grid import Spec
from hubplugin.methods.gptq.loop import Swept, fully_updated
from hubplugin.methods.gptq.loop_triton import DEPTH, block_rows, fit_rows
from hubplugin.methods.linear_algebra import Factor

BLOCK = 128  # columns of one launch
PANEL = 8  # blocks; the error feedback of all columns before a panel is one product, large enough to fill the device
ROWS = 32  # of the weight, per program
WARPS = 4


def sweep(columns: Tensor, factor: Factor, importance: Tensor, spec: Spec) -> Swept:
    """Quantize float32 columns [inputs, outputs] one after another; see `loop.sweep`."""
    columns, upper = columns.contiguous(), factor.unit_upper.contiguous()
    blocks = _blocks(len(columns), spec.group_size)
    with ieee_products():
        out = _Out(columns, upper, importance.contiguous(), spec)
        for panel in (blocks[first : first + PANEL] for first in range(0, len(blocks), PANEL)):
            start, stop = panel[0][0], panel[-1][1]
            feedback = upper[:start, start:stop].T @ out.errors[:start]
            for first, last in panel:
                block_feedback = feedback[first - start : last - start]
                if first > start:
                    block_feedback.addmm_(upper[start:first, first:last].T, out.errors[start:first])
                out.block(first, last, block_feedback)
    return Swept(out.codes, out.scales, out.zeros)


def _blocks(inputs: int, group: int) -> list[tuple[int, int]]:
    """First and last column of every block: whole groups where they fit, otherwise no block crosses a group's end."""
    width = BLOCK // group * group if group <= BLOCK else BLOCK
    unit = inputs if group <= BLOCK else group
    return [
        (first, min(first + width, start + unit))
        for start in range(0, inputs, unit)
        for first in range(start, start + unit, width)
    ]


class _Out:
    """The tensors a sweep fills, and the launches that fill them."""

    def __init__(self, columns: Tensor, upper: Tensor, importance: Tensor, spec: Spec) -> None:
        inputs, outputs = columns.shape
        groups, group = inputs // spec.group_size, spec.group_size
        self.columns, self.upper, self.importance, self.spec = columns, upper, importance, spec
        self.errors = torch.empty_like(columns)  # original minus quantized
        self.codes = torch.empty_like(columns, dtype=torch.uint8)
        self.scales, self.zeros = columns.new_empty(groups, outputs), columns.new_empty(groups, outputs)
        self.shares = columns.new_tensor((1.0, *spec.shares))
        self.fused = group <= BLOCK and group % DEPTH.value == 0 and group & (group - 1) == 0
        self.transfer = _transfer(upper, group) if self.fused else upper
        self.grid = (triton.cdiv(outputs, ROWS),)

    def block(self, first: int, last: int, feedback: Tensor) -> None:
        """Codes and errors of columns first .. last, and scales of groups that start there; overwrites `feedback`."""
        spec, inside = self.spec, slice(first, last)
        if not self.fused and first % spec.group_size == 0:
            self.fit(first // spec.group_size)
        groups = slice(first // spec.group_size, -(-last // spec.group_size))
        block_rows[self.grid](
            self.columns[inside],
            feedback,
            self.upper[inside, inside],
            self.transfer[groups],
            self.importance[inside],
            self.shares,
            self.scales[groups],
            self.zeros[groups],
            self.codes[inside],
            self.errors[inside],
            outputs=self.columns.shape[1],
            pitch=len(self.upper),
            count=last - first,
            tried=len(self.shares),
            GROUP=spec.group_size if self.fused else BLOCK,
            FIT=self.fused,
            SYMMETRIC=spec.symmetric,
            TOP=spec.top,
            ROWS=ROWS,
            num_warps=WARPS,
            enable_fp_fusion=True,
            num_stages=1,  # loads must not move ahead of the stores that feed them
        )

    def fit(self, group: int) -> None:
        """Scales and zeros of one group that is longer than a block, or of an odd size."""
        start = group * self.spec.group_size
        inside = slice(start, start + self.spec.group_size)
        updated = self.columns[inside]
        if start:
            feedback = self.upper[:start, inside].T @ self.errors[:start]
            updated = fully_updated(updated, feedback, self.upper[inside, inside]).contiguous()
        fit_rows[self.grid](
            updated,
            self.importance[inside],
            self.shares,
            self.scales[group],
            self.zeros[group],
            outputs=self.columns.shape[1],
            count=self.spec.group_size,
            tried=len(self.shares),
            SYMMETRIC=self.spec.symmetric,
            TOP=self.spec.top,
            ROWS=ROWS,
            num_warps=WARPS,
            enable_fp_fusion=True,
        )


def _transfer(upper: Tensor, group: int) -> Tensor:
    """M_gg^-T of every group [groups, group, group]: times the feedback to a group: how far its weights move."""
    groups = len(upper) // group
    inside = upper.reshape(groups, group, groups, group).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    unit = torch.eye(group, dtype=upper.dtype, device=upper.device).expand(groups, group, group)
    inverse: Tensor = torch.linalg.solve_triangular(inside.mT, unit, upper=False, unitriangular=True)
    return inverse.contiguous()
