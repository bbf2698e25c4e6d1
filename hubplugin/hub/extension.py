"""`hf compress`: this hubplugin as an extension of the official command line `hf`.

Knows where `hf` looks for its extensions, and which of them is ours. Knows no verb. `hf` runs what a folder
~/.local/share/hf/extensions/hf-<name> names in its manifest.json; it looks for no other plugins.
"""

import os
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hubplugin
from hubplugin.errors import HubError

COMMAND = "compress"
REPO = f"hf-{COMMAND}"
# `hf extensions update` asks GitHub for OWNER/REPO. No account there can have an underscore: nobody else can answer.
OWNER = "_hubplugin"
SHOWN = "hubplugin"  # by `hf --help`, as where the extension is from
WRITTEN = (".latest_commit", "manifest.json")  # by `hf` itself, for extensions it looked up, and by us


def register() -> tuple[Path, Path]:
    """Make `hf compress ...` run the `hubplugin ...` of this environment: the file written, and the program it names.

    Registered again, it changes nothing, or names this environment in place of another one. Raises HubError where
    somebody else's extension has the name, `hf` has a command of that name, or there is nothing to run.
    """
    theirs, program, place = _extensions(), str(_program()), _folder()
    _refuse_built_in()
    there, description = _there(), (hubplugin.__doc__ or "").rstrip(".")
    if there is None or (there.executable_path, there.description) != (program, description):
        theirs.ExtensionManifest(
            owner=OWNER,
            repo=REPO,
            repo_id=SHOWN,
            short_name=COMMAND,
            executable_path=program,
            type="python",
            installed_at=datetime.now(UTC),
            description=description,
        ).save(place)
    return place / theirs.MANIFEST_FILENAME, Path(program)


def remove() -> Path | None:
    """Take `hf compress` away again: the folder it was in, or None where there was none.

    Raises HubError where the extension is somebody else's.
    """
    if _there() is None:
        return None
    place = _folder()
    for name in WRITTEN:
        (place / name).unlink(missing_ok=True)
    if not any(place.iterdir()):  # what others have put there stays
        place.rmdir()
    return place


def _extensions() -> Any:
    """What the client knows of extensions. It is no documented API: a later release may have moved it."""
    try:
        from huggingface_hub.cli import extensions
    except ImportError as error:
        what = "this release of huggingface_hub has no extensions that are known here"
        raise HubError(f"hf {COMMAND}", what, "use `hubplugin`, or huggingface_hub 2.4") from error
    return extensions


def _folder() -> Path:
    root: Path = _extensions().EXTENSIONS_ROOT
    return root.expanduser() / REPO


def _there() -> Any:
    """Our extension as it was registered; None where there is none. Raises HubError for one that is not ours."""
    place, theirs = _folder(), _extensions()
    if not place.is_dir() or not any(place.iterdir()):
        return None
    try:
        found = theirs.ExtensionManifest.load(place)
    except Exception as error:  # whatever it holds, we did not write it
        raise HubError(
            str(place), "is no extension that hubplugin registered", "look at it, and move it away"
        ) from error
    if (found.owner, found.repo_id) != (OWNER, SHOWN):
        what = f"`hf {COMMAND}` is the extension {found.repo_id} already"
        raise HubError(str(place), what, f"keep it and use `hubplugin`, or first `hf extensions remove {COMMAND}`")
    return found


def _refuse_built_in() -> None:
    """Raise HubError where `hf` has the command itself: it would never look for an extension."""
    from huggingface_hub.cli import hf

    if COMMAND in {name.strip() for names in hf.app.commands for name in names.split("|")}:
        raise HubError(f"hf {COMMAND}", "is a command of `hf` itself", "use `hubplugin`")


def _program() -> Path:
    """The console script of this environment, or of the user. Raises HubError where there is none."""
    name = "hubplugin.exe" if os.name == "nt" else "hubplugin"
    schemes = sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")
    for scheme in schemes:
        if (program := Path(sysconfig.get_path("scripts", scheme)) / name).is_file():
            return program
    where = sysconfig.get_path("scripts")
    raise HubError(where, "holds no program `hubplugin`", "install hubplugin: pip install, in this environment")
