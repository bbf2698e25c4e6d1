"""The process in which gptqmodel runs: a model folder and token ids in; codes, scales and what it reported out.

    python -m hubplugin.gptqmodel_worker FOLDER

gptqmodel changes torch, transformers and safetensors for the whole process when it is imported, so no other process
of ours imports it. FOLDER holds JOB and TOKENS; RESULT appears in it last, beside one file per block. Standard output
carries the index of each block that is done; whatever the library prints goes to LOG. Standard input is the lifeline:
once the parent closes it, or dies in whatever way, this process ends. Knows no manifest, no plan and no file format.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubplugin import memory

JOB, TOKENS, RESULT, LOG = "job.json", "tokens.safetensors", "result.json", "log.txt"
CHECKPOINT, OFFLOADED = "checkpoint", "offloaded"  # folders that gptqmodel writes
SAMPLE_ROWS = 8  # of every linear, dequantized by gptqmodel itself
SQUARED = 2.0  # gptqmodel's `mse`: the power of the error that its search of scales minimises; 0 is no search


def main(folder: Path) -> None:
    """Do the job in a folder. What goes wrong ends the process with a traceback in LOG."""
    folder = folder.resolve()
    os.chdir(folder)  # gptqmodel keeps logs under the working directory
    talk = _quiet(folder / LOG)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    rows = quantize(job, load_file(folder / TOKENS)["ids"], folder, talk)
    unpack(job, folder)
    part = folder / f"{RESULT}.part"
    part.write_text(json.dumps({"rows": rows, "peak": memory.peak()}), encoding="utf-8")
    os.replace(part, folder / RESULT)


def arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """A step's settings in gptqmodel's words."""
    whole_rows = settings["group_size"] == -1  # then the order inside a group and the order over all are one
    return {
        "bits": settings["bits"],
        "group_size": settings["group_size"],
        "sym": True,
        "desc_act": settings["act_order"] and whole_rows,
        "act_group_aware": settings["act_order"] and not whole_rows,
        "mse": SQUARED if settings["clip_search"] else 0.0,
        "damp_percent": settings["damp"],
    }


def quantize(job: dict[str, Any], ids: Tensor, folder: Path, talk: TextIO) -> list[dict[str, Any]]:
    """Quantize `job["base"]` on token ids [sequences, tokens] into CHECKPOINT; one row of its log per linear."""
    from gptqmodel import GPTQConfig, GPTQModel

    settings = GPTQConfig(
        **arguments(job["settings"]),
        offload_to_disk_path=str(folder / OFFLOADED),
        pack_impl="original",  # the same words as its default, without compiling C++ into the user's cache first
    )
    model = GPTQModel.load(job["base"], settings)
    model.layer_callback = _Talk(talk)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids.long()]
    log = model.quantize(rows, batch_size=job["batch"])
    model.save(str(folder / CHECKPOINT))
    return [
        {
            "block": row["layer"],
            "linear": row["module"],
            "loss": row["loss"],
            "damp": float(row["damp"]),
            "seconds": float(row["time"]),
        }
        for row in log["gptq"]
    ]


def unpack(job: dict[str, Any], folder: Path) -> None:
    """Write a file per block: codes, scales and the first rows of every linear.

    gptqmodel's own loader reads the checkpoint and its own arithmetic dequantizes it, in float32; codes are then what
    its scales make of these weights. Raises ValueError where that is no symmetric grid with groups in a row.
    """
    from gptqmodel import BACKEND, GPTQModel

    # in float16, the dtype they are stored in, scales stay as they are
    source = str(folder / CHECKPOINT)
    model = GPTQModel.load(source, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16).model
    for index, names in enumerate(job["blocks"]):
        found: dict[str, Tensor] = {}
        for name in names:
            module = model.get_submodule(name)
            scales = module.scales.T.contiguous()  # [outputs, groups]
            module.scales = module.scales.float()  # a product in float32 is exact
            weight = module.dequantize_weight().T  # [outputs, inputs]
            found[f"{name}.codes"] = codes(name, weight, scales, job["settings"]["bits"])
            found[f"{name}.scales"] = scales
            found[f"{name}.sample"] = weight[:SAMPLE_ROWS].contiguous()
        save_file(found, folder / block_file(index))


def codes(name: str, weight: Tensor, scales: Tensor, bits: int) -> Tensor:
    """uint8 codes [outputs, inputs] of dequantized weights, for scales [outputs, groups] of consecutive inputs."""
    spread = scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
    steps = (weight / spread).round()  # code - zero
    half = 2 ** (bits - 1)
    if (
        scales.dtype != torch.float16
        or steps.min() < -half
        or steps.max() >= half
        or not (steps * spread).equal(weight)
    ):
        raise ValueError(f"{name} is no symmetric grid of {bits} bits with float16 scales of consecutive inputs")
    return (steps + half).to(torch.uint8).contiguous()


def block_file(index: int) -> str:
    """Name of one block's file."""
    return f"block-{index}.safetensors"


class _Talk:
    """Says which block is done. gptqmodel calls it twice a block, the second time when its linears are packed too."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        if submodule_finalized:
            print(layer_idx, file=self._out, flush=True)


def _quiet(log: Path) -> TextIO:
    """Send what any code of this process prints to `log`; a stream to the parent's end of standard output."""
    talk = os.fdopen(os.dup(1), "w", encoding="utf-8")
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    return talk


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin: a thread that waits inside its lock would break the interpreter's shutdown
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
