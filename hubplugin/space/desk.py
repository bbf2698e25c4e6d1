"""What the page's buttons do: plan, compress, cancel, publish, each for one visitor.

Knows the Python API, visitors and their tokens, which it hands on and keeps nowhere. Knows no Gradio.
"""

import asyncio
import html
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hubplugin import api, memory, report
from hubplugin.errors import HubError, HubPluginError, PlanError
from hubplugin.evaluation.cards import numbers
from hubplugin.hub import client
from hubplugin.hub.client import Token
from hubplugin.manifest.schema import Manifest
from hubplugin.plan.draft import Plan
from hubplugin.space import tokens, view
from hubplugin.space.options import Options
from hubplugin.space.runs.job import Job
from hubplugin.space.runs.visitors import Visitors

LOOK = 0.4  # seconds between two looks at a run
SHOWN_LINES = 300
MOST_PARAMETERS = 1_000_000_000
NO_PLAN = view.note("Name a model: its plan is shown here, and follows every option.")
NO_MANIFEST = "# the manifest of these options\n"


@dataclass(frozen=True)
class Shown:
    """What the page shows of a visitor's run."""

    running: bool = False
    status: str = ""
    log: str = ""
    result: str = ""
    publishable: bool = False
    published: str = ""
    card: str = ""


class Desk:
    """One server's page. `own_machine`: only its owner reaches it, so the machine's login and cache serve."""

    def __init__(self, *, own_machine: bool, max_parameters: int = MOST_PARAMETERS) -> None:
        self.own_machine, self.max_parameters = own_machine, max_parameters
        self.visitors = Visitors(shared=not own_machine)

    def plan(self, session: str | None, signed: str | None, typed: str, *values: Any) -> tuple[str, str]:
        """The manifest of the options, and its plan or what is wrong with them, as HTML."""
        chosen = Options(**dict(zip(FIELDS, values[:-1], strict=True)))
        if not chosen.model.strip():
            return NO_MANIFEST, NO_PLAN
        text, place = "", None
        try:
            text = chosen.text()
            place = self.visitors.of(session).place(text)
            planned = self._planned(place, session, self._token(signed, typed))
            return text, view.plan(planned, memory.available())
        except HubPluginError as fault:
            return text, view.error(fault, place.parent if place else None)

    async def compress(self, session: str | None, signed: str | None, typed: str, *values: Any) -> AsyncIterator[Shown]:
        """Make the variant of the options, and show how it goes."""
        yield Shown(running=True, status=view.note("planning"))
        place: Path | None = None
        job: Job | None = None
        try:
            *fields, uploaded = values
            chosen = Options(**dict(zip(FIELDS, fields, strict=True)))
            text = chosen.text()
            if chosen.wants_text and not uploaded:
                raise PlanError("calibration", "no text file is there", "choose one, or the model's own samples")
            job = self.visitors.begin(session, text, Path(uploaded) if chosen.wants_text else None)
            place = job.manifest.parent
            token = self._token(signed, typed)
            base = await asyncio.to_thread(self._base_token, job, session, token)
            async for state in self._in_line(job):
                yield state
            job.start(base)
            async for state in _watched(job):
                yield state
            if self.visitors.of(session).job is job:  # not, where it was cancelled and Compress pressed again
                yield await asyncio.to_thread(_ended, job)
        except (HubPluginError, OSError) as fault:
            if isinstance(fault, OSError):
                fault = HubError("this machine", fault.strerror or "a file failed", "try again, or load the page again")
            yield Shown(status=view.error(fault, place))
        finally:
            if job is not None:  # nobody watches any more
                await asyncio.to_thread(job.cancel)

    async def _in_line(self, job: Job) -> AsyncIterator[Shown]:
        """A run that waits, whenever one before it has ended; until its turn has come or it was cancelled."""
        last = 0
        while not job.cancelled and (before := self.visitors.before(job)):
            if before != last:
                last = before
                yield Shown(running=True, status=view.note(f"waiting for its turn; runs before it: {before}"))
            await asyncio.sleep(LOOK)

    def cancel(self, session: str | None) -> Shown:
        """End a visitor's run. What it has finished stays while their page is open."""
        try:
            job = self.visitors.of(session).job
        except HubPluginError as fault:
            return Shown(status=view.error(fault))
        if job is None:
            return Shown(status=view.note("cancelled"))
        job.cancel()
        return _ended(job)

    def publish(self, session: str | None, signed: str | None, typed: str) -> Shown:
        """Publish the finished variant with the visitor's token."""
        job = None
        try:
            visitor = self.visitors.of(session)
            if (job := visitor.job) is None or job.running:
                raise HubError("publish", "there is nothing finished", "press Compress first")
            token = self._token(signed, typed)
            cache = self.visitors.cache(visitor)
            with client.acting_for(token, cache):
                if client.token_in_use() is None:
                    raise HubError("publish", "nobody is signed in", "sign in, or give a token that may write")
                said = view.published(api.publish(job.manifest, out=job.out, token=token))
            return replace(_result(job), published=said)
        except HubPluginError as fault:
            if job is None:
                return Shown(status=view.error(fault))
            return replace(_result(job), published=view.error(fault, job.manifest.parent))

    def user_name(self, signed: str | None, typed: str) -> str:
        """Whose token it is; empty where that is nobody, or the Hub does not say."""
        try:
            with client.acting_for(self._token(signed, typed)):
                return client.user_name() if client.token_in_use() else ""
        except HubPluginError:
            return ""

    def close(self) -> None:
        """End all runs, and remove the folders of all visitors."""
        self.visitors.close()

    def _token(self, signed: str | None, typed: str) -> Token:
        return tokens.of_visitor(typed, signed, own_machine=self.own_machine)

    def _planned(self, manifest: Path, session: str | None, token: Token) -> Plan:
        """A plan of what this server takes on. Raises PlanError for models that are too large."""
        with client.acting_for(token, self.visitors.cache(self.visitors.of(session))):
            planned = api.plan(manifest, token=token)
        if planned.parameters > self.max_parameters:
            many, most = numbers.count(planned.parameters), numbers.count(self.max_parameters)
            what = f"has {many} parameters, and this page takes models of up to {most}"
            fix = "choose a smaller model, or run hubplugin yourself: --max-parameters sets the limit"
            raise PlanError(planned.model, what, fix)
        return planned

    def _base_token(self, job: Job, session: str | None, token: Token) -> str | None:
        """The token that the run needs to read its base, once it is planned; None where everybody may read it."""
        model = self._planned(job.manifest, session, token).model
        with client.acting_for(token):
            return client.token_in_use() if client.hidden(model) else None


FIELDS = tuple(Options.__dataclass_fields__)


async def _watched(job: Job) -> AsyncIterator[Shown]:
    """A run as it goes on, whenever there is something new to see."""
    before: list[str] | None = None
    while job.running:
        if (lines := job.lines) != before:
            before = lines
            yield Shown(running=True, status=_progress(job), log=_log(job))
        await asyncio.sleep(LOOK)


def _ended(job: Job) -> Shown:
    if job.cancelled:
        return _cancelled(job)
    fault = job.error()
    if fault is None:
        return _result(job)
    shown = Shown(status=view.error(fault, job.manifest.parent), log=_log(job))
    if not (_variant(job, api.document(job.manifest).manifest) / report.FILE_NAME).is_file():
        return shown
    return replace(_result(job), status=shown.status, publishable=False)


def _result(job: Job) -> Shown:
    """The figures and the card of what was made."""
    manifest = api.document(job.manifest).manifest
    folder = _variant(job, manifest)
    made = api.load_report(folder)
    publishable = made.passed and manifest.publish is not None
    hint = "" if publishable or not made.passed else "To publish it, say where under Publish to, and press Compress: "
    hint += "its weights are kept, and report and card written anew." if hint else ""
    return Shown(
        status=view.note("finished"),
        log=_log(job),
        result=f"{view.figures(made)}{view.note(hint) if hint else ''}",
        publishable=publishable,
        card=view.card(folder),
    )


def _variant(job: Job, manifest: Manifest) -> Path:
    return job.out / next(iter(manifest.variants))


def _cancelled(job: Job) -> Shown:
    kept = next((line for line in reversed(job.lines) if line.startswith("kept: ")), "")
    what = (
        "nothing was finished yet"
        if not kept or "nothing is" in kept
        else "what is finished stays while this page is open"
    )
    return Shown(status=view.note(f"cancelled; {what}: Compress goes on from there"), log=_log(job))


def _log(job: Job) -> str:
    return "\n".join(job.lines[-SHOWN_LINES:])


def _progress(job: Job) -> str:
    lines = job.lines
    bar = ""
    if blocks := job.blocks:
        bar = f'<progress value="{blocks[0]}" max="{blocks[1]}"></progress>'
    return f'<div class="run">{html.escape(lines[-1] if lines else "starting")}{bar}</div>'
