"""Whether vLLM, as it is installed here, loads a variant on this machine; and gates that cannot pass where it does not.

Knows the verdicts of plan/vllm_support.py, which are rules and no guess after a crash; starts no vLLM.
"""

from collections.abc import Iterable, Sequence

from hubplugin.errors import ServeError
from hubplugin.manifest.metrics import GATE_KEYS, SPEED
from hubplugin.manifest.schema import Document
from hubplugin.plan.variant_plan import VariantPlan
from hubplugin.plan.vllm_support import CPU, Verdict
from serve import cpu_features, vllm_settings

ONE_GPU = "cuda tp=1"
END = "its speed cannot be measured on this machine, so that this gate cannot pass here"


def why_not(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The kind of machine that this is, and why vLLM cannot load a folder on it; empty where it can.

    Raises ServeError where there is no vLLM that runs here.
    """
    target = ONE_GPU if vllm_settings.find_device() == "cuda" else CPU
    verdict = next(verdict for verdict in verdicts if verdict.target == target)
    if target == CPU and verdict.dense:
        return target, ""
    if target == CPU and not verdict.why and (missing := cpu_features.missing(verdict.features)):
        return target, f"needs {verdict.note}, and this one has no {missing}"
    return target, verdict.why


def notes(document: Document, variants: Iterable[VariantPlan]) -> tuple[str, ...]:
    """Where a gate asks for a speed that cannot be measured here: one line for each reason, with its variants.

    A note and no error, because the plan may be made here for a machine that loads them.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for variant in variants:
        limits = document.manifest.gate.of(variant.name).limits()
        for key in (key for key in limits if GATE_KEYS[key].needs is SPEED):
            if why := _why_not_timed(variant.verdicts):
                found.setdefault((key, why), []).append(variant.name)
    return tuple(f"gate.{key}: {', '.join(names)}: {why}; {END}" for (key, why), names in found.items())


def _why_not_timed(verdicts: Sequence[Verdict]) -> str:
    try:
        target, why = why_not(verdicts)
    except ServeError as error:
        return error.what
    return f"vLLM on {target}: {why}" if why else ""
