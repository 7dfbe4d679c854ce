# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv with the pinned torch.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= runs/demo

.PHONY: demo test slow soak lint bench docs release-check second-opinion setup clean

demo: $(READY)
	$(BIN)/curvact sweep run demo --out $(DEMO) --resume

test: $(READY)
	$(BIN)/python -m pytest -n auto -q

slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

# Kills, signals, full disks, want of memory, damaged files. CURVACT_SOAK_KILLS=50 is longer.
soak: $(READY)
	$(BIN)/python -m pytest -q -m soak

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/activations.py
	$(BIN)/python benchmarks/verdict_calibration.py
	$(BIN)/python benchmarks/input_pipeline.py
	$(BIN)/python benchmarks/training.py

# The site, in site/; any warning, such as a link that leads nowhere, is an error.
docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html is written; for the search: python -m http.server --directory site"

# The sdist and the wheel, tried in an environment of its own: docs/release.md.
release-check:
	PYTHON=$(PYTHON) .ci/release-check

# Peers in an environment of their own: adv_lib, foolbox, torchattacks, curvlinops, PyHessian agree with us.
second-opinion: $(READY)
	bash tests/second_opinion/setup.sh

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	@touch $@

$(VENV)/.docs-ready: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@

clean:
	rm -rf $(VENV) build dist site src/*.egg-info
