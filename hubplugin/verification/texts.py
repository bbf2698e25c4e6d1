"""Which files hold the texts that a manifest evaluates: those that are given, or those that lie beside the manifest.

Knows names and paths; whether a text is the one that was evaluated is for the digest of its tokens to say.
"""

from pathlib import Path

from hubplugin.errors import CalibrationError, ManifestError
from hubplugin.manifest.reading import loading
from hubplugin.manifest.source import Source
from hubplugin.variant_folder import MANIFEST
from hubplugin.verification.subject import Subject

OPTION = "--text"


def evaluated(subject: Subject) -> tuple[Source, ...]:
    """What the manifest evaluates; empty where it evaluates nothing. Raises ManifestError where it cannot be read."""
    evaluate = loading.load(subject.folder / MANIFEST).manifest.evaluate
    return evaluate.sources if evaluate else ()


def check_given(subject: Subject, measured: bool) -> None:
    """Raise CalibrationError where the texts that are given are not as many as the manifest evaluates, or no files.

    `measured` says whether anything will read them.
    """
    if not subject.texts:
        return
    if not measured:
        raise CalibrationError(OPTION, "only measuring quality again reads texts", "add --quality")
    for path in subject.texts:
        if not path.is_file():
            raise CalibrationError(f"{OPTION} {path}", "there is no such file", "name a file of text")
    try:
        names = _names(evaluated(subject)) if subject.report else []
    except ManifestError:
        return  # which is a line of its own
    if not names:
        raise CalibrationError(OPTION, f"{subject.files.name} evaluates no text files", f"leave {OPTION} out")
    if len(names) != len(subject.texts):
        given = len(subject.texts)
        what = f"{given} {'file is' if given == 1 else 'files are'} given, and the manifest evaluates {len(names)}"
        raise CalibrationError(OPTION, what, f"give {OPTION} for each, in this order: {', '.join(names)}")


def placed(subject: Subject, source: Source) -> Source:
    """A source of text files with the paths that they have here; any other one as it is.

    Raises CalibrationError where nobody has given them and they are not beside the manifest.
    """
    if not source.files:
        return source
    names = _names(evaluated(subject))
    if subject.texts:
        places = dict(zip(names, subject.texts, strict=True))
        return source.model_copy(update={"files": tuple(str(places[name].resolve()) for name in source.files)})
    for name in source.files:
        if not _beside(subject, name):
            ask = f"name each with {OPTION}, in this order: {', '.join(names)}"
            raise CalibrationError(MANIFEST, f"{name} is not here", ask)
    return source


def _names(sources: tuple[Source, ...]) -> list[str]:
    """The different files of all sources, in the order of the manifest."""
    return list(dict.fromkeys(name for source in sources for name in source.files or ()))


def _beside(subject: Subject, name: str) -> bool:
    """Whether a file exists relative to the manifest. A manifest from a Hub names none outside its own repo."""
    outside = Path(name).is_absolute() or ".." in Path(name).parts
    return (subject.folder / name).is_file() and not (outside and subject.files.sha)
