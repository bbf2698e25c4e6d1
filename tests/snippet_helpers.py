"""The code blocks of a rendered card: taken out of it, told apart, and run. None of them is written down here."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, ClassVar

from packaging.requirements import Requirement

FENCED = re.compile(r"^(`{3,})(\w*)\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)
# kinds of blocks by language and beginning; a block of no kind is one that no test runs
KINDS = {
    "pip": ("sh", "pip install "),
    "load": ("python", "from transformers import ", "from gptqmodel import "),
    "openai": ("python", "from openai import "),
    "curl": ("sh", "curl "),
    "serve on a CPU": ("sh", "hubplugin serve "),
    "serve on a GPU": ("sh", "vllm serve "),
    "manifest": ("yaml", ""),
    "make again": ("sh", "hubplugin run "),
}
PORT = ":8000/"  # both ways to serve listen there


def blocks(card: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block of a card."""
    return [(language, text) for _, language, text in FENCED.findall(card.split("\n---\n", 1)[1])]


def kind(block: tuple[str, str]) -> str:
    """What a block is. Raises LookupError where nothing runs it."""
    for name, (language, *beginnings) in KINDS.items():
        if block[0] == language and block[1].startswith(tuple(beginnings)):
            return name
    raise LookupError(f"no test runs this block of a card: {block}")


def of_kind(card: str, name: str) -> list[str]:
    """The blocks of one kind."""
    return [block[1] for block in blocks(card) if kind(block) == name]


def missing(pip: str) -> str:
    """What a pip line asks for and this environment has not; empty where it has all of it."""
    for word in pip.replace("'", "").split()[2:]:
        wanted = Requirement(word)
        try:
            if not wanted.specifier.contains(metadata.version(wanted.name), prereleases=True):
                return f"{word}, and {metadata.version(wanted.name)} is installed"
        except metadata.PackageNotFoundError:
            return f"{word}, which is not installed"
    return ""


def run_client(code: str, port: int) -> str:
    """What a client's block prints when the server has another port."""
    assert code.count(PORT) == 1
    code = code.replace(PORT, f":{port}/")
    words = ["sh", "-c", code] if code.startswith("curl ") else [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def answering() -> Iterator[http.server.ThreadingHTTPServer]:
    """A server that answers OpenAI's two ways of completing text, and keeps what it was asked in `asked`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            server.asked.append((self.path, self.headers["content-type"], asked))
            content = {"text": "pong"} if "prompt" in asked else {"message": {"role": "assistant", "content": "pong"}}
            choice = {"index": 0, "finish_reason": "stop", **content}
            made = {"id": "1", "object": "x", "created": 1, "model": asked["model"], "choices": [choice]}
            payload = json.dumps(made).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        asked: ClassVar[list[tuple[str, str, Any]]]

    Server.asked = []
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
