"""The line of the gate about the vocabulary: token ids of the tokenizer against rows of the embedding.

Knows a tokenizer and headers. Knows no text.
"""

from pathlib import Path

from hubplugin.checkpoint.safetensors_io import Reader
from hubplugin.errors import CalibrationError, CheckpointError
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.model.construction.tokenizer_files import read_tokenizer
from hubplugin.report import GateLine


def vocabulary_fits(candidate: Candidate) -> GateLine:
    """Token ids that the tokenizer can produce have a row of the embedding, as far as they have one in the base."""
    name, embed = "vocabulary", f"{candidate.plan.family.embed}.weight"
    try:
        (base_ids, base_rows), (ids, rows) = (_sizes(folder, embed) for folder in (candidate.base, candidate.folder))
    except (CalibrationError, CheckpointError) as error:
        return GateLine(name=name, passed=False, detail=f"{error.where}: {error.what}")
    beyond, of_base = (_beyond(*sizes) for sizes in ((ids, rows), (base_ids, base_rows)))
    detail = f"{len(ids)} token ids, {rows} rows of the embedding"
    if beyond:
        detail += f"; {len(beyond)} ids from {min(beyond)} on have no row"
    if new := beyond - of_base:
        return GateLine(name=name, passed=False, detail=f"{detail}; in the base, {min(new)} has one")
    return GateLine(name=name, passed=True, detail=f"{detail}, in the base neither" if beyond else detail)


def _sizes(folder: Path, embed: str) -> tuple[frozenset[int], int]:
    """The token ids of a folder's tokenizer, added ones too, and the rows of its embedding."""
    tokenizer, headers = read_tokenizer(folder), Reader(folder).headers
    ids = frozenset(tokenizer.get_vocab().values()) | frozenset(tokenizer.added_tokens_decoder)
    return ids, headers[embed].shape[0] if embed in headers else 0


def _beyond(ids: frozenset[int], rows: int) -> frozenset[int]:
    return frozenset(number for number in ids if number >= rows)
