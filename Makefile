# `make quickstart` shows what Tandem does; `make test` checks everything. Both need only Python
# 3.11 or newer and make, and set up .venv by themselves the first time.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The interpreter that .venv is made with; every candidate is run, since a name on the PATH may be
# a launcher for a version that is not installed.
PYTHON ?= $(shell for name in python3.12 python3.11 python3; do \
	if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$name; break; fi; done)

VENV := .venv
RUN := $(VENV)/bin/python
SGLANG := $(CURDIR)/.sglang
READY := $(VENV)/.ready
# pages are laid out by hand, their code too
FORMAT := $(RUN) -m ruff format --extend-exclude '*.md'

.PHONY: help setup test test-sglang lint format quickstart bench clean distclean

help:  ## lists the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## makes .venv with everything that tests and examples need

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

test: lint  ## checks style and types, then runs every test
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile

test-sglang: $(READY)  ## tests against the stock SGLang server, on the CPU; installs it in .sglang
	$(RUN) tests/sglang/install_cpu.py $(SGLANG)
	TANDEM_SGLANG_PYTHON=$(SGLANG)/python $(RUN) -m pytest tests/sglang/real_server.py

lint: $(READY)  ## ruff and mypy
	$(RUN) -m ruff check .
	$(FORMAT) --check .
	$(RUN) -m mypy

format: $(READY)  ## formats the code and mends what ruff can mend
	$(RUN) -m ruff check --fix .
	$(FORMAT) .

quickstart: $(READY)  ## trains a small model on this machine and shows that it got better
	$(RUN) examples/quickstart/run.py

bench: $(READY)  ## the benchmarks that run without a GPU
	@for script in benchmarks/*_cpu.py benchmarks/asynchrony.py; do \
		echo "== $$script"; $(RUN) "$$script" || exit 1; done

clean:  ## removes caches and build output (runs and .venv stay)
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks tools scripts -name __pycache__ -type d -prune \
		-exec rm -rf {} + 2>/dev/null || true

distclean: clean  ## removes .venv and .sglang too
	rm -rf $(VENV) $(SGLANG)
