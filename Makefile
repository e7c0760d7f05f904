# The daily commands. `make evaluate` and `make test` work as the first command after cloning.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help evaluate test test-core test-page test-ray test-all check docs layout format clean

# The tests that hold the parts by themselves and the walls between them, in about a minute: no run from end to
# end, no attack, no training, and no audit of hundreds of messages.
HEAVY := test_attack* test_learned.py test_exact.py test_reference_frames.py test_extractors.py test_models.py \
	test_strongest.py test_adaptive.py test_tokens.py test_update_audit.py test_federation.py test_auditing.py \
	test_conformance.py test_guarding.py test_planted_models.py test_denoisers.py test_channels_in_attacks.py
CORE := tests/unit $(patsubst %,--ignore-glob='*/%',$(HEAVY))

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("vleak needs Python 3.11 or newer, this is %d.%d; give one with PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Torch first, so that setup.py finds its headers and builds the extension against it.
$(VENV)/installed: $(BIN)/python requirements.txt pyproject.toml setup.py $(wildcard csrc/*/*)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev,pandas]'
	touch $@

# The site's tools, in the versions of the `docs` extra. Installing the extra itself would build the extension again.
DOCS_TOOLS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c '$(DOCS_TOOLS)')
	touch $@

evaluate: $(VENV)/installed  ## set up, then attack the embedded data behind DP-SGD
	$(BIN)/vleak evaluate --defense dp

# Compiled modules are kept, also where the environment says that they are not: workers and the processes that
# tests start would compile all of vleak and of the tests anew.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

test: $(VENV)/installed  ## set up, then run the tests, five to seven minutes on two cores
	$(PYTEST) -n $(WORKERS) --dist worksteal -m 'not slow'

test-core: $(VENV)/installed  ## set up, then run the tests that need no whole run
	$(PYTEST) -n $(WORKERS) --dist worksteal -m 'not slow' $(CORE)

test-page: $(VENV)/installed  ## look at every kind of page in headless Chromium; needs chromium and npm
	$(PYTEST) tests/integration/test_page_in_browser.py

test-all: $(VENV)/installed  ## the same with the slow tests
	$(PYTEST) -n $(WORKERS) --dist worksteal

# Ray is in an environment of nobody else's tests: its wheel is large and brings packages of its own.
RAY_TOOLS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ray"])
build/ray: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --target $@ $$($(BIN)/python -c '$(RAY_TOOLS)')

test-ray: build/ray  ## install Ray beside the environment, and run a whole evaluation on it
	PYTHONPATH=build/ray $(PYTEST) tests/integration/test_ray.py -k numbers

# The package as it is installed, with defenses/ and cli/ inside: what reads sources does not follow package-dir.
layout:
	rm -rf build/package/vleak && mkdir -p build/package/vleak
	ln -s $(CURDIR)/vleak/* $(CURDIR)/defenses $(CURDIR)/cli build/package/vleak/

check: $(VENV)/installed layout  ## format, lint, types, C++ format: all must be clean
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd build/package && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

docs: $(VENV)/docs-installed layout  ## build the documentation site into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/installed  ## rewrite everything in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

clean:  ## remove the environment and everything that was built
	rm -rf $(VENV) build dist *.egg-info vleak/native/*.so
