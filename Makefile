# `make demo` and `make test` need Python 3.11 and nothing else; `setup` makes the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := pipeline model jobs indexes benchmarks

.PHONY: setup check test test-slow demo demo-full clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup
	$(BIN)/pytest -m "not slow"

test-slow: setup
	$(BIN)/pytest -m slow

demo: setup
	$(BIN)/viaduct demo

demo-full: setup
	$(BIN)/viaduct demo --full --out runs/demo-full

clean:
	rm -rf $(VENV) runs
