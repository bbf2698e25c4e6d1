"""A quantized folder through a rival's own loader, run by the Python of the rival's environment: logits to a file.

    bench/.env/gptqmodel/bin/python bench/read_back.py FOLDER IDS.npy LOGITS.npy

Folders in AutoGPTQ's format are read by gptqmodel, those in compressed-tensors' by transformers and that library.
"""

import argparse
import json
from pathlib import Path

import numpy
import torch


def main() -> None:
    """Load, run the token ids [sequences, tokens], save float32 logits [sequences, tokens, vocabulary]."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("folder", "ids", "logits"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    method = json.loads((given.folder / "config.json").read_text())["quantization_config"]["quant_method"]
    if method == "gptq":
        from gptqmodel import BACKEND, GPTQModel

        model = GPTQModel.load(str(given.folder), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH)
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(given.folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(numpy.load(given.ids)).long()).logits
    numpy.save(given.logits, logits.float().numpy())


if __name__ == "__main__":
    main()
