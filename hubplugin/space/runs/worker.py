"""The process that compresses for a visitor: a manifest and a folder in, lines on stderr and an exit code out.

Its first line of stdin is the token that the base is read with, or empty. The end of stdin means that the page is gone,
or has no use for it any more.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from hubplugin import api
from hubplugin.errors import HubPluginError
from hubplugin.progress import progress

ENDING = 20.0  # seconds for ending in order
REFUSED = 2


def _ended(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)  # an exception, so that everything that was started is ended


def _read_token() -> str:
    # not by sys.stdin: Python cannot end in order while a thread waits in it
    said = b""
    while not said.endswith(b"\n") and (more := os.read(0, 4096)):
        said += more
    return said.decode("ascii").strip()


def _end_with_the_page() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ENDING)
    os._exit(1)


def main() -> int:
    """Run the manifest. Returns 0, or 2 after an error's three lines."""
    signal.signal(signal.SIGTERM, _ended)
    token = _read_token()
    threading.Thread(target=_end_with_the_page, daemon=True).start()
    manifest, out = sys.argv[1:]
    try:
        api.run(manifest, out=out, token=token or False, require_vllm=False)
    except HubPluginError as error:
        progress(error.lines())
    except OSError as error:
        progress(HubPluginError("this machine", error.strerror or str(error), "try a smaller model, or later").lines())
    else:
        return 0
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
