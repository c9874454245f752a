# The commands of a developer. Each one works first and alone on a fresh clone: it makes the environment it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RLLIB := .venv-rllib
DEMO := out/demo

.DEFAULT_GOAL := help
.PHONY: help env demo test lint types contracts rllib docs dist soak gpu gpu-pack clean

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(READY) ## the environment, in .venv (PYTHON=python3.12 chooses the interpreter)

$(READY): pyproject.toml constraints.txt
	@echo "Bringing the environment in $(VENV) up to date (some minutes and 6 GB the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## a map learns worlds that need no file, and says what it expects there; the results are in out/demo
	$(BIN)/tttstream watch places --model map --max-frames 900 --seed 0 --out $(DEMO)
	@echo "The results are in $(DEMO):" && ls $(DEMO)

test: lint types contracts ## formatting, lint, types, import contracts and all tests
	$(BIN)/python -m pytest -q -n 2

lint: $(READY) ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY) ## types of the three packages
	$(BIN)/mypy

contracts: $(READY) ## who may import whom
	$(BIN)/lint-imports

docs: $(READY) ## the documentation site, in out/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "The site is in out/site: open out/site/index.html"

rllib: $(RLLIB)/.ready ## tests of RLlib, in .venv-rllib, a thin layer over .venv (Ray pins a gymnasium of its own)
	$(RLLIB)/bin/python -m pytest -q tests/agents/test_rllib.py tests/agents/test_rllib_nodes.py

$(RLLIB)/.ready: $(READY)
	@$(BIN)/python -m venv --clear $(RLLIB)
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(RLLIB)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	@$(RLLIB)/bin/python -m pip install --quiet --disable-pip-version-check "ray[rllib]==2.60.0"
	@touch $@

dist: $(READY) ## build the wheel and try it in a clean environment (5 GB while it runs)
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv --clear build/trial
	build/trial/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	mkdir -p build/elsewhere
	cd build/elsewhere && ../trial/bin/tttstream info
	cd build/elsewhere && ../trial/bin/tttstream watch walk --max-frames 60 --out trial
	rm -rf build

soak: $(READY) ## what is too long for `make test`
	$(BIN)/python -m pytest -q -m soak --timeout 0

gpu: ## all that wants a GPU, in steps of under ten minutes, each resumable (records in out/gpu)
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) .ci/gpu.py

gpu-pack: $(READY) ## wheels and clips for a GPU machine without a network, in gpu-pack/
	$(BIN)/python .ci/gpu_pack.py

clean: ## remove all that the other commands made
	rm -rf $(VENV) $(RLLIB) build dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf *.egg-info
