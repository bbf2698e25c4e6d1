"""The files of a Space of Hugging Face that is this page: its card, its requirements, its program, and this package.

Knows what installed distributions ask for. Knows no page and no network.
"""

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import yaml

import hubplugin
import serve
from hubplugin.errors import ServeError

DISTRIBUTION = "hubplugin"
EXTRAS = ("ui",)  # without vLLM, whose build for CPUs cannot be installed by a list of requirements alone
INDEX = "https://download.pytorch.org/whl/cpu"
# the least that does: to read a visitor's private models, and to make repos and change those that were made here
SCOPES = ("read-repos", "contribute-repos")
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "docs-llama-12m")

CARD = """
# Compress a model of the Hub

GPTQ and structured pruning by hubplugin {version}: name a model, look at the plan, press Compress. The result is
measured beside its base, and published under your name, with a card that says what it costs, once you sign in. One
model is compressed at a time; the others wait. Models of up to {millions} M parameters are taken.

Whoever signs in is asked for the right to read their repos, and to make new ones. Their token stays in their browser's
cookie and in requests to the Hub; nothing of it is stored here. What a visitor made is removed when they close the
page.
"""
APP = '''"""This Space: hubplugin's page, from the package that lies beside this file."""

import sys

from hubplugin.space import app

if __name__ == "__main__":
    sys.exit(app.run_as_space(max_parameters={max_parameters}))
'''


def write(folder: Path, *, max_parameters: int) -> str:
    """Write the folder of a Space. Returns the command that uploads it.

    Raises ServeError for a folder that holds something else, or packages that are not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not _ours(folder):
        raise ServeError(str(folder), "is no empty folder", "name a new one, which becomes the Space's")
    pinned = requirements()
    folder.mkdir(parents=True, exist_ok=True)
    for package in (hubplugin, serve):
        assert package.__file__
        target = folder / package.__name__
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(package.__file__).parent, target, ignore=LEFT_OUT)
    files = {
        "README.md": _card(max_parameters),
        "requirements.txt": pinned,
        "app.py": APP.format(max_parameters=max_parameters),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return f"hf upload YOUR-NAME/compress {folder} . --repo-type space"


def _ours(folder: Path) -> bool:
    """Whether a folder was written by an earlier call."""
    program = folder / "app.py"
    return program.is_file() and "app.run_as_space(" in program.read_text("utf-8", "replace")


def _card(max_parameters: int) -> str:
    about = {
        "title": "Compress a model of the Hub",
        "emoji": "🗜️",
        "colorFrom": "indigo",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": metadata.version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "license": "apache-2.0",
        "pinned": False,
        "short_description": "GPTQ and pruning, measured and published",
        "hf_oauth": True,
        "hf_oauth_scopes": list(SCOPES),
    }
    written = yaml.dump(about, sort_keys=False, allow_unicode=True)
    return f"---\n{written}---\n{CARD.format(version=hubplugin.__version__, millions=max_parameters // 10**6)}"


def requirements() -> str:
    """All that the page and what it calls need, at the versions installed here. Raises ServeError where one is not."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    waiting = [(DISTRIBUTION, frozenset(EXTRAS))]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            fix = f"pip install '{DISTRIBUTION}[{','.join(EXTRAS)}]'"
            raise ServeError(name, "is not installed, so its version is not known", fix) from error
        found[_plain(name)] = distribution.version
        for line in distribution.requires or ():
            asked = Requirement(line)
            wanted = ({"extra": extra} for extra in (*extras, ""))
            if asked.marker is None or any(asked.marker.evaluate(extra) for extra in wanted):
                one = (_plain(asked.name), frozenset(asked.extras))
                if one not in seen:
                    seen.add(one)
                    waiting.append(one)
    del found[DISTRIBUTION]
    pinned = [f"{name}=={version}" for name, version in sorted(found.items())]
    return "\n".join([f"--extra-index-url {INDEX}", *pinned]) + "\n"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
