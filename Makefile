# Each target works alone on a fresh Debian 12 machine with Python 3.11, git, make and root.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
SEEDS ?= 2000
SYSTEM_PACKAGES ?= install

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -p no:cacheprovider -q
# Bytecode is compiled at installation, whatever the environment says: without it every start costs half a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup system qemu lint types check test e2e sim bench docs demo lock wheel clean

help: ## Show the targets
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

setup: system $(VENV)/.project ## Install what is missing: Debian packages, virtual environment, this checkout
	@$(BIN)/python -m compileall -q src

system:
	@[ "$(SYSTEM_PACKAGES)" = skip ] || packaging/debian-packages runtime dev

qemu: setup ## Install what virtual machines need: QEMU and the tools that make images
	@[ "$(SYSTEM_PACKAGES)" = skip ] || packaging/debian-packages qemu

$(VENV)/.packages: requirements.lock | system
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version)'
	@[ -x $(BIN)/pip ] || { echo "Making the virtual environment $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing Python packages into $(VENV)"
	@$(BIN)/pip install -qq --disable-pip-version-check --compile --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.project: pyproject.toml src/agentlab/__init__.py $(VENV)/.packages
	@$(BIN)/pip install -qq --disable-pip-version-check --compile --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup ## Formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## Types, strictly
	$(BIN)/mypy

check: lint types ## What a change has to pass before it is shown: under a minute
	$(PYTEST) -n $(JOBS) -m "not slow" tests/tidy tests/unit tests/docs

test: qemu ## All tests; those that make real sandboxes need root
	$(PYTEST) -n $(JOBS) --dist loadfile tests

e2e: qemu ## Only the tests that drive a real daemon and real sandboxes
	$(PYTEST) -n $(JOBS) --dist loadfile tests/contract tests/e2e

sim: setup ## The simulation with more seeds: make sim SEEDS=2000
	AGENTLAB_SIM_SEEDS=$(SEEDS) $(PYTEST) -n $(JOBS) tests/sim

bench: qemu ## The measurements; each prints one JSON line
	@for each in $(filter-out benchmarks/harness.py benchmarks/lab.py,$(wildcard benchmarks/*.py)); do $(BIN)/python "$$each"; done

docs: setup ## Write the reference, the drawings and the SDK's methods again, from the code
	$(BIN)/python -m agentlab.client.generate
	$(BIN)/python docs/generate.py

demo: setup ## The main job, start to end, in .demo/
	@PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh

lock: setup ## Choose package versions again: writes requirements.lock and packaging/requirements.lock
	@$(BIN)/pip install -qq --disable-pip-version-check 'uv>=0.13'
	@compile="$(BIN)/uv pip compile -q --upgrade --universal --generate-hashes --no-emit-index-url --no-header --no-annotate pyproject.toml"; \
	$$compile --group dev -o requirements.lock; \
	$$compile -o packaging/requirements.lock
	@! grep -n '://' requirements.lock packaging/requirements.lock

wheel: setup ## Build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel -d dist

clean: ## Remove what can be made again: the virtual environment, caches, dist/, .demo/
	@if [ -e .demo ] && [ -x $(BIN)/agentlab ]; then $(BIN)/agentlab down --dir .demo --all >/dev/null 2>&1 || true; fi
	rm -rf $(VENV) .demo dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
