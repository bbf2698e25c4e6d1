"""What compressing one variant will cost, roughly: peak memory and seconds, from shapes alone.

Memory is counted tensor by tensor, as the engine holds them, and is good to some 15 % (docs/memory.md); seconds are
those of two cores of this machine's kind, good to a factor of about two. Reports hold what was measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hubplugin.limits import DEVICE_MICRO_TOKENS, LOGITS_BYTES, MICRO_TOKENS, PROBE_TOKENS
from hubplugin.manifest.methods import Cost
from hubplugin.model.architectures.architecture import Dimensions
from hubplugin.model.architectures.families import Family, InputGroup
from serve import cpu_features

STUDENT_COPIES, TEACHER_COPIES = 5, 1  # in float32: weights, gradients, the optimizer's, the best so far; the base
TUNED_COPIES = 0.5  # the same where scales are trained: codes, scales and their moments, embeddings
ADAPTED_COPIES = 1.1  # the same where an adapter is trained: weights that stay, and a few that do not
WEIGHT_SECONDS = 4e-8  # per weight: the search of scales and the rounding, element by element
FEEDING_SECONDS = 8e-8  # per weight more, where outputs feed each other one by one
FISHER_PASSES = 12  # forward passes that two with their backward passes take the time of, outside of the kernels
COLUMN_SECONDS = 1e-4  # per column of the sweep: a handful of small tensor operations
RUNTIME_BYTES = 590 * 2**20  # Python, torch, transformers, datasets and what they keep once they have worked
DEVICE_BYTES = 600 * 2**20  # a device's context, its libraries and their workspaces
HOLES_BYTES = 84 * 2**20  # between tensors below 32 MB, which lie in the allocator's heaps ...
SLACK, MOST_SLACK = 0.3, 320 * 2**20  # ... and more by what a block needs
POOL_SLACK = 0.05  # of activations, which lie apart
SAVED = 12  # widths of a block that its backward pass finds saved, for each token ...
SAVED_LOWERED = 4  # ... and of every block, in float32, where all are trained at once with products in bfloat16
LOGIT_OPERATIONS = 500  # that the softmax of one logit and its part of a KL take the time of, in products
FP32 = 4  # bytes per number: second moments and the weights that a method works on


@dataclass(frozen=True)
class Cpu:
    """Floating-point operations per second of two cores."""

    flops: float
    training: float  # where half of the work is between products


WITH_AMX = Cpu(7e11, 2.5e11)  # measured: bfloat16 in its matrix units
WITH_BFLOAT16 = Cpu(6.1e11, 2e11)  # measured on Zen 5: bfloat16 in registers of 512 bits
WITH_AVX512 = Cpu(2e11, 1.4e11)  # twice the width of AVX2, not measured
OTHER = Cpu(1.1e11, 0.8e11)  # measured: float32 in AVX2


@dataclass(frozen=True)
class Training:
    """What training a finished folder must hold and do."""

    weights: int
    copies: float  # of all weights, in float32, where they are trained at once
    held: int  # tokens whose hidden states are held while blocks are trained
    blocks_tokens: int  # passed block by block ...
    distilled_tokens: int  # ... and all together, in all epochs
    step_tokens: int  # that pass all blocks at once
    teacher: int  # weights of the model that is learnt from; 0: it is behind an endpoint
    answers: bool = False  # the teacher is asked before, and not run beside the student
    asked_tokens: int = 0  # that it generates then
    limit: float = math.inf  # seconds that it may take


@dataclass(frozen=True)
class Work:
    """What one pass over the calibration tokens must hold and do."""

    samples: int
    tokens: int  # per sample
    quantizes: Cost | None  # of the method that makes codes, where one does
    prunes: Cost | None  # of the method that removes channels and heads
    probes: int = (
        0  # changes of single blocks that are run through the model at one time, before anything is decided ...
    )
    tried: int = 0  # ... and in all
    corrected: int = 0  # tokens that pass through the base too, to correct targets: a second set of activations
    fisher: int = 0  # tokens whose gradients are taken: what enters each block is held, and the gradient behind it
    skips: bool = False  # sublayers: the base's hidden states behind them are held too
    descends: int = 0  # passes over codes or scales that follow GPTQ's own
    head: bool = False  # the output head is quantized too
    number: int = FP32  # bytes of one that the forward pass computes in on the CPU ...
    device_number: int = FP32  # ... and on an accelerator
    cpu: Cpu = WITH_AMX
    masks: Cost | None = None  # of the method that sets single weights to zero
    factors: Cost | None = None  # of the method that makes two factors of a weight
    trainings: tuple[Training, ...] = ()  # before or after the pass
    evaluated: int = 0  # tokens whose hidden states are held in float32 to compare variants with


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    peak: int  # of the process, with activations in memory
    spilled: int  # of the process, with activations in files
    disk: int  # what these files take
    device: int  # of an accelerator that does the work: the same arithmetic, not measured


def memory(
    family: Family, dims: Dimensions, shapes: Mapping[str, tuple[int, int]], work: Work, resident: int = 0
) -> Memory:
    """Peak memory of compressing one variant.

    `resident` is a whole model in bytes, where calibration text is sampled from it before.
    """
    host = _Pass(family, dims, shapes, work, MICRO_TOKENS)
    device = _Pass(family, dims, shapes, replace(work, number=work.device_number), DEVICE_MICRO_TOKENS)
    kept = RUNTIME_BYTES + (work.evaluated * dims.hidden + bool(work.evaluated) * dims.vocab * dims.hidden) * FP32
    sampling = RUNTIME_BYTES + LOGITS_BYTES + resident if resident else 0
    training = max((kept + _training(one, dims) for one in work.trainings), default=0)
    return Memory(
        peak=max(kept + host.peak(host.activations()) + host.slack(), sampling, training),
        spilled=max(kept + host.peak(host.passing()), sampling, training),
        disk=host.activations(),
        device=DEVICE_BYTES + device.peak(device.activations()),
    )


def _training(training: Training, dims: Dimensions) -> int:
    """Bytes of a training beside what is always kept: all weights at once, or a block and the activations before it."""
    table = dims.vocab * dims.hidden * FP32
    beside = 2 * table + HOLES_BYTES + MOST_SLACK  # of the models that held-out sequences are judged by
    teacher = training.teacher * FP32 * TEACHER_COPIES
    if training.distilled_tokens:
        student = training.weights * FP32 * training.copies
        saved = training.step_tokens * SAVED_LOWERED * dims.layers * max(dims.ffn, dims.hidden) * FP32
        return int(max(student, teacher) if training.answers else student + teacher) + LOGITS_BYTES + saved + beside
    block = int((training.weights * FP32 * training.copies + teacher) / dims.layers)
    forward = MICRO_TOKENS * SAVED * max(dims.ffn, dims.hidden) * FP32
    return 2 * training.held * dims.hidden * FP32 + block + max(forward, table + LOGITS_BYTES) + beside


@dataclass(frozen=True)
class _Pass:
    """The pass over all blocks, as it stands in memory. All in bytes."""

    family: Family
    dims: Dimensions
    shapes: Mapping[str, tuple[int, int]]
    work: Work
    micro: int  # tokens of one forward call

    @property
    def corrects(self) -> bool:
        return self.work.corrected > 0

    def peak(self, activations: int) -> int:
        """The embedding table while tokens are looked up or written; else a block and its worst moment."""
        table = self.dims.vocab * self.dims.hidden * self.work.number
        return max(table + activations, self._block() + activations + self._worst(), self._head() + activations)

    def activations(self) -> int:
        """Of all samples: what enters a block, what attention made of it, and the input of the last linear."""
        return self._kept(self.work.samples * self.work.tokens) + self._probes() + self._gradients()

    def slack(self) -> int:
        """What the allocator does not give back at once (not while it spares), beside what is needed."""
        pooled = self.activations() - self._probes()
        rest = self.peak(self.activations()) - pooled
        return HOLES_BYTES + min(int(SLACK * rest), MOST_SLACK) + int(POOL_SLACK * pooled)

    def passing(self) -> int:
        """The activations of one forward call, where the others are in files."""
        return self._kept(self._micro())

    def _kept(self, tokens: int) -> int:
        widest = self.dims.hidden if self.family.experts else self.dims.ffn
        base, ahead = min(tokens, self.work.corrected), self.dims.hidden * self.work.skips
        return ((2 * self.dims.hidden + widest) * (tokens + base) + ahead * base) * self.work.number

    def _probes(self) -> int:
        return self.work.probes * _probe_tokens(self.work) * self.dims.hidden * FP32

    def _gradients(self) -> int:
        return 2 * self.work.fisher * self.dims.hidden * self.dims.layers * self.work.number

    def _micro(self) -> int:
        return min(self.work.samples * self.work.tokens, max(self.work.tokens, self.micro))

    def _block(self) -> int:
        """A block as it is stored, and what it becomes: the weights that are computed with, and their codes."""
        weights = sum(outputs * inputs for outputs, inputs in self.shapes.values())
        becomes = self.work.number * self.corrects + (self.work.quantizes is not None)
        factors = sum(outputs**2 for outputs, _ in self.shapes.values()) * FP32 * (self.work.fisher > 0)
        return int(weights * (self.work.number + becomes)) + factors

    def _worst(self) -> int:
        """What the largest input group takes at its worst moment, or the forward pass that hands hidden states on."""
        saved = SAVED if self.work.fisher else 3
        forward = self._micro() * saved * max(self.dims.ffn, self.dims.hidden) * self.work.number
        return max(forward, *(self._input_group(input_group) for input_group in self.family.input_groups))

    def _input_group(self, input_group: InputGroup) -> int:
        """Second moments are summed, a target corrected, a factor made, a loss computed: one after the other."""
        outputs = sum(self.shapes[name][0] for name in input_group.linears)
        inputs = self.shapes[input_group.linears[0]][1]
        square, stack = inputs**2 * FP32, outputs * inputs * FP32
        owed = stack if self._ends(input_group) else square  # summed by tokens that fit, and by those that check
        corrects = self.corrects and input_group.expert is None
        sums = square + 2 * owed if corrects else square * (1 if input_group.expert is None else 3)
        rows = self._micro() * inputs * (2 * FP32 + 2 * self.work.number)
        moments = [sums + rows]
        if corrects:
            part = square * (self.work.corrected < self.work.samples * self.work.tokens)  # has moments of its own
            sums += part
            moments = [sums + rows, sums + 3 * square + 4 * stack]
        shrinks = any(width.consumer in input_group.linears for width in self.family.widths)
        whole = (self.work.quantizes, self.work.masks, self.work.factors)
        for cost in (*whole, self.work.prunes if shrinks else None):
            moments += [squares * square + stacks * stack for squares, stacks in cost.peaks] if cost else []
        if self.work.descends:
            moments += [4 * square + 3 * stack, 3 * square + 4 * stack]
        return max(moments)

    def _ends(self, input_group: InputGroup) -> bool:
        return self.family.residual and any(
            sublayer.output_projection in input_group.linears for sublayer in self.family.sublayers
        )

    def _head(self) -> int:
        if not self.work.head:
            return 0
        weights = self.dims.vocab * self.dims.hidden
        return weights * (self.work.number + 4 * FP32 + 1) + 3 * self.dims.hidden**2 * FP32


def this_cpu(number: int) -> Cpu:
    """How fast a processor of this kind is at numbers of so many bytes."""
    if cpu_features.has(cpu_features.AMX):
        return WITH_AMX
    if number < FP32 and cpu_features.has(cpu_features.FAST_BFLOAT16):
        return WITH_BFLOAT16
    return WITH_AVX512 if cpu_features.has(cpu_features.AVX512) else OTHER


def seconds(family: Family, dims: Dimensions, shapes: Mapping[str, tuple[int, int]], work: Work) -> float:
    """Time of the compression itself on a CPU; pulling, sampling calibration text and evaluation come on top.

    Per block: one full forward pass to hand the compressed output on, and for each input group that is measured the
    pass up to it, its second moments, and its method: a factor and the column loop for GPTQ, an inverse and
    the refit of the consumer for pruning.
    """
    count = work.samples * work.tokens
    twice = min(work.corrected / count, 1)  # of the tokens
    size = {name: outputs * inputs for name, (outputs, inputs) in shapes.items()}
    attention = 4 * count * (work.tokens / 2) * dims.heads * dims.head_dim  # causal: half of all pairs
    consumers = {width.consumer for width in family.widths}
    total = passed = steps = 0.0  # `passed`: one forward pass up to the input group
    for index, input_group in enumerate(family.input_groups):
        inputs = shapes[input_group.linears[0]][1]
        stacked = sum(size[name] for name in input_group.linears)
        if index == 1:
            passed += attention
        reaching = count * input_group.token_ratio
        # tokens are brought to the experts of a block once
        measured = (1 + 2 * twice) * reaching * inputs**2
        prunes = work.prunes if consumers & set(input_group.linears) else None
        for cost in (work.masks, work.quantizes, work.factors, prunes):
            total += measured + cost.cubic * inputs**3 + cost.sweeps * stacked * inputs if cost else 0
        if work.masks:
            steps += inputs * COLUMN_SECONDS * len(input_group.linears)
        if work.quantizes:
            total += work.descends * 2 * stacked * inputs
            steps += stacked * WEIGHT_SECONDS * (1 + work.descends / 2) + inputs * COLUMN_SECONDS
        passed += 2 * reaching * stacked
    probes = work.tried * _probe_tokens(work)
    passed *= 1 + twice + probes / 2 / count  # half of the blocks, for each change that is tried
    passed += FISHER_PASSES * 2 * work.fisher * sum(size.values())
    total += work.fisher * sum(outputs**2 for outputs, _ in shapes.values())
    steps += (work.fisher > 0) * sum(size.values()) * FEEDING_SECONDS
    divergences = probes * dims.vocab * (2 * dims.hidden + LOGIT_OPERATIONS) / work.cpu.flops
    training = sum(min(_operations(one) / work.cpu.training, one.limit) for one in work.trainings)
    return dims.layers * ((total + passed) / work.cpu.flops + steps) + divergences + training


def _probe_tokens(work: Work) -> int:
    return min(work.samples * work.tokens, PROBE_TOKENS)


def _operations(one: Training) -> float:
    """Forward and backward of the student, and the teacher beside it or before: 6 and 2 per weight and token."""
    student = 6 * one.weights * (one.blocks_tokens + one.distilled_tokens)
    return student + 2 * one.teacher * (one.asked_tokens if one.answers else one.blocks_tokens + one.distilled_tokens)
