# Everything a fresh machine with Python (3.11 or newer), pip, make and git needs. `make` lists the targets.
#
#   make demo PYTHON=python3.12           another interpreter for the virtual environment
#   make demo OUTPUT=runs/other           another folder for the results
#   make test TESTS="tests/test_codes.py -x"   some of the tests, or other pytest arguments

PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= runs/demo
TESTS ?=
# Processes that run the tests. Each computes with one thread, so more than the number of cores is of no use.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
FOLDERS := $(wildcard hq_tokenizers priors pipelines tests benchmarks examples)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## install, then train both stages on handwritten digits and draw new ones
	$(BIN)/hq-tokenizers demo --output_dir $(OUTPUT)

test: $(VENV)/.installed-dev ## install, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(TESTS)

# mypy sees no editable install, and `priors/` is `hq_tokenizers.priors` only once installed: it checks an installed copy.
lint: $(VENV)/.installed-dev ## check formatting, lint and types
	$(BIN)/ruff format --check $(FOLDERS)
	$(BIN)/ruff check $(FOLDERS)
	rm -rf build
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p hq_tokenizers

format: $(VENV)/.installed-dev ## format the code and fix what ruff can fix
	$(BIN)/ruff format $(FOLDERS)
	$(BIN)/ruff check --fix $(FOLDERS)

clean: ## remove the virtual environment, builds and caches, but no results
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "hq_tokenizers needs Python 3.11 or newer; choose one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) install --editable '.[dev]'
	@touch $@ $(VENV)/.installed
