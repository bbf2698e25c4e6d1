#!/bin/sh
# datasets 5.2.0: load_dataset("json", data_files=<a file of this disk>) asks a server of Hugging Face's on every call, with a
# HEAD request whose only purpose is to count the use of the format "json"; it waits up to 3 s for an answer and ignores it.
# Expected: reading a local file touches no network. HF_HUB_OFFLINE=1 or HF_UPDATE_DOWNLOAD_COUNTS=0 keep it from asking;
# HF_HUB_DISABLE_TELEMETRY=1 and DO_NOT_TRACK=1 do not.
# Seen 2026-11-28, Python 3.11, with and without the two variables: one name looked up, s3.amazonaws.com.
# Fails if that changes. Shows it by recording the names that are looked up, in place of looking them up.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q datasets==5.2.0
cat > "$place/look.py" <<'PY'
import json
import os
import socket
import sys

from datasets import load_dataset

asked = []


def record(host, *rest, **more):
    asked.append(host.decode() if isinstance(host, bytes) else host)
    raise socket.gaierror("not looked up")


socket.getaddrinfo = record
folder = sys.argv[1]
path = os.path.join(folder, "a.jsonl")
with open(path, "w") as file:
    file.write(json.dumps({"text": "a"}) + "\n")
rows = load_dataset("json", data_files={"test": path}, split="test", cache_dir=os.path.join(folder, "cache"))
print(len(rows), sorted(set(asked)))
PY
export HF_HOME="$place/home"
unset HF_HUB_OFFLINE HF_UPDATE_DOWNLOAD_COUNTS HF_HUB_DISABLE_TELEMETRY DO_NOT_TRACK || true
run() { "$place/env/bin/python" "$place/look.py" "$place" 2>/dev/null; }
plain=$(run)
quiet=$(HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 run)
uncounted=$(HF_UPDATE_DOWNLOAD_COUNTS=0 run)
offline=$(HF_HUB_OFFLINE=1 run)
echo "plain:                       $plain"
echo "HF_HUB_DISABLE_TELEMETRY=1:  $quiet"
echo "HF_UPDATE_DOWNLOAD_COUNTS=0: $uncounted"
echo "HF_HUB_OFFLINE=1:            $offline"
[ "$plain" = "1 ['s3.amazonaws.com']" ]
[ "$quiet" = "$plain" ]
[ "$uncounted" = "1 []" ]
[ "$offline" = "1 []" ]
