# `make repro` and `make test` do all the set-up; PYTHON names the interpreter that makes the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
export PATH := $(BIN):$(PATH)

.PHONY: setup repro test test-gpu test-kernels lint

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paramgolf needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

repro: setup
	dvc repro

test: setup
	pytest -n 2 --dist worksteal

test-gpu:
	python3 -m pytest -m gpu

# the kernels without a GPU, by Triton's interpreter; the version that goes with the torch of requirements.lock
test-kernels: setup .cache/triton
	PYTHONPATH=.cache/triton TRITON_INTERPRET=1 pytest tests/model/kernels

.cache/triton: | setup
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==3.7.1

lint: setup
	ruff check
	ruff format --check
	mypy
	lint-imports --no-logo
