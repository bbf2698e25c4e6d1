"""Manifest + headers + family -> a complete plan. Every cross-check is here, before any weight is read.

Knows shapes, schemes and vLLM's rules. Knows no torch, no weights and no network. `hubplugin.plan(manifest)` is also a
function of the Python API: Python binds a package's name in the package around it, so this module can be called.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """This module, which hands a call on to `hubplugin.api.plan` by name: the API is above this room."""

    def __call__(self, manifest: Any, *, token: Any = None) -> Any:
        """Sizes, memory and time of every variant, as `hubplugin.api.plan` says."""
        return import_module("hubplugin.api").plan(manifest, token=token)


sys.modules[__name__].__class__ = _CallableModule
