# Everything from a fresh clone: `make mine` finds, trains and proves a ticket; `make test` is what CI runs.
PYTHON ?= python3
SEED ?= 0
ARGS ?=
BIN := .venv/bin

.PHONY: mine test lint golden digests system clean

mine: .venv/package
	$(BIN)/gemminer mine --recipe digits --seed $(SEED) --out runs/digits-seed$(SEED) --overwrite $(ARGS)

test: system lint
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --cov=gemminer --cov-branch --cov-fail-under=90 --cov-report=term:skip-covered -m "not alone" $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m alone

lint: .venv/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pins of tests/golden, written anew. A commit that changes one names it, the reason, the old and the new value.
golden: .venv/development
	OMP_NUM_THREADS=1 $(BIN)/python tests/golden/pins.py --write

# Exact digests of everything that is pinned: before and after a change that must not change a bit, then diff.
digests: .venv/development
	@OMP_NUM_THREADS=1 $(BIN)/python tests/golden/pins.py --digests

# Debian packages the tests use: real images, and a browser to look at the report with.
system:
	sh tools/system.sh

# The documentation site, into site/: fails on a broken link, a name that does not exist, a picture that is missing.
.PHONY: docs
docs: .venv/docs
	$(BIN)/python tools/build_docs.py

.venv/python: constraints.txt
	$(PYTHON) -m venv .venv
	touch $@

.venv/package: .venv/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/development: .venv/package
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/docs: .venv/package
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv runs site
