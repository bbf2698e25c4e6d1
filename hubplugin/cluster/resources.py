"""What the task of a variant asks a cluster for: CPUs, a GPU where there are any, and memory as it was planned.

Knows plans and nodes as numbers; no Ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hubplugin.errors import ClusterError
from hubplugin.plan.variant_plan import VariantPlan

FEWEST_CPUS = 4  # of a variant, where a node has as many: fewer make more variants at a time, each with its own memory


@dataclass(frozen=True)
class Node:
    """One node of a cluster, as Ray counts it."""

    id: str
    name: str
    cpus: int
    gpus: int
    memory: int  # bytes


@dataclass(frozen=True)
class Resources:
    """What one task has for itself."""

    cpus: int
    gpus: int
    memory: int  # bytes

    def fit(self, node: Node) -> bool:
        """Whether a node has them, busy or not."""
        return self.cpus <= node.cpus and self.gpus <= node.gpus and self.memory <= node.memory

    def words(self) -> str:
        """For people."""
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}{gpus}, {self.memory / 1e9:.1f} GB"


def of(variants: Sequence[VariantPlan], nodes: Sequence[Node], cpus: int | None = None) -> list[Resources]:
    """The resources of each variant. `cpus` are those of each; None: a node's, shared among what runs there at a time.

    Memory is the planned peak, or what stays of it with activations on disk where no node has that. Raises
    ClusterError for a variant that no node can take.
    """
    gpus = int(any(node.gpus for node in nodes))
    able = [node for node in nodes if node.gpus >= gpus]
    most = max((node.memory for node in able), default=0)
    memory = [each.memory.peak if each.memory.peak <= most else each.memory.spilled for each in variants]
    share = cpus or _share(len(variants), able, max(memory, default=1))
    asked = [Resources(share, gpus, needed) for needed in memory]
    for variant, each in zip(variants, asked, strict=True):
        if not any(each.fit(node) for node in able):
            raise ClusterError(variant.name, f"needs {each.words()}, and {_largest(able)}", _fix(each, able))
    return asked


def _share(count: int, nodes: Sequence[Node], memory: int) -> int:
    """CPUs for each of `count` variants: those of the smallest node, by how many will be there at a time."""
    shares = [max(node.cpus // _at_once(count, len(nodes), node, memory), 1) for node in nodes]
    enough = min((min(FEWEST_CPUS, node.cpus) for node in nodes), default=1)
    return max(min(shares, default=1), enough)


def _at_once(count: int, nodes: int, node: Node, memory: int) -> int:
    """How many variants a node runs at a time, at most."""
    limits = [-(-count // nodes), node.memory // max(memory, 1), *([node.gpus] if node.gpus else [])]
    return max(min(limits), 1)


def _largest(nodes: Sequence[Node]) -> str:
    if not nodes:
        return "the cluster has no node with a CPU"
    cpus, memory = max(node.cpus for node in nodes), max(node.memory for node in nodes)
    return f"no node has that: at most {cpus} CPUs and {memory / 1e9:.1f} GB"


def _fix(asked: Resources, nodes: Sequence[Node]) -> str:
    if any(asked.memory <= node.memory for node in nodes):
        return "ask for fewer with --cpus-per-variant"
    return "add a node with more memory, or give it more with `ray start --memory`; fewer `samples:` need less"
