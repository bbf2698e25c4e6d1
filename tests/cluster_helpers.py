"""A Ray cluster of two small nodes on this machine, and manifests whose variants are made there in seconds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pico

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray loads; nodes and workers inherit it

ROOT = Path(__file__).parents[1]
MB = 2**20
NODE: dict[str, Any] = {"num_cpus": 2, "memory": 1500 * MB, "object_store_memory": 100 * MB}
# a lost node is noticed within seconds, not within half a minute
NOTICE = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 3}

# 8 bits are served on a GPU only: the gate generates with transformers, which takes a second
MANIFEST = """\
model: ../base
calibrate: {files: [../text.txt], samples: 4, sequence_length: 64}
variants:
"""
INT8 = """\
  Int8-{group}:
    - {{method: gptq, bits: 8, group_size: {group}}}
"""
EVALUATED = """\
evaluate: {perplexity: {files: [../text.txt], samples: 4, sequence_length: 64, seed: 1}}
"""


def manifest(*groups: int, gate: str = "") -> str:
    return MANIFEST + "".join(INT8.format(group=group) for group in groups) + EVALUATED + gate


def place(folder: Path, layers: int = 2, **manifests: str) -> Path:
    """A base, a text, and a folder of manifests. Returns that folder."""
    pico.write(folder / "base", num_hidden_layers=layers)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    (folder / "manifests").mkdir()
    for name, text in manifests.items():
        (folder / "manifests" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "manifests"


@contextmanager
def cluster(nodes: int = 2, memory: int = NODE["memory"]) -> Iterator[Any]:
    """A cluster of so many nodes, the first of which is its head, each with so many bytes for tasks."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *([before] if before else [])])
    node = {**NODE, "memory": memory}
    head = {**node, "include_dashboard": False, "_system_config": NOTICE}
    running = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            running.add_node(**node)
        running.wait_for_nodes()
        yield running
    finally:
        running.shutdown()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
