# The words of the project. `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3.11
BIN := .venv/bin
ONCE ?=

.PHONY: env env-gptqmodel demo test browser bench bench-serve bench-env bench-page bench-pruning bench-families check audit docs fix clean

env: .venv/.ready

# torch first and with its dependencies, then everything else exactly as locked (.lock/README.md says why).
.venv/.ready: .lock/cpu.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install --no-deps -r .lock/cpu.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

# for `engine: gptqmodel` of a manifest; .lock/README.md says what is left out
env-gptqmodel: env
	$(BIN)/python -m pip install --no-deps -r .lock/gptqmodel.txt

demo: env
	$(BIN)/python -m hubplugin demo $(if $(MODEL),--model $(MODEL)) $(if $(ONCE),--once)

# all tests but those that need a GPU, a file on either of two workers, of which one at a time may start vLLM
test: export OMP_WAIT_POLICY := PASSIVE  # torch's idle threads must not spin: tests and engines share the machine
test: env browser
	$(BIN)/python -m pytest -m "not gpu" -n 2 --dist loadfile --no-loadscope-reorder

browser:
	@command -v chromium || command -v google-chrome || \
	  { [ "$$(id -u)" = 0 ] && apt-get update && apt-get install -y --no-install-recommends chromium; } || \
	  echo "no chromium: install it, or the browser tests are skipped"

# side by side with other quantizers (docs/bench.md): everything that is not in bench/results yet, which takes hours;
# or a part of it: make bench MODELS="docs 75m" TOKENS=8192 ENGINES="ours gptqmodel" GROUP_SIZES=32 SEEDS="0 1" ROUNDS=1
# FORCE=1 runs again what is there; CALIBRATION=a.txt HELD_OUT=b.txt take a trained model's tokens from text files, as a
# real one's always are: MODELS=smollm2-moved TOKENS=32768 GROUP_SIZES=64 CALIBRATION=a.txt HELD_OUT=b.txt
bench: bench-env
	$(BIN)/python bench/run.py $(if $(MODELS),--models $(MODELS)) $(if $(TOKENS),--tokens $(TOKENS)) \
	  $(if $(ENGINES),--engines $(ENGINES)) $(if $(BITS),--bits $(BITS)) $(if $(GROUP_SIZES),--group-sizes $(GROUP_SIZES)) \
	  $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(FORCE),--force) \
	  $(if $(CALIBRATION),--calibration $(CALIBRATION)) $(if $(HELD_OUT),--held-out $(HELD_OUT))
	$(BIN)/python bench/page.py

# the endpoint beside stock vLLM: make bench-serve FOLDERS="./model ./variant"
bench-serve: env
	$(BIN)/python bench/serving.py $(FOLDERS)
	$(BIN)/python bench/serving_page.py

bench-env: env
	$(BIN)/python bench/environments.py

bench-page: env
	$(BIN)/python bench/page.py

# structured pruning beside references of other methods (docs/pruning.md): what is not in bench/results/pruning yet, or
# a part of it: make bench-pruning METHODS="ours flap" RATIOS="0.2 0.3"; FORCE, CALIBRATION and HELD_OUT as above, and with
# these MODEL=smollm2-moved
bench-pruning: export OMP_WAIT_POLICY := PASSIVE
bench-pruning: env
	$(BIN)/python bench/pruning.py $(if $(MODEL),--model $(MODEL)) $(if $(METHODS),--methods $(METHODS)) $(if $(RATIOS),--ratios $(RATIOS)) \
	  $(if $(FORCE),--force) $(if $(CALIBRATION),--calibration $(CALIBRATION)) $(if $(HELD_OUT),--held-out $(HELD_OUT))
	$(BIN)/python bench/pruning_page.py

# every family of compression at the same bytes (docs/families.md): what is not in bench/results/families yet, or a part of
# it: make bench-families ONLY="GPTQ-4x Prune-2x" OPTIONS="--no-speed"; OPTIONS are those of bench/families.py
bench-families: export OMP_WAIT_POLICY := PASSIVE
bench-families: export HUBPLUGIN_SET_OMP_WAIT_POLICY := 1  # for making variants, not for engines (serve/idle_threads.py)
bench-families: env
	$(BIN)/python bench/families.py $(if $(ONLY),--only $(ONLY)) $(OPTIONS)
	$(BIN)/python bench/families_page.py

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/generate.py --check

# known vulnerabilities of what is locked; needs an index that offers PyPI's JSON API, so it is no part of `check`
audit:
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install pip-audit==2.10.1
	.venv-audit/bin/pip-audit -r .lock/cpu.txt --no-deps --disable-pip --progress-spinner off

# the generated parts of README.md and docs/, manifests/schema.json and docs/report.schema.json
docs: env
	$(BIN)/python docs/generate.py

fix: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-audit build *.egg-info
