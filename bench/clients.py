"""Official clients, unmodified, against a running endpoint: Node's `openai`, and `langchain-openai`.

    python bench/clients.py http://127.0.0.1:8000/v1 [--model NAME] [--clients node langchain]

Each is installed with its pinned version in a temporary folder, lists the models, asks for one answer and one streamed
answer, and asks for a model that is not there, whose error it has to read. Exits with 1 where one does not. A key is
taken from VLLM_API_KEY.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

OPENAI, LANGCHAIN = "openai@7.59.0", "langchain-openai==1.7.4"
LIMIT = 600  # seconds for an installation, and for all answers

NODE = """
import OpenAI from "openai";
const [baseURL, model, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const asked = { model, messages: [{ role: "user", content: "How is a plan made?" }], max_tokens: 8, temperature: 0 };
const said = { models: [], streamed: "" };
for await (const row of client.models.list()) said.models.push(row.id);
said.answer = (await client.chat.completions.create(asked)).choices[0].message.content;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true }))
  said.streamed += chunk.choices[0]?.delta?.content ?? "";
try { await client.chat.completions.create({ ...asked, model: "not-there" }); }
catch (error) { said.error = [error.constructor.name, error.status, error.code]; }
console.log(JSON.stringify(said));
"""
PYTHON = """
import json, sys
import openai
from langchain_openai import ChatOpenAI
base_url, model, key = sys.argv[1:]
words = {"base_url": base_url, "api_key": key, "max_tokens": 8, "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(model=model, **words)
said = {"models": [row.id for row in openai.OpenAI(base_url=base_url, api_key=key).models.list()]}
said["answer"] = chat.invoke("How is a plan made?").content
said["streamed"] = "".join(chunk.content for chunk in chat.stream("How is a plan made?"))
try:
    ChatOpenAI(model="not-there", **words).invoke("x")
except openai.APIStatusError as error:
    said["error"] = [type(error).__name__, error.status_code, error.code]
print(json.dumps(said))
"""


def node(folder: Path, words: list[str]) -> dict[str, Any]:
    """The official client of JavaScript."""
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    (folder / "ask.js").write_text(NODE)
    _run(["npm", "install", "--no-audit", "--no-fund", OPENAI], folder)
    return _run(["node", "ask.js", *words], folder)


def langchain(folder: Path, words: list[str]) -> dict[str, Any]:
    """LangChain's chat model of OpenAI, on the official client of Python."""
    _run([sys.executable, "-m", "venv", "env"], folder)
    _run(["env/bin/python", "-m", "pip", "install", "--quiet", LANGCHAIN], folder)
    (folder / "ask.py").write_text(PYTHON)
    return _run(["env/bin/python", "ask.py", *words], folder)


def _run(command: list[str], folder: Path) -> dict[str, Any]:
    """The JSON of a command's last line; nothing where that is none. Ends the program where the command fails."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VLLM_API_KEY")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise SystemExit(f"{command[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    last = done.stdout.strip().splitlines()[-1:] or [""]
    return json.loads(last[0]) if last[0].startswith("{") else {}


CLIENTS = {"node": node, "langchain": langchain}


def faults(said: dict[str, Any], model: str) -> list[str]:
    """What a client did not get."""
    wanted = {
        "the list of models": model in said.get("models", []),
        "an answer": bool(said.get("answer")),
        "the same answer, streamed": said.get("streamed") == said.get("answer"),
        "the error for a model that is not there": said.get("error", [])[1:] == [404, "model_not_found"],
    }
    return [name for name, there in wanted.items() if not there]


def main() -> None:
    """Ask by every client, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--model", help="The first one where none is named.")
    parser.add_argument("--clients", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    options = parser.parse_args()
    key = os.environ.get("VLLM_API_KEY") or "none"
    listed = httpx.get(f"{options.url}/models", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
    model = options.model or listed.raise_for_status().json()["data"][0]["id"]
    failed = False
    for name in options.clients:
        with tempfile.TemporaryDirectory() as folder:
            said = CLIENTS[name](Path(folder), [options.url, model, key])
        missing = faults(said, model)
        failed = failed or bool(missing)
        print(f"{name}: {'missing: ' + ', '.join(missing) if missing else 'all there'} {json.dumps(said)}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
