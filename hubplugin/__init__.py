"""Compress Hub models by manifest, measure them, publish them with an honest card, serve them on vLLM."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hubplugin.errors import HubPluginError

if TYPE_CHECKING:
    from hubplugin.api import (
        FileChange,
        Outcome,
        Plan,
        Pushed,
        Report,
        Verification,
        load_report,
        plan,
        publish,
        run,
        run_on_ray,
        verify,
    )

__version__ = "0.1.0"

__all__ = [
    "FileChange",
    "HubPluginError",
    "Outcome",
    "Plan",
    "Pushed",
    "Report",
    "Verification",
    "__version__",
    "load_report",
    "plan",
    "publish",
    "run",
    "run_on_ray",
    "verify",
]

# Name -> module, imported when the name is first asked for: `import hubplugin` loads neither torch nor pydantic
_HOMES = {
    "FileChange": "hubplugin.hub.publishing.push",
    "Outcome": "hubplugin.cluster.outcome",
    "Plan": "hubplugin.plan.draft",
    "Pushed": "hubplugin.hub.publishing.push",
    "Report": "hubplugin.report",
    "Verification": "hubplugin.verification.outcome",
    "load_report": "hubplugin.api",
    "publish": "hubplugin.api",
    "run": "hubplugin.api",
    "run_on_ray": "hubplugin.api",
    "verify": "hubplugin.api",
}


if not TYPE_CHECKING:  # or a type checker would believe that any name is there

    def __getattr__(name: str) -> Any:
        if name == "plan":  # the package of that name, which can be called
            return import_module("hubplugin.plan")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
