# `make repro` and `make test` do all the set-up; PYTHON names the interpreter that makes the environment.
PYTHON ?= python3
VENV ?= .venv
# relative: make takes a path with a space for two targets
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
GPU_PACKAGES := $(VENV)/.gpu-packages
# for `make gpu`: the address of PyTorch's package index (docs/pod.md) and its folder; FLASH_LINKS, if given, names
# another page of FlashAttention-3's wheels
TORCH_INDEX ?=
CUDA ?= cu130
FLASH_LINKS ?=
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: setup gpu repro test test-gpu test-kernels lint

setup: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "paramgolf needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/python
	@echo 'installing requirements.lock: some minutes'
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

# torch comes first: requirements.lock is content with it, and adds what it needs
gpu: $(GPU_PACKAGES)
	$(MAKE) setup
	paramgolf doctor

$(GPU_PACKAGES): requirements-gpu.lock | $(BIN)/python
	$(if $(TORCH_INDEX),,$(error set TORCH_INDEX to the address of PyTorch's package index: see docs/pod.md))
	$(BIN)/python -m pip install --quiet --no-deps --index-url $(TORCH_INDEX)/$(CUDA) \
	    $(if $(FLASH_LINKS),--find-links $(FLASH_LINKS)) --requirement requirements-gpu.lock
	touch $@

repro: setup
	dvc repro

# on two cores: a process more than that, since tests of dvc's queue mostly wait
test: setup
	pytest -n 3 --dist worksteal

test-gpu:
	python3 -m pytest -m gpu

# the kernels without a GPU, compiled for one and run by Triton's interpreter; the version that goes
# with the torch of requirements.lock
test-kernels: setup .cache/triton
	PYTHONPATH=.cache/triton pytest tests/model/kernels/test_lowering.py tests/quant/test_kernels.py
	PYTHONPATH=.cache/triton TRITON_INTERPRET=1 pytest tests/model/kernels tests/quant/test_kernels.py

.cache/triton: | setup
	$(BIN)/python -m pip install --quiet --no-deps --target $@ triton==3.7.1

lint: setup
	ruff check
	ruff format --check
	mypy
	lint-imports --no-logo
