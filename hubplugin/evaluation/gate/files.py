"""The line of the gate about files: what is copied from the base is the base's, byte for byte.

Knows names and bytes. What is not copied is named, with the reason, by left_behind.py.
"""

from hubplugin.checkpoint.model_folder import companions
from hubplugin.evaluation.gate.candidate import Candidate
from hubplugin.evaluation.gate.left_behind import left_behind
from hubplugin.report import GateLine


def companions_equal(candidate: Candidate) -> GateLine:
    """Tokenizer, chat template, generation config and licence files are the base's, byte for byte."""
    files = companions(candidate.base)
    pairs = [(name, candidate.base / name, candidate.folder / name) for name in files]
    changed = [name for name, file, copy in pairs if not copy.is_file() or copy.read_bytes() != file.read_bytes()]
    changed += [name for name in companions(candidate.folder) if name not in files]
    others = len(left_behind(candidate.base, candidate.not_pulled))
    detail = f"{len(files)} files equal, {others} left behind" if not changed else f"differs: {', '.join(changed)}"
    return GateLine(name="tokenizer and chat template", passed=not changed and bool(files), detail=detail)
