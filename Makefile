# `make demo` and `make test` set up what they need in .venv and then do their job.
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
SCRIPTS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(SCRIPTS)
PIP := python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-browser notebooks gallery quality format docs dist lowest torchvision fuzz soak bench gpu clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) install --upgrade pip
	# torch first and pinned: left to the resolver it pulls gigabytes of CUDA libraries
	$(BIN)/$(PIP) install "$(TORCH)"
	$(BIN)/$(PIP) install -e ".[dev]"
	# of the extra "catalog" tests read one file, which needs nothing of what it would bring
	$(BIN)/$(PIP) install --no-deps "open_clip_torch>=2.24"
	# needs a later huggingface_hub than the lowest one that is allowed, so "lowest" skips its tests
	$(BIN)/$(PIP) install "trackio>=0.30"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m starft_hf demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto -m slow --ignore tests/notebooks

notebooks: $(VENV)/.installed
	$(BIN)/python notebooks/tidy.py --check
	$(BIN)/python -m pytest -m "slow or not slow" tests/notebooks --durations 10

test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest -m browser

# all that people see, as PNG files in gallery/; look at them after every change of it
gallery: $(VENV)/.installed
	$(BIN)/python -m tests.gallery gallery

quality: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/zizmor --quiet --offline --persona pedantic --strict-collection .github

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python notebooks/tidy.py

docs: $(VENV)/.installed
	$(BIN)/zensical build --clean --strict

# the wheel as its users get it: in an empty environment, far from this checkout
dist: $(VENV)/.installed
	rm -rf dist $(VENV)-dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/$(SCRIPTS)/$(PIP) install "$(TORCH)" "$$(ls dist/*.whl)[report]"
	$(VENV)-dist/$(SCRIPTS)/python tests/try_wheel.py

# every >= of pyproject.toml as ==; LOWEST_TORCH= for another torch, where the oldest has no small build
lowest:
	rm -rf $(VENV)-lowest
	$(PYTHON) -m venv $(VENV)-lowest
	grep -oE '"[A-Za-z0-9_.-]+>=[0-9.]+[";]' pyproject.toml | tr -d '";' \
		| sed -e 's/>=/==/' $(if $(LOWEST_TORCH),-e 's/^torch==.*/$(LOWEST_TORCH)/') > $(VENV)-lowest/versions.txt
	$(VENV)-lowest/$(SCRIPTS)/$(PIP) install --constraint $(VENV)-lowest/versions.txt -e ".[dev]"
	$(VENV)-lowest/$(SCRIPTS)/python -m pytest -n auto

# with torchvision, which transformers prepares images with where it is installed, as it is for most users
torchvision:
	rm -rf $(VENV)-torchvision
	$(PYTHON) -m venv $(VENV)-torchvision
	$(VENV)-torchvision/$(SCRIPTS)/$(PIP) install "$(TORCH)" torchvision
	$(VENV)-torchvision/$(SCRIPTS)/$(PIP) install -e ".[dev,catalog]"
	$(VENV)-torchvision/$(SCRIPTS)/python -m pytest -n auto

# long ones by hand: files from strangers for ten minutes; 2,000 steps of training, and 50 runs that are killed
fuzz: $(VENV)/.installed
	STARFT_FUZZ_SECONDS=600 $(BIN)/python -m pytest -m slow -s tests/fuzz

soak: $(VENV)/.installed
	$(BIN)/python -m pytest -m soak -s tests/training

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# on a machine with a CUDA GPU, with the packages of that machine's Python: tests and figures in 8 minutes
gpu:
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf $(VENV) $(VENV)-* build site gallery .cache dist .mypy_cache .pytest_cache .ruff_cache
