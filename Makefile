# Each target makes the environment it needs, in .venv; PYTHON is any Python from 3.11 on.
PYTHON ?= python3
# What the samples were built and the tests are run with. Installed first, so that nothing that
# depends on torch chooses another build; users of the package need torch>=2.10.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo
# Of the benchmarks: which ones (all where empty), and on what; THREADS, where not each one's own.
ONLY ?=
DEVICE ?= cpu
THREADS ?=

.PHONY: demo test check bench samples clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	cd sample_models && ../$(BIN)/curv run --out ../$(OUT)/
	@echo "tables above; report.json and one CSV file per analysis in $(OUT)/"

test: check
	$(BIN)/python -m pytest -n auto

check: $(VENV)/testing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# 1 where a measurement misses what is promised of it.
bench: $(VENV)/installed
	$(BIN)/python tests/bench $(ONLY) --device $(DEVICE) $(if $(THREADS),--threads $(THREADS))

samples: $(VENV)/sampling
	$(BIN)/python sample_models/build.py

clean:
	rm -rf $(VENV) $(OUT) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

$(VENV)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "curv needs Python 3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/testing: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV)/sampling: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[samples]"
	@touch $@
