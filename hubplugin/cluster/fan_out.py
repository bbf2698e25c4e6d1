"""The driver: one Ray task for each variant of all manifests, then cards that know the other variants, and a summary.

Ray decides where and when a task runs, and runs it again elsewhere where its node is lost; what the first try finished
is taken up. Knows no weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubplugin import pipeline, report, siblings
from hubplugin.cluster import checks, connection, resources, task
from hubplugin.cluster.checks import Shared
from hubplugin.cluster.outcome import Outcome, summary
from hubplugin.cluster.resources import Resources
from hubplugin.cluster.task import Request
from hubplugin.errors import one_line
from hubplugin.manifest.reading.narrowing import narrowed
from hubplugin.manifest.schema import Document
from hubplugin.plan.draft import DraftPlan, Plan
from hubplugin.progress import progress, quiet

RETRIES = 3  # of a task whose node or process is lost
CANCEL_SECONDS = 30.0  # that tasks have to end once they are cancelled
WATCH_SECONDS = 30.0  # between looks at whether any node is left
LOST = "look at what ended it (`ray status`, the node's own log), and start again: it goes on from its last block"


@dataclass(frozen=True)
class Asked:
    """One manifest, planned."""

    name: str  # of the manifest, where there are several; empty where it is the only one
    document: Document
    planned: Plan
    out: Path

    def requests(self) -> list[Request]:
        """One for each variant; adapters are made in the task of the variant that they are for."""
        path = str(Path(self.document.path).resolve())  # nodes have another working directory
        document, out = self.document.model_copy(update={"path": path}), self.out.resolve()
        return [
            Request(
                name=f"{self.name}/{draft.name}" if self.name else draft.name,
                document=narrowed(document, [each.name for each in self._with_adapters(draft)]),
                planned=replace(self.planned, drafts=self._with_adapters(draft)),
                out=out,
                quiet=quiet(),
            )
            for draft in self.planned.drafts
            if draft.parent is None
        ]

    def _with_adapters(self, draft: DraftPlan) -> tuple[DraftPlan, ...]:
        """A variant's draft and those of the adapters that are for it."""
        return (draft, *(each for each in self.planned.drafts if each.parent and each.parent.name == draft.name))


@dataclass
class _Run:
    """Tasks under way, by Ray's reference, and what became of those that ended."""

    ray: Any
    pending: dict[Any, tuple[Request, Resources]]
    names: dict[str, str]  # of nodes, by id
    ended: dict[str, Outcome]

    def collect(self) -> None:
        """Wait for all tasks, with a line for each that ends."""
        while self.pending:
            ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=WATCH_SECONDS)
            for reference in ready:
                request, _ = self.pending.pop(reference)
                outcome = self.ended[request.name] = self._outcome(reference, request)
                took = f"on {outcome.node} in {outcome.seconds:.0f} s" if outcome.node else "came to no end"
                progress(f"ray    {outcome.name} {took}, {len(self.pending)} left | {outcome.line}")
            if not ready:
                self._say_who_waits_for_nothing()

    def cancel(self) -> None:
        """End all tasks that are under way; Ctrl-C reaches each as if it were typed there."""
        progress(f"ray    {len(self.pending)} tasks are cancelled")
        for reference in self.pending:
            self.ray.cancel(reference)
        self.ray.wait(list(self.pending), num_returns=len(self.pending), timeout=CANCEL_SECONDS)

    def _outcome(self, reference: Any, request: Request) -> Outcome:
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            return request.failed((f"{request.name} on its node", one_line(error), LOST))
        if outcome.node not in self.names:  # it came after the start
            self.names |= {node.id: node.name for node in connection.nodes(self.ray)}
        return replace(outcome, node=self.names.get(outcome.node, outcome.node))

    def _say_who_waits_for_nothing(self) -> None:
        nodes = connection.nodes(self.ray)
        for request, needed in self.pending.values():
            if not any(needed.fit(node) for node in nodes):
                progress(f"ray    {request.name}: no node is left that has {needed.words()}; waiting for one")


def run(asked: Sequence[Asked], address: str, cpus: int | None = None) -> list[Outcome]:
    """Make all variants of all manifests on a cluster, each where Ray finds room, and say what became of each.

    A variant that fails does not keep others from being made. Raises ClusterError where the cluster cannot be reached
    or its nodes lack what the run needs, before any work.
    """
    with (
        connection.connected(address) as ray,
        checks.marked([each.document for each in asked], [each.out.resolve() for each in asked]) as shared,
    ):
        requests = [request for each in asked for request in each.requests()]
        nodes = connection.nodes(ray)
        needed = resources.of([request.planned.variants[0] for request in requests], nodes, cpus)
        driver = shared.seen()
        checks.check_nodes(ray, [node for node in nodes if any(each.fit(node) for each in needed)], shared, driver)
        progress(f"ray    {len(requests)} variants on {len(nodes)} nodes, each with {needed[0].words()}")
        pending = _submitted(ray, list(zip(requests, needed, strict=True)), shared, driver)
        running = _Run(ray, pending, {node.id: node.name for node in nodes}, {})
        try:
            running.collect()
        except (KeyboardInterrupt, SystemExit):
            running.cancel()
            for each in asked:
                pipeline.say_what_is_kept(each.planned, each.out)
            raise
    for each in asked:
        _relate(each)
    outcomes = [running.ended[request.name] for request in requests]
    progress(summary(outcomes))
    return outcomes


def _submitted(
    ray: Any, pairs: Sequence[tuple[Request, Resources]], shared: Shared, driver: Mapping[str, Any]
) -> dict[Any, tuple[Request, Resources]]:
    """All tasks, handed to Ray. A process of its own for each: memory and the GPU are free when it ends."""
    remote = ray.remote(max_calls=1, max_retries=RETRIES)(task.make)
    pending = {}
    for request, needed in pairs:
        options = remote.options(
            name=request.name,  # Ray puts it in front of the task's lines
            num_cpus=needed.cpus,
            num_gpus=needed.gpus,
            memory=needed.memory,
            scheduling_strategy="SPREAD",
        )
        pending[options.remote(request, shared, driver)] = (request, needed)
    return pending


def _relate(asked: Asked) -> None:
    """Write into reports and cards what only the driver knows: the other variants, once all are there."""
    folders = [asked.out / draft.name for draft in asked.planned.drafts]
    made = [report.read(folder) for folder in folders if (folder / report.FILE_NAME).is_file()]
    siblings.relate([each for each in made if each.manifest_sha256 == asked.document.sha256], asked.out)
