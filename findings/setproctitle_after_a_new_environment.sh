#!/bin/sh
# setproctitle 1.3.8, with which vLLM names its processes (VLLM::EngineCore): where a process replaces its environment
# (os.environ.clear() and update(), as a fork server does for each child) before the first call, setproctitle() changes
# nothing, raises nothing, and getproctitle() says ''. Importing the package before is not enough: it looks for its place
# in memory at the first call, by the environment that the process began with; calling it once before is.
# Expected: the title is set, or an error. Seen 2026-11-28, Linux, Python 3.11:
#   called after: title unchanged, getproctitle ''
#   imported before, called after: title unchanged, getproctitle ''
#   called before and after: title changed, getproctitle 'second'
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q setproctitle==1.3.8
cat > "$place/try.py" <<'PY'
import os
import sys

before = sys.argv[1]
if before != "called after":
    import setproctitle
if before == "called before and after":
    setproctitle.setproctitle("first")
environment = dict(os.environ)
os.environ.clear()
os.environ.update(environment)
import setproctitle

setproctitle.setproctitle("second")
with open("/proc/self/cmdline", "rb") as file:
    changed = file.read().startswith(b"second")
print(f"{before}: title {'changed' if changed else 'unchanged'}, getproctitle {setproctitle.getproctitle()!r}")
PY
for way in "called after" "imported before, called after" "called before and after"; do
  "$place/env/bin/python" "$place/try.py" "$way"
done > "$place/said"
cat "$place/said"
cat > "$place/expected" <<'TEXT'
called after: title unchanged, getproctitle ''
imported before, called after: title unchanged, getproctitle ''
called before and after: title changed, getproctitle 'second'
TEXT
cmp "$place/said" "$place/expected"
