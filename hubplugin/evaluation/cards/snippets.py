"""report -> what a card's code blocks are filled with: which of them it has, what pip must install, whom they name.

The blocks themselves stand in card.md.jinja; tests/test_snippets.py runs each of them. Knows reports and loaders.
"""

import shlex
from dataclasses import dataclass

from hubplugin.checkpoint.format_names import GPTQ
from hubplugin.evaluation.cards.markdown import Markdown
from hubplugin.evaluation.cards.steps import conversational, needs_plugin, stored
from hubplugin.plan import loaders, vllm_support
from hubplugin.report import Report
from serve.endpoint.companions.adapters import RANKS

TORCH = "torch"  # which transformers does not install


@dataclass(frozen=True)
class Use:
    """What runs the variant, and how."""

    name: str  # the repo, or the folder that `run` has made
    branch: str | None  # of the repo; None: main
    gpu: bool  # whether stock vLLM loads it on some number of GPUs
    cpu: bool  # and on a CPU
    chat: bool  # whether a prompt may be a conversation
    library: str | None  # that loads it in Python; None: none but vLLM does
    pip: Markdown  # the command that installs what the library needs
    plugin: bool = False  # whether vLLM needs hubplugin beside it
    parent: str = ""  # of an adapter: the repo, or the folder, of the variant that it is for ...
    parent_branch: str | None = None  # ... the branch of that repo ...
    packed: bool = False  # ... whether its weights are codes ...
    room: int = 0  # ... and the rank that vLLM makes room for

    @property
    def gptqmodel(self) -> bool:
        """Whether gptqmodel loads it and transformers does not."""
        return self.library == loaders.GPTQMODEL


def use(report: Report) -> Use:
    """Who loads the variant of a report; of one that says nothing of vLLM, that vLLM does."""
    loads = {load.target for load in report.loads if load.loads}
    loader = None if needs_plugin(report) else loaders.loader(stored(report))
    if report.adapter and loader and not loads_adapters(report):
        loader = None
    requirements = (*loader.requirements, *(["peft"] if report.adapter else [])) if loader else ()
    if loader and loader.library == loaders.TRANSFORMERS:
        requirements = (TORCH, *requirements)
    return Use(
        name=report.repo or report.variant,
        branch=report.branch if report.repo else None,
        gpu=not report.loads or bool(loads - {vllm_support.CPU}),
        cpu=not report.loads or vllm_support.CPU in loads,
        chat=conversational(report),
        library=loader.library if loader else None,
        pip=Markdown(shlex.join(("pip", "install", *requirements))),
        plugin=needs_plugin(report),
        parent=(report.adapter.repo or report.adapter.variant) if report.adapter else "",
        parent_branch=report.adapter.branch if report.adapter and report.adapter.repo else None,
        packed=bool(report.adapter and stored(report).quantized),
        room=next(room for room in RANKS if room >= report.adapter.rank) if report.adapter else 0,
    )


def loads_adapters(report: Report) -> bool:
    """Whether PEFT was seen to load an adapter beside weights that are stored as those it is for: in transformers'
    class, with dense weights or compressed-tensors'."""
    return all(scheme.layout != GPTQ for scheme in stored(report).quantized)
