"""`python -m hubplugin`, and the console script: ctrl-C while Python still loads is an orderly end too."""

import sys


def main() -> None:
    """Load the command line and run it."""
    try:
        from hubplugin import cli

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
