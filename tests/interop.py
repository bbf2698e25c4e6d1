"""AutoGPTQ's own quantized linear, loaded from its file: the archived package no longer imports as a whole."""

import importlib.util
import sys
from pathlib import Path

_FOUND = importlib.util.find_spec("auto_gptq")
if _FOUND is None or _FOUND.origin is None:
    raise ImportError("auto-gptq is not installed")


def quant_linear() -> type:
    """The class `QuantLinear` whose forward also runs on a CPU."""
    assert _FOUND is not None and _FOUND.origin is not None
    path = Path(_FOUND.origin).parent / "nn_modules" / "qlinear" / "qlinear_cuda.py"
    spec = importlib.util.spec_from_file_location("autogptq_qlinear", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.QuantLinear
