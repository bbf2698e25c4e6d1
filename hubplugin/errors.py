"""Every error a user can meet: where it is, what is wrong, how to fix it.

This file knows nothing about exit codes or printing; `cli` turns these into three lines and exit code 2.
"""


class HubPluginError(Exception):
    """An error with a place, a cause and a remedy, each one line of plain text without secrets."""

    def __init__(self, where: str, what: str, fix: str) -> None:
        super().__init__(f"{where}: {what} ({fix})")
        self.where = where
        self.what = what
        self.fix = fix

    def lines(self) -> str:
        """The three lines shown to the user."""
        return f"where: {self.where}\nwhat:  {self.what}\nfix:   {self.fix}"


class ManifestError(HubPluginError):
    """The manifest cannot be read, or says something that no model could satisfy."""


class PlanError(HubPluginError):
    """The manifest is well formed but does not fit this model; raised before a weight is read."""


class FamilyError(HubPluginError):
    """The architecture is not in the table of families."""


class HubError(HubPluginError):
    """The Hub, the network or the local cache did not give or take what was asked."""


class HubUnreachable(HubError):
    """The Hub could not be asked: no network, or it answers nobody at the moment. `wait`: seconds that it asks for."""

    def __init__(self, where: str, what: str, fix: str, wait: float = 0.0) -> None:
        super().__init__(where, what, fix)
        self.wait = wait


class CheckpointError(HubPluginError):
    """A safetensors file is missing, truncated, corrupted or holds values no model can use."""


class FormatError(HubPluginError):
    """Weights are stored in a way that is not read here, and nothing says that it is wrong."""


class CalibrationError(HubPluginError):
    """The calibration or evaluation data cannot be read, or is too short."""


class CompressError(HubPluginError):
    """The numerics failed in a way no fallback may hide."""


class GateError(HubPluginError):
    """The variant does not hold what must hold before anything is published."""


class ServeError(HubPluginError):
    """The inference engine or the chat page could not start, or died."""


class ClusterError(HubPluginError):
    """The Ray cluster cannot be reached, its nodes do not see what they must, or a variant was not made there."""


def one_line(error: Exception) -> str:
    """Another library's error as one line of at most 240 characters; its class where it says nothing."""
    return " ".join(str(error).split())[:240] or type(error).__name__
