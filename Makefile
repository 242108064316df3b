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
FOLDERS := $(wildcard hq_tokenizers priors pipelines tests benchmarks examples docs)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' hq_tokenizers/_version.py)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench dist clean

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

docs: $(VENV)/.installed-dev ## build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Ratios, since times depend on what else the machine does. One thread, so that other work disturbs less.
bench: $(VENV)/.installed-dev ## print what is how many times as fast as what, in a few minutes
	$(BIN)/python benchmarks/quantizer.py --threads 1 --repeats 5 --sizes 2048x512x64 2048x4096x64
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_step.py mnist
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_step.py cifar10
	$(BIN)/python benchmarks/sampling.py --threads 1 --repeats 1 --naive_steps 2

# With TAG=v0.1.0 the tag has to be the version, and the changelog to have a section on it.
dist: $(BIN)/python ## build what is published into dist, and check it
	@test -z "$$TAG" || test "$$TAG" = "v$(VERSION)" || \
		{ echo "the tag $$TAG is not the version $(VERSION) of hq_tokenizers/_version.py" >&2; exit 1; }
	@test -z "$$TAG" || grep -q "^## \[$(VERSION)\]" CHANGELOG.md || \
		{ echo "CHANGELOG.md has no section [$(VERSION)]" >&2; exit 1; }
	$(PIP) install --quiet build twine
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

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
