# Each target makes the environment it needs, in .venv; PYTHON is any Python from 3.11 on.
PYTHON ?= python3
# What the samples were built and the tests are run with. Installed first, so that nothing that
# depends on torch chooses another build; users of the package need torch>=2.10.
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo
# Of the benchmarks: which ones (all where empty), and on what; THREADS, where not each one's own.
# Their table and figures go to bench/, or to OUT. Peers live in an environment of their own, since
# their own wishes for torch would rule the others; what they need besides is named here instead.
ONLY ?=
DEVICE ?= cpu
THREADS ?=
PEERS := curvlinops-for-pytorch==3.0.1 backpack-for-pytorch==1.7.1 pyhessian==0.1 \
	hessian-eigenthings==1.0.0a5 einconv linear_operator jaxtyping einops unfoldNd

.PHONY: demo test check bench benched samples clean
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
bench: OUT = bench
bench:
	@$(MAKE) --no-print-directory VENV=$(VENV)-bench OUT=$(OUT) benched

benched: $(VENV)/peers
	$(BIN)/python tests/bench $(ONLY) --device $(DEVICE) --out $(OUT) $(if $(THREADS),--threads $(THREADS))

samples: $(VENV)/sampling
	$(BIN)/python sample_models/build.py

clean:
	rm -rf $(VENV) $(VENV)-bench $(OUT) bench .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info

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

# A peer that cannot be installed is missing from the table, which says so, and is tried again.
$(VENV)/peers: $(VENV)/installed
	-@$(BIN)/python -m pip install --quiet tqdm packaging scipy opt-einsum && \
	 missing= && for peer in $(PEERS); do \
	  $(BIN)/python -m pip install --quiet --no-deps $$peer || missing=1; done && \
	 test -z "$$missing" && touch $@
