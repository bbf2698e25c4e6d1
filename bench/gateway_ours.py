"""The endpoint of `hubplugin serve`, as it is but for its engine, which is the stand-in of gateway_engine.py.

python bench/gateway_ours.py PORT
"""

import asyncio
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from serve import engine
from serve.endpoint import app, command
from serve.endpoint.guard import Guard, Limits
from serve.endpoint.offer import Offer
from serve.endpoint.pool import Pool

ENGINE = Path(__file__).with_name("gateway_engine.py")


def start(
    offer: Offer, socket: Path, log: Path, progress: Callable[[str], None], unwanted: threading.Event
) -> engine.Engine:
    """The stand-in on the socket where vLLM would listen."""
    words = [sys.executable, str(ENGINE), str(socket)]
    return engine.launch(
        words, url="http://engine", name=offer.name, environment=dict(os.environ), socket=socket, log=log
    )


async def serve(port: int, folder: Path) -> None:
    """Until SIGTERM; with a key and a log of requests, as one that others reach has them."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    pool = Pool([Offer("model", folder)], [1], 1, folder, start=start)
    with (folder / command.REQUESTS).open("a", encoding="utf-8") as log:
        made = app.make(pool, Guard(command.keys(None), Limits()), lambda entry: command._note(entry, log))
        runner = web.AppRunner(made, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        watching = asyncio.create_task(pool.watch())
        await pool.start(pool.slot("model"))
        await stop.wait()
        await pool.close(0)
        watching.cancel()
        await runner.cleanup()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(serve(int(sys.argv[1]), Path(folder)))
