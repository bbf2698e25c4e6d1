# The words of the project. `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3.11
BIN := .venv/bin
ONCE ?=

.PHONY: env demo test browser check fix clean

env: .venv/.ready

# torch first and with its dependencies, then everything else exactly as locked (.lock/README.md says why).
.venv/.ready: .lock/cpu.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install --no-deps -r .lock/cpu.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

demo: env
	$(BIN)/python -m hubplugin demo $(if $(ONCE),--once)

# all tests but those that need a GPU; the chat page is tested in a real browser
test: export OMP_WAIT_POLICY := PASSIVE  # torch's idle threads must not spin: tests and engines share the machine
test: env browser
	$(BIN)/python -m pytest -m "not gpu"

browser:
	@command -v chromium || command -v google-chrome || \
	  { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y --no-install-recommends chromium; } || \
	  echo "no chromium: install it, or the browser tests are skipped"

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info
