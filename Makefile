# The daily commands. `make evaluate` and `make test` work as the first command after cloning.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help evaluate test test-all check format clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("vleak needs Python 3.11 or newer, this is %d.%d; give one with PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Torch first, so that setup.py finds its headers and builds the extension against it.
$(VENV)/installed: $(BIN)/python requirements.txt pyproject.toml setup.py $(wildcard csrc/*/*)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

evaluate: $(VENV)/installed  ## set up, then attack the embedded data behind DP-SGD
	$(BIN)/vleak evaluate --defense dp

test: $(VENV)/installed  ## set up, then run the tests, at most ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow'

test-all: $(VENV)/installed  ## the same with the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(VENV)/installed  ## format, lint, types, C++ format: all must be clean
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	# A type checker does not follow package-dir: show it the package as it is installed.
	rm -rf build/types && mkdir -p build/types/vleak
	ln -s $(CURDIR)/vleak/* $(CURDIR)/defenses $(CURDIR)/cli build/types/vleak/
	cd build/types && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

format: $(VENV)/installed  ## rewrite everything in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info vleak/native/*.so
