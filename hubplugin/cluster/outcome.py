"""What became of a variant on the cluster, and the summary of all. Plain data: it travels between nodes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hubplugin.errors import ClusterError, HubPluginError

PASSED = "passed"
AGAIN = "mend what is named and start the same command again: it keeps what is finished, and goes on with the rest"


@dataclass(frozen=True)
class Outcome:
    """One variant, as its task left it."""

    name: str  # of the variant; behind its manifest's name where there are several manifests
    variant: str
    folder: Path
    node: str  # empty where its task never came to an end
    seconds: float  # of the task; where it was tried again, of the last time
    error: tuple[str, str, str] | None = None  # where, what, fix; None: it was made and passed its gate

    @property
    def passed(self) -> bool:
        """Whether the variant was made, or kept, and passed its gate."""
        return self.error is None

    @property
    def line(self) -> str:
        """What became of it, in one line."""
        return PASSED if self.error is None else f"{self.error[0]}: {self.error[1]}"


def parts(error: Exception) -> tuple[str, str, str]:
    """An error's where, what and fix."""
    if isinstance(error, HubPluginError):
        return error.where, error.what, error.fix
    if isinstance(error, OSError):
        place, cause = error.filename or "its node", error.strerror or str(error)
        return str(place), cause, "check that it can be written and has room"
    return type(error).__name__, " ".join(str(error).split()) or "no words", "see its node's lines above"


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each variant: its name, node, seconds, and what became of it."""
    rows = [("variant", "node", "seconds", "outcome")]
    rows += [(each.name, each.node or "-", f"{each.seconds:.0f}", each.line) for each in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
    )


def refuse_failed(outcomes: Iterable[Outcome]) -> None:
    """Raise ClusterError that names every variant that was not made or did not pass."""
    outcomes = list(outcomes)
    failed = [each for each in outcomes if each.error]
    if not failed:
        return
    what = "; ".join(f"{each.name}: {each.line}" for each in failed)
    fixes = dict.fromkeys(each.error[2] for each in failed if each.error)
    fix = next(iter(fixes)) if len(fixes) == 1 else AGAIN
    raise ClusterError(f"{len(failed)} of {len(outcomes)} variants", what, fix)
