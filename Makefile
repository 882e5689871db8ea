# Two commands on a fresh machine: `make serve` and `make test`. Needs Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
BIN := $(VENV)/bin
# The service alone, and all that tests, checks and benchmarks need: Triton among it, a gigabyte.
SERVING := $(VENV)/.serving
INSTALLED := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: serve test test-tritons check bench bench-gpu clean
.DELETE_ON_ERROR:

serve: $(SERVING) sample/logits.npy ## start the service on loopback, with a sample to try
	@echo "When it says Ready, try from this folder in another terminal:"
	@echo "  curl -F logits=@sample/logits.npy -F labels=@sample/labels.png http://$(HOST):$(PORT)/v1/loss"
	$(BIN)/seg-loss serve --host $(HOST) --port $(PORT)

test: $(INSTALLED) ## all tests; ARGS="-k name" picks some
	$(BIN)/python -m pytest $(ARGS)

# The GPU kernels compiled ahead of time by the oldest Triton that pyproject.toml allows and by one in
# between; `make test` does it with the pinned one.
TRITONS := 3.4.0 3.6.0
test-tritons: $(TRITONS:%=test-triton-%)

test-triton-%: $(INSTALLED) .cache/triton-%/.installed
	PYTHONPATH=.cache/triton-$* $(BIN)/python -m pytest tests/seg_loss/test_gpu_code.py $(ARGS)

.PRECIOUS: .cache/triton-%/.installed
.cache/triton-%/.installed: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
		--target $(@D) triton==$*
	@touch $@

check: $(INSTALLED) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED) ## measure the loss on this machine's CPU; writes benchmarks/results
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.cpu_upsampled

bench-gpu: ## on a machine with a GPU, torch and Triton: check everything there, then measure
	$(PYTHON) -m benchmarks.gpu

sample/logits.npy: $(SERVING)
	$(BIN)/seg-loss sample sample

$(SERVING): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e ".[app]"
	@touch $@

$(INSTALLED): $(SERVING)
	$(INSTALL) -e ".[app,test,lint]"
	@touch $@

clean:
	rm -rf $(VENV) build dist sample .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
