"""`python -m hubplugin` and the console script. Ctrl-C ends it in order, also while Python still loads."""

import os
import sys


def main() -> None:
    """Load the command line and run it; exit code 130 for ctrl-C."""
    try:
        from hubplugin import interrupt

        with interrupt.held():
            from hubplugin import cli
        cli.main()
    except KeyboardInterrupt:
        sys.stdout.flush()
        sys.stderr.write("interrupted\n")
        sys.stderr.flush()
        # Not sys.exit: Python kills itself by signal where a library's import was interrupted, and all of ours is
        # unwound by now.
        os._exit(130)


if __name__ == "__main__":
    main()
