#!/bin/sh
# vllm-router 0.1.17 (PyPI), started with --enable-igw (several models behind one router) and --worker-urls of two workers
# that are up and answer /health, /v1/models and chat completions.
# Expected: both workers are registered under the models that they list; a request for a model goes to its worker; a model
# that nobody serves gets 404.
# Seen 2026-11-28, Linux x86-64, Python 3.11: GET /workers lists no worker and every request gets 503, without a word that
# --worker-urls is not read. After POST /workers {"url", "model_id"} for both, requests are routed by model, and a request
# for a model that does not exist gets 200, answered by one of the others under the other's name.
# Fails if that changes.
set -eu
place=$(mktemp -d)
pids=""
trap 'kill $pids 2>/dev/null || true; rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q vllm-router==0.1.17
cat > "$place/worker.py" <<'PY'
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

name = sys.argv[1]


class Worker(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "me"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
        self.answer({"id": "x", "object": "chat.completion", "created": 0, "model": name, "choices": [said]})

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Worker).serve_forever()
PY
set -- $("$place/env/bin/python" -c "
import socket
held = [socket.create_server(('127.0.0.1', 0)) for _ in range(4)]
print(*(one.getsockname()[1] for one in held))")
"$place/env/bin/python" "$place/worker.py" alpha "$1" & pids="$pids $!"
"$place/env/bin/python" "$place/worker.py" beta "$2" & pids="$pids $!"
"$place/env/bin/vllm-router" --enable-igw --host 127.0.0.1 --port "$3" --prometheus-port "$4" \
  --worker-urls "http://127.0.0.1:$1" "http://127.0.0.1:$2" > "$place/router.log" 2>&1 & pids="$pids $!"
"$place/env/bin/python" - "$@" <<'PY'
import json
import sys
import time
import urllib.error
import urllib.request

first, second, router = sys.argv[1:4]


def call(path, content=None):
    body = None if content is None else json.dumps(content).encode()
    asked = urllib.request.Request(f"http://127.0.0.1:{router}{path}", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(model):
    status, said = call("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "hi"}]})
    return (status, json.loads(said)["model"]) if status == 200 else (status, "")


for _ in range(100):
    try:
        call("/health")
        break
    except OSError:
        time.sleep(0.2)
time.sleep(3)  # more than its first look at workers takes
status, said = call("/workers")
print("workers of --worker-urls:", json.loads(said)["workers"], "| alpha:", ask("alpha")[0])
assert json.loads(said)["workers"] == [] and ask("alpha")[0] == 503
for name, port in (("alpha", first), ("beta", second)):
    call("/workers", {"url": f"http://127.0.0.1:{port}", "model_id": name})
for _ in range(100):
    if len(json.loads(call("/workers")[1])["workers"]) == 2 and ask("beta")[0] == 200:
        break
    time.sleep(0.2)
print("after POST /workers:", ask("alpha"), ask("beta"), "| a model that nobody serves:", ask("gamma"))
assert ask("alpha") == (200, "alpha") and ask("beta") == (200, "beta") and ask("gamma")[0] == 200
PY
