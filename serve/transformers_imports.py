"""transformers without scikit-learn.

Where scikit-learn is installed, and lm-eval installs it, transformers' `generation.candidate_generator` imports it for
one function of assisted generation, and with it scipy, pandas and pyarrow: two seconds and 140 MB of every process
that builds a model (transformers 5.19; `findings/transformers_imports_scikit_learn.sh`). Nothing here calls it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "sklearn"


@contextmanager
def without_sklearn() -> Iterator[None]:
    """Import transformers' classes inside the block: scikit-learn counts as not installed, unless it is loaded."""
    if NAME in sys.modules:
        yield
        return
    sys.modules[NAME] = None  # type: ignore[assignment]  # documented: importing it raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[NAME]
