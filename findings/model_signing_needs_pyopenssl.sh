#!/bin/sh
# model-signing 1.1.1 (OpenSSF): a plain `pip install model-signing` gives a package that cannot be imported: it imports
# OpenSSL (pyOpenSSL) as soon as it is imported itself, declares no such dependency, and sigstore 4.5.1, which it does
# declare, brings none. Expected: the installed package imports, and its command `model_signing` starts.
# Seen 2026-11-28, Python 3.11: ModuleNotFoundError: No module named 'OpenSSL'; with pyopenssl 26.4.0 beside it, it imports.
# Fails if that changes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/env"
"$place/env/bin/pip" install -q model-signing==1.1.1 sigstore==4.5.1
"$place/env/bin/pip" check
if "$place/env/bin/python" -c "import model_signing" 2> "$place/said"; then
  echo "it imports without pyOpenSSL"
  exit 1
fi
tail -n 1 "$place/said"
grep -q "No module named 'OpenSSL'" "$place/said"
"$place/env/bin/pip" install -q pyopenssl==26.4.0
"$place/env/bin/python" -c "import model_signing; print('with pyopenssl 26.4.0:', model_signing.__name__, 'imports')"
