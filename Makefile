# Two commands on a fresh machine: `make serve` and `make test`. They need Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
# `make serve PORT=9000` replaces them. Some systems set variables of these names, which must not.
HOST := 127.0.0.1
PORT := 8000
# The index that torch is taken from. If empty, pip's default index, whose torch for Linux is the
# CUDA build. https://download.pytorch.org/whl/cpu has the CPU build, which is much smaller.
TORCH_INDEX_URL ?=
# The tests run on this Triton, also where torch's CUDA build has brought an older one.
TRITON := 3.9.0
# `make test-tritons` compiles the GPU kernels with the oldest Triton that pyproject.toml allows, with
# one in between, with the one that torch 2.13 brings, and with that of the tests.
TRITONS := 3.4.0 3.6.0 3.7.1 $(TRITON)
GPU_CODE_TESTS := tests/seg_loss/test_gpu_code.py
# Processes that share the tests; 0 runs them in one.
WORKERS ?= 2

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
INSTALL := $(PIP) install -c constraints.txt
# Empty files that record what is installed in the environment.
SERVING := $(VENV)/.serving
TESTING := $(VENV)/.testing
DOCUMENTING := $(VENV)/.documenting

.DEFAULT_GOAL := help
.PHONY: help serve test test-example test-page test-matrices test-tritons check docs bench bench-gpu clean
.DELETE_ON_ERROR:

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

serve: $(SERVING) sample/logits.npy ## start the service on loopback, with a sample to try
	@echo "When it says Ready, open http://$(HOST):$(PORT)/ or try from this folder in another terminal:"
	@echo "  curl -F logits=@sample/logits.npy -F labels=@sample/labels.png http://$(HOST):$(PORT)/v1/loss"
	$(BIN)/seg-loss serve --host $(HOST) --port $(PORT)

test: $(TESTING) ## run all tests but those of the next four; ARGS="-k name" selects some
	$(PYTEST) --ignore $(GPU_CODE_TESTS) -m "not matrix and not example and not page" $(ARGS)

test-page: $(TESTING) ## run the web page in the system's Chromium
	$(BIN)/python -m pytest -m page tests/page $(ARGS)

test-example: $(TESTING) ## train the network of the worked example, with fewer scenes and steps
	$(BIN)/python -m pytest -m example tests/test_example_training.py $(ARGS)

test-matrices: $(TESTING) ## run the GPU kernels over all options in Triton's interpreter
	$(PYTEST) -m matrix tests/seg_loss $(ARGS)

test-tritons: $(TRITONS:%=test-triton-%) ## compile the GPU kernels with four Tritons

test-triton-%: $(TESTING) .cache/triton-%/.installed
	PYTHONPATH=.cache/triton-$* $(PYTEST) $(GPU_CODE_TESTS) $(ARGS)

check: $(TESTING) ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCUMENTING) ## build the documentation in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(TESTING) ## measure the loss on this machine's CPU; writes benchmarks/results
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.cpu_upsampled
	$(BIN)/python -m benchmarks.predict
	$(BIN)/python -m benchmarks.host
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.pictures

bench-gpu: ## with the GPU, torch and Triton of PYTHON: check everything there, then measure
	$(PYTHON) -m benchmarks.gpu

clean: ## delete the environment, caches, builds and the sample
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf build dist sample site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

sample/logits.npy: $(SERVING)
	$(BIN)/seg-loss sample sample

$(SERVING): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps $(TORCH_INDEX_URL:%=--index-url %) torch
	$(INSTALL) -e ".[app]"
	@touch $@

$(TESTING): $(SERVING)
	$(INSTALL) -e ".[app,train,lint,test]"
	test "$$(uname -s)" != Linux || $(PIP) install --no-deps triton==$(TRITON)
	@touch $@

$(DOCUMENTING): $(SERVING)
	$(INSTALL) -e ".[app,docs]"
	@touch $@

.PRECIOUS: .cache/triton-%/.installed
.cache/triton-%/.installed: | $(TESTING)
	$(PIP) install --no-deps --upgrade --target $(@D) triton==$*
	@touch $@
