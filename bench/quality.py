"""Measures folders that different engines wrote against their base, all in one way: hubplugin's own evaluation.

    python bench/quality.py BASE HELD_OUT.npy OUT.json FOLDER...

Writes a list with one entry per folder, in order. Knows no engine; formats are the business of `export.DenseView`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy
import torch

from hubplugin import report
from hubplugin.errors import HubPluginError
from hubplugin.evaluation import quality_metrics
from hubplugin.model.architectures import configs, families


def main() -> None:
    """Measure all folders on the same tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    options = parser.parse_args()
    ids = torch.from_numpy(numpy.load(options.held_out))
    described = report.Tokens.model_validate_json(options.held_out.with_suffix(".json").read_text(encoding="utf-8"))
    row = families.match(configs.read_config(options.base, str(options.base)), str(options.base))
    base = quality_metrics.reference(options.base, row, ids, described)
    found: list[dict[str, Any]] = []
    for folder in options.folders:
        try:
            found.append(quality_metrics.measure(folder, row, base, kl=True).variant.model_dump())
        except HubPluginError as error:  # said on the page; the other folders are measured all the same
            found.append({"failed": error.what})
    window = ids.shape[1]
    protocol = f"windows of {window} tokens, each predicts {window - 1}; float32 on the dequantized folder"
    result = {"held_out": described.model_dump(), "protocol": protocol, "base": base.quality.model_dump()}
    part = options.out.with_name(f".{options.out.name}.part")
    part.write_text(json.dumps({**result, "variants": found}, indent=1), encoding="utf-8")
    os.replace(part, options.out)


if __name__ == "__main__":
    main()
