"""The real vLLM serves codebooks through our plugin as the dense weights that they stand for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pico
import pytest
import torch
from gate_helpers import candidate
from prune_helpers import decided, make

from hubplugin.checkpoint import packing
from hubplugin.evaluation import engine_choice, gate

PROMPTS = [[5, 6, 7, 8, 9], [100, 200]]
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 296,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
ONE = {"MASTER_ADDR": "127.0.0.1", "VLLM_LOGGING_LEVEL": "ERROR"}

pytestmark = pytest.mark.serve


@pytest.mark.parametrize(
    ("model_type", "step"),
    [
        ("llama", {"bits": 4, "ignore": ["layers.1.mlp.gate_proj", "layers.1.mlp.up_proj", "layers.0.*.o_proj"]}),
        ("qwen2", {"bits": 3}),  # with biases; 296 * 3 bits do not fill whole words
        ("phi3", {"bits": 2, "ignore": ["down_proj"]}),  # q, k, v and gate, up are one tensor each in the checkpoint
    ],
)
def test_log_probabilities_are_the_references(model_type: str, step: dict[str, Any], tmp_path: Path) -> None:
    source = pico.write(tmp_path / "m", model_type, **WIDE)
    variant = decided(source, {"method": "codebook", **step})
    make(source, tmp_path / "v", variant)
    assert json.loads((tmp_path / "v" / "config.json").read_text())["quantization_config"]["bits"] == step["bits"]
    line = gate.generation(candidate(tmp_path / "v", variant, generate=engine_choice.generate, prompts=PROMPTS))
    assert line.passed and line.detail.startswith("vLLM on c"), line.detail


def test_the_plugin_registers_once_and_reads_the_packers_words() -> None:
    """In a process of its own: importing vLLM's layers changes the one that does."""
    code = (
        "import sys, torch\n"
        "from serve import plugin\n"
        "plugin.know_codebooks()\n"
        "plugin.know_codebooks()\n"
        "from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config\n"
        "from serve import codebook_linear\n"
        "assert QUANTIZATION_METHODS.count('hubplugin_codebook') == 1\n"
        "assert get_quantization_config('hubplugin_codebook') is codebook_linear.CodebookConfig\n"
        "words, centroids, bits, inputs, dense = torch.load(sys.argv[1])\n"
        "for each in zip(words, centroids, bits, inputs, dense):\n"
        "    assert torch.equal(codebook_linear.looked_up(*each[:4]), each[4])\n"
        "print('equal')\n"
    )
    cases: list[list[Any]] = [[], [], [], [], []]
    for width, count in ((2, 37), (3, 100), (4, 33)):
        codes = torch.randint(0, 2**width, (5, count), dtype=torch.uint8)
        centroids = torch.randn(5, 1, 2**width).half()
        dense = centroids[:, 0].gather(1, codes.long())
        for case, value in zip(cases, (packing.pack(codes, width), centroids, width, count, dense), strict=True):
            case.append(value)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"codebooks-{os.getpid()}.pt"
    torch.save(cases, path)
    try:
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, env=os.environ | ONE)
    finally:
        path.unlink()
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-2000:]
