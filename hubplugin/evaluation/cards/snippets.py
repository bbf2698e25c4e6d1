"""report -> what a card's code blocks are filled with: which of them it has, what pip must install, whom they name.

The blocks themselves stand in card.md.jinja; tests/test_snippets.py runs each of them. Knows reports and loaders.
"""

import shlex
from dataclasses import dataclass

from hubplugin.evaluation.cards.markdown import Markdown
from hubplugin.evaluation.cards.steps import conversational, needs_plugin, stored
from hubplugin.plan import loaders, vllm_support
from hubplugin.report import Report

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

    @property
    def gptqmodel(self) -> bool:
        """Whether gptqmodel loads it and transformers does not."""
        return self.library == loaders.GPTQMODEL


def use(report: Report) -> Use:
    """Who loads the variant of a report; of one that says nothing of vLLM, that vLLM does."""
    loads = {load.target for load in report.loads if load.loads}
    loader = None if needs_plugin(report) else loaders.loader(stored(report))
    requirements = loader.requirements if loader else ()
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
    )
