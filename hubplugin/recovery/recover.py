"""Recovery of a pruned model: two folders in, the base and the student; the student's folder with better weights out.

Every stage is kept where held-out sequences say that it helped, measured on weights as they are stored. A killed run,
started again, goes on where it was and ends in the same bytes. Knows folders and stages; no training.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import hubplugin
from hubplugin.checkpoint import model_folder, safetensors_io
from hubplugin.checkpoint.dense_view import DenseView
from hubplugin.checkpoint.headers import Header
from hubplugin.checkpoint.model_folder import companions
from hubplugin.checkpoint.safetensors_io import TORCH, Reader
from hubplugin.checkpoint.training_checkpoints import TrainingCheckpoints
from hubplugin.disk import digest, sha256
from hubplugin.errors import CompressError
from hubplugin.limits import BLOCK_TOKENS
from hubplugin.manifest.recover import Recover
from hubplugin.model import configs, families
from hubplugin.model.block_runner import Model
from hubplugin.model.devices import device_with
from hubplugin.model.kl_divergence import divergence, logits_pairs
from hubplugin.progress import progress
from hubplugin.recovery import block_training, distillation
from hubplugin.report import RecoveredBlock, Recovery

HELD_OUT, HELD_OUT_TOKENS = 8, 2**13  # one sequence in so many, until there are so many tokens
DONE = "done"  # the mark of a folder that is whole; its notes are the report
SHARE = 0.5  # of the time limit, after which blocks are left as they are
PER_WEIGHT = 24  # bytes on a device: base, student, gradient, two moments of an optimizer, the best so far


class _Overlay:
    """A source of weights of which some are replaced. A `stream.Source`."""

    def __init__(self, folder: Path, new: Mapping[str, Tensor]) -> None:
        self._view, self._new = DenseView(folder), new
        self.config = self._view.config

    def get(self, name: str) -> Tensor:
        return self._new[name] if name in self._new else self._view.get(name)

    def below(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        for name in self._view.names():
            if name.startswith(prefix + "."):
                yield name[len(prefix) + 1 :], self.get(name)

    def __contains__(self, name: str) -> bool:
        return name in self._view


@dataclass(frozen=True)
class _Work:
    """What all stages share."""

    student: Path
    base: Path
    train: Tensor  # ids [sequences, tokens]
    held: Tensor
    headers: Mapping[str, Header]  # of the student's tensors
    device: str

    def model(self, folder: Path, new: Mapping[str, Tensor] | None = None) -> Model:
        """A folder's model in float32, with some weights replaced."""
        source = _Overlay(folder, new or {})
        return Model(source, source.config, families.match(source.config, str(folder)), device=self.device)

    @cached_property
    def reference(self) -> tuple[Model, Tensor]:
        """The base, and its last hidden states [positions, hidden] of the held-out sequences."""
        base = self.model(self.base)
        return base, base.hidden_states(self.held).flatten(0, 1)

    def divergence(self, new: Mapping[str, Tensor]) -> float:
        """Mean KL(base || student) per held-out token, of the student with some weights replaced, block by block."""
        base, expected = self.reference
        student = self.model(self.student, new)
        found = student.hidden_states(self.held).flatten(0, 1)
        pairs = logits_pairs(base, expected, student, found)
        return sum(float(divergence(*pair).sum()) for pair in pairs) / self.held.numel()

    def stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as they will be stored."""
        return {name: weight.to("cpu", TORCH[self.headers[name].dtype]) for name, weight in weights.items()}


def run(
    student: Path, base: Path, out: Path, tokens: Tensor, step: Recover, ends: Sequence[int] | None = None
) -> Recovery:
    """Train a pruned student towards its base and write it to `out`: names, shapes and dtypes stay, weights differ.

    `tokens` are ids [sequences, tokens]; one sequence in eight is held out. `ends` names for each of the student's
    blocks the base's block whose output it should match; None: the same one. A folder that is finished is kept as it
    is. What a killed run needs stands under resume.FOLDER in `out`, and is the caller's to remove. Raises CompressError
    where there are too few sequences, and where `out` was begun with something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    ends = tuple(range(_depth(student))) if ends is None else tuple(ends)
    marks = TrainingCheckpoints(out, _identity(student, base, tokens, step, ends))
    if DONE in marks:
        return Recovery.model_validate(marks.notes(DONE))
    train, held = split(tokens)
    work = _Work(student, base, train, held, Reader(student).headers, _device(student, base))
    done, new = _stages(work, step, ends, marks)
    _write(work, new, out)
    marks.put(DONE, {}, done.model_dump(mode="json"))
    marks.keep(DONE)
    return done


def _stages(
    work: _Work, step: Recover, ends: tuple[int, ...], marks: TrainingCheckpoints
) -> tuple[Recovery, dict[str, Tensor]]:
    """Both stages; what they did, and the tensors that are better than the student's, as they will be stored."""
    seconds, limit = {}, math.inf if step.minutes is None else 60 * step.minutes
    first = least = work.divergence({})
    progress(f"recover | held-out KL {first:.5f} as pruned")
    new: dict[str, Tensor] = {}
    results: list[RecoveredBlock] = []
    after_blocks = None
    if step.blocks:
        trained: dict[str, Tensor] = {}
        for result, tensors in _blocks(work, step, ends, marks, SHARE * limit):
            results.append(result)
            trained |= tensors
        after_blocks = work.divergence(trained)
        progress(f"recover | held-out KL {after_blocks:.5f} after its blocks")
        if after_blocks < least:
            least, new = after_blocks, trained
        seconds["blocks"] = sum(marks.notes(block_training.mark(index))["seconds"] for index in range(len(ends)))
    distilled = None
    if step.distill:
        whole = work.model(work.student, new)
        left = None if step.minutes is None else limit - seconds.get("blocks", 0.0)
        models = whole.load_all(), work.model(work.base).load_all()
        training = distillation.Distillation(*models, whole.family, (work.train, work.held), step, least, left)
        distilled = training.run(marks)
        trained = work.stored(distilled.weights)
        seconds["distillation"] = distilled.seconds
        after = work.divergence(trained)
        progress(f"recover | held-out KL {after:.5f} after distillation, as stored")
        if after < least:
            least, new = after, trained
    seen = set(range(_sequences_of_blocks(work) if step.blocks else 0)) | (distilled.seen if distilled else set())
    made = Recovery(
        trained=_words(step),
        tokens=len(seen) * work.train.shape[1],
        held_out_tokens=work.held.numel(),
        steps=distilled.steps if distilled else 0,
        best_step=distilled.best_step if distilled else 0,
        stopped=distilled.stopped if distilled else "",
        seconds={name: round(value, 2) for name, value in seconds.items()},
        blocks=tuple(results),
        kl_before=first,
        kl_blocks=after_blocks,
        kl_after=least,
    )
    return made, new


def _blocks(
    work: _Work, step: Recover, ends: tuple[int, ...], marks: TrainingCheckpoints, limit: float
) -> Iterator[tuple[RecoveredBlock, dict[str, Tensor]]]:
    """The first stage, on as many of the sequences as may be held."""
    count = _sequences_of_blocks(work)
    stored = {name: TORCH[header.dtype] for name, header in work.headers.items()}
    models = work.model(work.student), work.model(work.base)
    yield from block_training.blocks(*models, (work.train[:count], work.held), step.blocks, ends, stored, marks, limit)


def _sequences_of_blocks(work: _Work) -> int:
    return min(len(work.train), max(1, BLOCK_TOKENS // work.train.shape[1]))


def split(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences to train on and sequences held out. Raises CompressError where there are fewer than two."""
    if len(tokens) < 2:
        fix = "give at least 2 samples; hundreds are better"
        raise CompressError("recover", "one sequence leaves none to hold out", fix)
    every = min(HELD_OUT, len(tokens))
    held = (torch.arange(len(tokens)) + 1) % every == 0
    held &= held.cumsum(0) <= max(1, HELD_OUT_TOKENS // tokens.shape[1])
    return tokens[~held], tokens[held]


def _write(work: _Work, new: Mapping[str, Tensor], out: Path) -> None:
    """The student's folder with some tensors replaced; none: the student's own files."""
    files = [*companions(work.student), work.student / "config.json"]
    if new:
        reader = Reader(work.student)
        safetensors_io.write(out, work.headers, lambda name: new[name] if name in new else reader.get(name))
    else:
        files += [path for path in work.student.iterdir() if model_folder.allowed(path.name, model_folder.WEIGHTS)]
    for file in files:
        shutil.copyfile(file, out / file.name)


def _identity(student: Path, base: Path, tokens: Tensor, step: Recover, ends: tuple[int, ...]) -> dict[str, str]:
    """What a recovery is made from; another of any of these ends in other weights."""
    return {
        "base": _digest(base),
        "student": _digest(student),
        "tokens": hashlib.sha256(tokens.to(torch.int32).contiguous().numpy().astype("<i4").tobytes()).hexdigest(),
        "steps": digest(json.dumps([step.model_dump(mode="json", exclude={"data"}), ends])),
        "release of hubplugin": hubplugin.__version__,
    }


def _digest(folder: Path) -> str:
    """One digest of a folder's weights and config."""
    names = ("config.json", *model_folder.WEIGHTS)
    files = sorted(path for path in folder.iterdir() if model_folder.allowed(path.name, names))
    return digest("".join(f"{path.name} {sha256(path)}\n" for path in files))


def _depth(folder: Path) -> int:
    return int(configs.read_config(folder, str(folder))["num_hidden_layers"])


def _device(student: Path, base: Path) -> str:
    """A CUDA device where both models and an optimizer's state fit, else the CPU."""
    weights = sum(header.count for folder in (student, base) for header in Reader(folder).headers.values())
    return device_with(PER_WEIGHT * weights)


def _words(step: Recover) -> str:
    whole = f"LoRA adapters of rank {step.lora} at the blocks' linears, merged" if step.lora else "all weights"
    parts = ["the blocks one by one"] * bool(step.blocks) + [whole] * bool(step.distill)
    return ", then ".join(parts)
