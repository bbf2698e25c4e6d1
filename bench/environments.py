"""Installs the rivals, each with its own Python environment under bench/.env, exactly as bench/lock pins it.

    python bench/environments.py [gptqmodel llmcompressor auto-round onecomp]
    python bench/environments.py litellm    # of bench/gateways.py; not among those that come without a name

An environment that stands from the same lock is kept. Packages come from wherever pip is set up to find them; torch is
installed first, with its dependencies, so that an index of CPU builds is used where pip knows one. Uses only the
standard library.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("gptqmodel", "llmcompressor", "auto-round", "onecomp")
OTHERS = ("litellm",)
READY = ".ready"  # holds the digest of the lock it was made from


def python(name: str) -> Path:
    """The interpreter of one environment."""
    return HERE / ".env" / name / "bin" / "python"


def ready(name: str) -> bool:
    """Whether the environment stands as its lock says."""
    mark = HERE / ".env" / name / READY
    return mark.is_file() and mark.read_text(encoding="utf-8") == _digest(name)


def _digest(name: str) -> str:
    return hashlib.sha256((HERE / "lock" / f"{name}.txt").read_bytes()).hexdigest()


def install(name: str) -> None:
    """Make one environment anew. Raises CalledProcessError where pip fails."""
    folder = HERE / ".env" / name
    shutil.rmtree(folder, ignore_errors=True)
    lock = HERE / "lock" / f"{name}.txt"
    torch = [line for line in lock.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    pip = [str(python(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if torch:
        subprocess.run([*pip, *torch], check=True)
    # locks are complete; gptqmodel asks for a newer torch than the others take, OneComp for Python 3.12: docs/bench.md
    subprocess.run([*pip, "--no-deps", "--ignore-requires-python", "-r", str(lock)], check=True)
    (folder / READY).write_text(_digest(name), encoding="utf-8")


def main() -> None:
    """Install what is missing or not as locked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="name")
    names = parser.parse_args().names
    for unknown in set(names) - {*NAMES, *OTHERS}:
        parser.error(f"no environment is called {unknown}; there are {', '.join((*NAMES, *OTHERS))}")
    for name in names:
        if ready(name):
            print(f"{name}: stands")
        else:
            print(f"{name}: installing", flush=True)
            install(name)


if __name__ == "__main__":
    main()
