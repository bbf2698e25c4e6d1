"""Checks of files: those that the report names, tokenizer and chat template, pickles. Weights are only hashed."""

import json
from collections.abc import Iterator

from hubplugin import report
from hubplugin.checkpoint.model_folder import PICKLES, SCORES_FILE, WEIGHTS, allowed
from hubplugin.disk import digest, sha256
from hubplugin.errors import HubPluginError
from hubplugin.evaluation.cards import benchmarks
from hubplugin.variant_folder import CARD, MANIFEST
from hubplugin.verification import claims
from hubplugin.verification.outcome import Finding, compared, failed, passed, unchecked
from hubplugin.verification.subject import Subject

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json")
TEMPLATE, IN_JSON, TOKENIZER_CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
SHORT = 12  # letters of a digest that a line shows


def as_reported(subject: Subject) -> Iterator[Finding]:
    """Every file is the one that was measured, and no weights stand beside them."""
    if subject.report is None:
        return
    listed, equal = subject.report.files, 0
    for name, wanted in listed.items():
        # nothing but the model's own files is opened, whatever a report from elsewhere names
        found = subject.sha256(name) if name in subject.files.names else ""
        if found == wanted:
            equal += 1
        else:
            is_there = found[:SHORT] or "no such file"
            yield compared(f"sha256 {wanted[:SHORT]}…", f"sha256 {is_there}…" if found else is_there, name)
    if equal == len(listed):
        yield passed(f"{equal} files have the sha256 that the report says")
    for name in subject.files.names:
        if allowed(name, WEIGHTS) and name not in listed:
            yield failed("is not among the report's files, and loaders read it", name)


def manifest(subject: Subject) -> Iterator[Finding]:
    """The manifest in report and folder is the one whose sha256 is named."""
    if subject.report is None:
        return
    yield compared(subject.report.manifest_sha256, digest(subject.report.manifest_text), report.FILE_NAME)
    path = subject.folder / MANIFEST
    if path.is_file():
        yield compared(subject.report.manifest_sha256, sha256(path), MANIFEST)


def tokenizer(subject: Subject) -> Iterator[Finding]:
    """A tokenizer is there, and a chat template where base or name promise one."""
    names = set(subject.files.names)
    found = sorted(names & set(TOKENIZERS)) or (["vocab.json"] if {"vocab.json", "merges.txt"} <= names else [])
    yield passed(", ".join(found), "files") if found else failed("there are none", "files")
    place, named = _template(subject), (subject.files.name.rsplit("/", 1)[-1], *subject.card.texts("tags"))
    if place:
        yield passed(f"in {place}", "chat template")
    elif of_base := _template_of_base(subject):
        yield compared(f"the base has one, in {of_base}", "none", "chat template", holds=False)
    elif claims.conversational(named):
        yield compared("name or tags say that it answers in conversations", "none", "chat template", holds=False)
    else:
        yield passed("none, and none is promised", "chat template")


def _template(subject: Subject) -> str:
    """The file that has a chat template; empty where none has."""
    for name in (TEMPLATE, IN_JSON):
        if name in subject.files.names:
            return name
    path = subject.folder / TOKENIZER_CONFIG
    return TOKENIZER_CONFIG if path.is_file() and _names_template(path.read_text("utf-8", "replace")) else ""


def _template_of_base(subject: Subject) -> str:
    """The same of the base; empty also where the base cannot be read, which another check says, and for a student,
    whose files are its own."""
    if subject.report and subject.report.distillation and subject.report.distillation.student:
        return ""
    try:
        base = subject.base
        found = [name for name in (TEMPLATE, IN_JSON) if name in base.names]
        return found[0] if found else TOKENIZER_CONFIG * _names_template(base.text(TOKENIZER_CONFIG) or "")
    except (HubPluginError, UnicodeDecodeError):
        return ""


def _names_template(text: str) -> bool:
    try:
        values = json.loads(text or "{}")
    except ValueError:
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))


def pickles(subject: Subject) -> Iterator[Finding]:
    """Nothing that runs code when it is loaded."""
    found = [name for name in subject.files.names if any(allowed(name.rsplit("/", 1)[-1], (one,)) for one in PICKLES)]
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield failed(f"{found[0]}{more}: pickles can run code when they are loaded")
    else:
        yield passed("no file is one")


def card(subject: Subject) -> Iterator[Finding]:
    """There is a card, and its front matter can be read."""
    if subject.card.fault:
        yield failed(subject.card.fault)
    else:
        yield passed(f"{CARD} with {len(subject.card.metadata)} keys of front matter")


def report_of_card(subject: Subject) -> Iterator[Finding]:
    """A card of ours has its report beside it: without one, nothing holds its figures against what was measured."""
    ours = subject.card.metadata.get("compression")
    versions = ours.get("versions") if isinstance(ours, dict) else None
    if subject.report is None and isinstance(versions, dict) and "hubplugin" in versions:
        yield failed(f"its card has the figures of hubplugin's {report.FILE_NAME}, and there is none")


def scores(subject: Subject) -> Iterator[Finding]:
    """The file that has the Hub show scores of benchmarks says what the report says of them."""
    if subject.report is None:
        return
    claimed, path = benchmarks.render(subject.report), subject.folder / SCORES_FILE
    found = path.read_text("utf-8", "replace") if path.is_file() else None
    if claimed is None and found is None:
        return
    yield compared(claimed or "nothing", found or "nothing", SCORES_FILE)


def repository_card_claims(subject: Subject) -> Iterator[Finding]:
    """What a card that is not ours must say to be found and used: base and licence."""
    if subject.report or subject.card.fault:
        return
    for key in ("base_model", "license"):
        said = subject.card.texts(key)
        yield passed(", ".join(said), key) if said else unchecked("the front matter names none", key)
