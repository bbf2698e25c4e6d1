"""Checks of an adapter: its tensors by its configuration, its sizes by its report, and the weights that it is for.

Whatever is said of those weights is checked where they are published: by verifying that repo.
"""

from collections.abc import Iterator
from math import isclose

from hubplugin import disk
from hubplugin.checkpoint import safetensors_io
from hubplugin.checkpoint.adapters.peft_folder import CONFIG, Adapter
from hubplugin.checkpoint.format_names import LORA_A, LORA_B
from hubplugin.checkpoint.model_folder import read_json
from hubplugin.report import AdapterOf
from hubplugin.verification.outcome import Finding, compared, failed, passed, unchecked
from hubplugin.verification.subject import Subject

EXACT = 1e-9  # relative, of sums that are made again


def tensors(subject: Subject) -> Iterator[Finding]:
    """Pairs of factors of the rank that adapter_config.json and report name, all finite."""
    said = _said(subject)
    if said is None:
        return
    adapter, rank = Adapter(subject.folder), read_json(subject.folder / CONFIG, subject.files.name).get("r")
    yield compared(said.rank, rank, "rank")
    paired = 0
    for name, header in adapter.headers.items():
        other = name.removesuffix(LORA_A) + LORA_B if name.endswith(LORA_A) else name.removesuffix(LORA_B) + LORA_A
        if not name.endswith((LORA_A, LORA_B)) or other not in adapter.headers:
            yield failed("is no factor that has another beside it", name)
        elif header.shape[not name.endswith(LORA_A)] != rank:
            yield compared(f"rank {rank}", f"shape {list(header.shape)}", name)
        else:
            adapter.reader.get(name)  # which refuses NaN and infinity
            paired += 1
    if paired == len(adapter.headers):
        yield passed(f"{paired} factors, two for each linear, all finite")


def sizes(subject: Subject) -> Iterator[Finding]:
    """Parameters and bytes of the adapter alone, and of it and the weights that it is for."""
    said, report = _said(subject), subject.report
    if said is None or report is None:
        return
    own = safetensors_io.safetensors_bytes(subject.folder)
    yield compared(said.bytes, own, "bytes of the adapter")
    parameters = sum(header.count for header in Adapter(subject.folder).headers.values())
    yield compared(said.parameters, parameters, "parameters of the adapter")
    both = safetensors_io.safetensors_bytes(subject.parent_folder) + own
    holds = isclose(report.sizes.safetensors_bytes, both, rel_tol=EXACT)
    yield compared(report.sizes.safetensors_bytes, both, "bytes of both together", holds=holds)


def parent(subject: Subject) -> Iterator[Finding]:
    """The weights that the adapter is for are those that it was made for and measured with."""
    said = _said(subject)
    if said is None:
        return
    folder, equal = subject.parent_folder, 0
    for name, wanted in said.weights.items():
        file = folder / name
        if not file.is_file():
            yield unchecked(f"{said.repo or said.variant} has no such file", name, wanted)
            continue
        found = disk.sha256(file)
        equal += found == wanted
        if found != wanted:
            yield compared(wanted, found, name)
    if equal == len(said.weights):
        yield passed(f"{said.repo or said.variant}: {equal} weight files have the sha256 that the report says")


def _said(subject: Subject) -> AdapterOf | None:
    return subject.report.adapter if subject.report else None
