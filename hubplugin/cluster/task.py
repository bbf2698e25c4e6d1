"""What runs on a node: one variant of one manifest through the pipeline, as `run --only` makes it.

The base's commit and the plan are the driver's. Tokens are the node's own: none is sent. Loads torch only inside.
"""

import contextlib
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubplugin import progress
from hubplugin.cluster import checks
from hubplugin.cluster.checks import Shared
from hubplugin.cluster.outcome import Outcome, parts
from hubplugin.errors import HubPluginError
from hubplugin.manifest.schema import Document
from hubplugin.plan.draft import Plan
from serve import idle_threads


@dataclass(frozen=True)
class Request:
    """One variant to be made, with all that its task is sent."""

    name: str  # as lines of progress and the summary say it
    document: Document  # of this variant alone, with an absolute path
    planned: Plan  # of this variant alone
    out: Path  # absolute
    quiet: bool = False

    @property
    def variant(self) -> str:
        """The variant's name in its manifest."""
        return self.planned.drafts[0].name

    @property
    def folder(self) -> Path:
        """Where the variant will be."""
        return self.out / self.variant

    def failed(self, error: tuple[str, str, str]) -> Outcome:
        """The outcome where its task never came to an end."""
        return Outcome(self.name, self.variant, self.folder, "", 0.0, error)


def make(request: Request, shared: Shared, driver: Mapping[str, Any]) -> Outcome:
    """Make one variant on this node. Every failure is an outcome: an error could not travel with its three parts.

    `driver` is what the driver's machine sees of `shared`: a node that came later is held against it too.
    """
    begun, node, error = time.monotonic(), _node(), None
    idle_threads.let_sleep()  # before torch loads, as where no cluster is asked for
    if request.quiet:
        progress.silence()
    with contextlib.redirect_stdout(sys.stderr):  # the driver's stdout is for results
        try:
            checks.compare(node, driver, shared.seen())
            _pipeline(request)
        except (HubPluginError, OSError) as refused:
            error = parts(refused)
        except Exception as bug:  # noqa: BLE001 -- it must not end the others, and its traceback reaches the driver
            traceback.print_exc()
            error = parts(bug)
    outcome = Outcome(request.name, request.variant, request.folder, node, time.monotonic() - begun)
    return replace(outcome, error=error)


def _pipeline(request: Request) -> None:
    from hubplugin import pipeline
    from hubplugin.evaluation import engine_choice

    engines = engine_choice.generate, engine_choice.take_turn
    pipeline.run(request.document, request.planned, request.out, *engines)


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
