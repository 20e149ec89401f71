# `make demo` and `make test` set up what they need in .venv and then do their job.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-browser quality format bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	# torch first and pinned: left to the resolver it pulls gigabytes of CUDA libraries
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	# of the extra "catalog" tests read one file, which needs nothing of what it would bring
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "open_clip_torch>=2.24"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m starft_hf demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest -m browser

quality: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
