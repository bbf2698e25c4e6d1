"""Whether OpenMP's threads sleep or spin while they have nothing to do.

Where several processes share the cores, threads that spin slow all of them, up to a hundred times. An engine that has
the machine to itself is slower with threads that sleep: 210 parallel regions a token, each of which wakes them up.
"""

import os
from collections.abc import Mapping

POLICY = "OMP_WAIT_POLICY"  # which OpenMP reads once, when it loads
OURS = "HUBPLUGIN_SET_OMP_WAIT_POLICY"  # there where it is not the user's


def let_sleep() -> None:
    """Let them sleep, here and in what is started from here but engines. A policy that the user has set stays."""
    if POLICY not in os.environ:
        os.environ.update({POLICY: "PASSIVE", OURS: "1"})


def of_engine(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what `let_sleep` has set."""
    ours = (POLICY, OURS) if OURS in environment else ()
    return {name: value for name, value in environment.items() if name not in ours}
